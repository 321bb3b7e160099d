//! Why no row is in scope: what the column's paths start with instead, and how that differs from the setting.

use std::collections::HashMap;
use std::fmt;

use percent_encoding::percent_decode_str;

use crate::path_rule::PathRule;

/// The longest beginning of a path that is shown, in characters.
const MAX_SHOWN_CHARS: usize = 60;

const MAX_SHOWN_PREFIXES: usize = 5;

/// Folders of a path that OLD_PREFIX is compared with.
const MAX_DEPTH: usize = 6;

/// Some rows of the column, when none of all is in scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathSample {
    pub rows: usize,
    /// Rows with the old prefix that `ROW_FILTER` leaves out.
    pub left_out: usize,
    /// Those of the rows that have a path.
    pub paths: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmptyScope {
    NoRows,
    /// Each path is null or empty.
    NoPaths,
    /// Each path starts with `NEW_PREFIX`, as after a migration.
    AllMoved,
    /// `ROW_FILTER` leaves out so many rows with the old prefix of those that were read, which are all.
    LeftOut(usize),
    /// Paths start with something else: `OLD_PREFIX` may be wrong.
    OtherPaths(UnmatchedPrefix),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnmatchedPrefix {
    old_prefix: String,
    looked_at: usize,
    /// What they start with, up to the first slash, and how many; most frequent first.
    prefixes: Vec<(String, usize)>,
    /// What `OLD_PREFIX` should perhaps be, and what is different there.
    suggestion: Option<String>,
}

impl EmptyScope {
    pub fn explain(rule: &PathRule, sample: &PathSample) -> Self {
        let (old, new) = (rule.old_prefix(), rule.new_prefix());
        if sample.rows == 0 {
            return Self::NoRows;
        }
        if sample.paths.is_empty() {
            return Self::NoPaths;
        }
        if sample.left_out > 0 {
            return Self::LeftOut(sample.left_out);
        }
        if !new.is_empty() && sample.paths.iter().all(|path| path.starts_with(new)) {
            return Self::AllMoved;
        }
        Self::OtherPaths(UnmatchedPrefix {
            old_prefix: old.to_owned(),
            looked_at: sample.paths.len(),
            prefixes: count_prefixes(&sample.paths),
            suggestion: suggest_prefix(old, &sample.paths),
        })
    }
}

impl fmt::Display for EmptyScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRows => f.write_str("the table has no rows"),
            Self::NoPaths => f.write_str("no row has a path: all are null or empty"),
            Self::LeftOut(rows) => write!(
                f,
                "ROW_FILTER leaves out every row with OLD_PREFIX: {rows} of those that were read"
            ),
            Self::AllMoved => f.write_str("every path starts with NEW_PREFIX already"),
            Self::OtherPaths(unmatched) => unmatched.fmt(f),
        }
    }
}

impl fmt::Display for UnmatchedPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            old_prefix,
            looked_at,
            ..
        } = self;
        write!(f, "no path starts with OLD_PREFIX '{old_prefix}'")?;
        write!(f, "; of {looked_at} that were read")?;
        for (number, (prefix, count)) in self.prefixes.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(f, "{comma} {count} start with '{prefix}'")?;
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, ". {suggestion}"),
            None => Ok(()),
        }
    }
}

