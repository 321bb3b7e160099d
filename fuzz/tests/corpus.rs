//! The stored corpus, by the ordinary test runner: every entry is an input that once led somewhere new.
#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::path::Path;

fn replay(target: &str, check: fn(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    let mut count = 0;
    for entry in directory.read_dir().unwrap() {
        let path = entry.unwrap().path();
        let input = std::fs::read(&path).unwrap();
        std::panic::catch_unwind(|| check(&input))
            .unwrap_or_else(|_| panic!("{} fails", path.display()));
        count += 1;
    }
    assert!(
        count > 10,
        "only {count} entries in {}",
        directory.display()
    );
}

#[test]
fn of_messages() {
    replay("message", bucket_brigade_fuzz::message::check);
}

#[test]
fn of_settings() {
    replay("settings", bucket_brigade_fuzz::settings::check);
}

#[test]
fn of_path_rules() {
    replay("path_rule", bucket_brigade_fuzz::path_rule::check);
}
