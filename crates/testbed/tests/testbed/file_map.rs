//! The file map of docs/architecture.md names every source file, and none that is not there.

use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn in_backticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// A folder with the files and folders that the map names in it.
fn map_of(page: &str) -> Vec<(PathBuf, Vec<String>)> {
    let section = page
        .lines()
        .skip_while(|line| *line != "### Which file holds which step");
    let section = section.take_while(|line| !line.starts_with("## "));
    let mut map: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for line in section.filter(|line| line.starts_with('|')) {
        let names = line.split('|').nth(2).unwrap_or_default();
        for name in in_backticks(names) {
            if name.ends_with("/src") {
                map.push((root().join(name), Vec::new()));
            } else if let Some((_, files)) = map.last_mut() {
                files.push(name.to_owned());
            }
        }
    }
    map
}

#[test]
fn the_file_map_is_that_of_the_tree() {
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let map = map_of(&page);
    assert_eq!(map.len(), 4);
    for (folder, named) in map {
        for name in &named {
            assert!(
                folder.join(name).exists(),
                "{} has no {name}",
                folder.display()
            );
        }
        for entry in std::fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            let mut name = entry.file_name().into_string().unwrap();
            if ["lib.rs", "main.rs"].contains(&name.as_str()) {
                continue;
            }
            if entry.path().is_dir() {
                name.push('/');
            }
            // A folder of tests stands beside the file that it tests.
            let file = format!("{}.rs", name.trim_end_matches('/'));
            assert!(
                named.contains(&name) || named.contains(&file),
                "docs/architecture.md does not say what {name} in {} is for",
                folder.display()
            );
        }
    }
}