fn count_prefixes(paths: &[String]) -> Vec<(String, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for path in paths {
        *counts.entry(leading_segment(path)).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    counts.truncate(MAX_SHOWN_PREFIXES);
    let shown = |(prefix, count): (&str, usize)| {
        let prefix: String = prefix.chars().take(MAX_SHOWN_CHARS).collect();
        (prefix.escape_debug().to_string(), count)
    };
    counts.into_iter().map(shown).collect()
}

/// The first folder of a path with its slashes, the address of a URL, or all of a path without a folder.
fn leading_segment(path: &str) -> &str {
    let after_scheme = path.find("://").map_or(0, |at| at + "://".len());
    let rest = path[after_scheme..].trim_start_matches('/');
    let begin = path.len() - rest.len();
    rest.find('/').map_or(path, |at| &path[..=begin + at])
}

/// The folders that a path is in, from the outermost: each with the slash at its end.
fn folders(path: &str) -> impl Iterator<Item = &str> {
    let slashes = path.match_indices('/').take(MAX_DEPTH);
    slashes.map(|(at, _)| &path[..=at])
}

/// What is easily typed beside a prefix, how it is named, and what takes it away.
type Slip = (&'static str, fn(&str) -> String);

const SLIPS: [Slip; 4] = [
    ("space around it", |text| text.trim().to_owned()),
    (
        "quotes around it (an env file of Docker passes them on)",
        |text| {
            text.trim_matches(['"', '\'', '`', '“', '”', '‘', '’'])
                .trim()
                .to_owned()
        },
    ),
    ("a wildcard at its end (it is taken literally)", |text| {
        text.trim_end_matches(['*', '%']).to_owned()
    }),
    ("backslashes", |text| text.replace('\\', "/")),
];

fn suggest_prefix(old_prefix: &str, paths: &[String]) -> Option<String> {
    let mut differences = Vec::new();
    let mut bare = old_prefix.to_owned();
    for (slip, mend) in SLIPS {
        let mended = mend(&bare);
        if mended != bare {
            differences.push(slip);
        }
        bare = mended;
    }
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let plain = |text: &str| without_slashes(&decoded(text)).to_lowercase();
    let wanted = plain(&bare);
    let is_meant = |folder: &&str| plain(folder) == wanted;
    let found = paths
        .iter()
        .flat_map(|path| folders(path))
        .find(is_meant)
        .filter(|_| !wanted.is_empty())?;
    differences.extend(slash_differences(&bare, found));
    let (bare, shown) = (without_slashes(&bare), without_slashes(found));
    if bare.to_lowercase() != shown.to_lowercase() {
        differences.push("another percent-encoding");
    } else if bare != shown {
        differences.push("other letters in upper case");
    }
    Some(format!(
        "Did you mean '{found}'? OLD_PREFIX has {}",
        differences.join(", ")
    ))
}

fn without_slashes(text: &str) -> String {
    let parts = text.split('/').filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("/")
}

fn slash_differences(text: &str, found: &str) -> Vec<&'static str> {
    let at_start = |text: &str| text.len() - text.trim_start_matches('/').len();
    let at_end = |text: &str| text.len() - text.trim_end_matches('/').len();
    let is_doubled = |text: &str| text.trim_matches('/').contains("//");
    let (start, end) = (
        at_start(text).cmp(&at_start(found)),
        at_end(text).cmp(&at_end(found)),
    );
    let differences = [
        (start.is_gt(), "a slash too many at its start"),
        (start.is_lt(), "no such slash at its start"),
        (end.is_gt(), "a doubled slash at its end"),
        (end.is_lt(), "no slash at its end"),
        (
            is_doubled(text) != is_doubled(found),
            "other slashes within",
        ),
    ];
    let differences = differences.into_iter().filter(|(differs, _)| *differs);
    differences.map(|(_, what)| what).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain(old_prefix: &str, paths: &[&str]) -> String {
        let rule = PathRule::new(old_prefix, "avatar/", None, None).unwrap();
        let sample = PathSample {
            rows: 9,
            left_out: 0,
            paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        };
        EmptyScope::explain(&rule, &sample).to_string()
    }

    #[test]
    fn a_slip_in_the_prefix_is_named() {
        let slips = [
            ("\"image/\"", "quotes around it"),
            ("'image/'", "quotes around it"),
            ("/image/", "a slash too many at its start"),
            ("Image/", "other letters in upper case"),
            ("image//", "a doubled slash at its end"),
            (" image/", "space around it"),
            ("image/*", "a wildcard"),
            ("image\\", "backslashes"),
        ];
        for (old_prefix, slip) in slips {
            let why = explain(old_prefix, &["avatar/2.png", "image/a/1.png"]);
            assert!(why.contains("Did you mean 'image/'?"), "{why}");
            assert!(why.contains(slip), "{why}");
        }
        let why = explain("images", &["/images/1.png", "/images/2.png"]);
        assert!(
            why.contains("no such slash at its start, no slash at its end"),
            "{why}"
        );
    }

    #[test]
    fn a_prefix_is_compared_as_the_paths_encode_it() {
        let why = explain(
            "https://a.example/my images/",
            &["https://a.example/my%20images/1"],
        );
        let meant = "Did you mean 'https://a.example/my%20images/'? OLD_PREFIX has another percent-encoding";
        assert!(why.contains(meant), "{why}");
    }

    #[test]
    fn what_paths_start_with_is_counted_by_their_first_folder() {
        let paths = [
            "https://a.example/x/1",
            "https://a.example/2",
            "//cdn/3",
            "/i/4",
            "5.png",
        ];
        let why = explain("image/", &paths);
        let counts = "5 that were read 2 start with 'https://a.example/', 1 start with '//cdn/', \
                      1 start with '/i/', 1 start with '5.png'";
        assert!(why.contains(counts), "{why}");
    }

    #[test]
    fn nothing_is_wrong_where_nothing_has_another_path() {
        assert_eq!(explain("image/", &[]), EmptyScope::NoPaths.to_string());
        assert_eq!(
            explain("image/", &["avatar/1"]),
            EmptyScope::AllMoved.to_string()
        );
    }
}
