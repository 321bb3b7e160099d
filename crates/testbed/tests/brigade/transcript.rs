//! What the runbook shows is what the programs print: each output there is held to one of a real run.
//! Numbers, names and times differ from run to run; words and order must not.

use std::path::PathBuf;

/// The runbook.
fn runbook_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/operations.md")
}

/// Holds the output named `name` in the runbook to what `command` printed just now. With `BLESS=1` in
/// the environment the runbook is written anew instead.
pub(crate) fn assert_runbook_output(name: &str, command: &str, printed: &str) {
    let runbook = std::fs::read_to_string(runbook_path()).unwrap();
    let begin = format!("<!-- output: {name} -->\n```console\n");
    let (before, rest) = runbook
        .split_once(&begin)
        .unwrap_or_else(|| panic!("docs/operations.md shows no output named {name}"));
    let (shown, after) = rest.split_once("\n```").unwrap();
    let now = format!("$ {command}\n{}", printed.trim_end());
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(runbook_path(), format!("{before}{begin}{now}\n```{after}")).unwrap();
        return;
    }
    assert_eq!(
        mask_output(shown),
        mask_output(&now),
        "docs/operations.md shows another output of {name}; BLESS=1 writes it anew"
    );
}

/// Numbers, names of processes and bars reduced to a mark, and runs of spaces to one.
fn mask_output(text: &str) -> String {
    let mut outline = String::new();
    for word in text.split([' ', '\n']).filter(|word| !word.is_empty()) {
        let word = mask_word(word);
        // 1h 2m 3s is one time, as 3s is.
        if word.starts_with("TIME") && outline.ends_with("TIME ") {
            outline.truncate(outline.len() - "TIME ".len());
        }
        outline.push_str(&word);
        outline.push(' ');
    }
    outline
}

fn mask_word(word: &str) -> String {
    if word.starts_with("consumer-") || word.starts_with("feeder-") {
        return "PROCESS".into();
    }
    if word.starts_with("[#") || word.starts_with("[-") {
        return "BAR".into();
    }
    let mut marked = String::new();
    for character in word.chars() {
        let is_number = character.is_ascii_digit();
        match character {
            _ if is_number && marked.ends_with('N') => {}
            _ if is_number => marked.push('N'),
            '.' | ',' if marked.ends_with('N') => {}
            other => marked.push(other),
        }
    }
    // 1h 2m 3s, 2m and 12ms are all times.
    marked
        .replace("Nh", "TIME")
        .replace("Nms", "TIME")
        .replace("Nm", "TIME")
        .replace("Ns", "TIME")
}
