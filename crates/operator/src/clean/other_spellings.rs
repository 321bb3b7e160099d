//! Rows that may mean an object without naming it by the path rule: under another scheme or host, with a
//! query, percent-encoded. What they mean is guessed from the safe side: an object that one of them may
//! mean stays.

use std::borrow::Cow;
use std::collections::HashSet;

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::settings::SettingsError;
use bucket_brigade_common::sql::{like_prefix, quote_literal};
use percent_encoding::percent_decode_str;
use tokio_util::sync::CancellationToken;

use super::failed_paths::FailedPaths;
use super::key_filter::{KeyFilter, hash_of};
use super::path_references::{ColumnRules, ReferringColumn, lookup_error};
use crate::command_throttle::CommandThrottle;
use crate::path_column::RowSearch;

/// Rows outside the rule whose names are kept in memory. With more of them a match may be by chance:
/// clean needs the operator's consent then.
pub(super) const MAX_ROWS_OUTSIDE: u64 = 100_000;

const MAX_EXAMPLES: usize = 3;

/// What may be a query, an encoding, or another way to the same object.
const ODD_PATTERN: &str = r"[?#%+&\\]|\s|/\.|[^:]//|^/|\A\.";

/// Characters that may stand around a file's name in a URL, a list or a JSON text.
const DELIMITERS: &[char] = &[
    '/', '\\', '?', '#', '&', '=', ';', ',', ':', '|', '"', '\'', '(', ')', '[', ']', '{', '}',
    '<', '>',
];

/// What the rows may mean that do not name an object by the path rule.
#[derive(Debug, Default)]
pub(super) struct OtherSpellings {
    /// Rows under no prefix of any run; none where the rows have not been read.
    pub(super) rows_outside: Option<u64>,
    pub(super) examples: Vec<String>,
    /// Hashes of names in the first [`MAX_ROWS_OUTSIDE`] rows outside the rule: a collision keeps one object more.
    names: HashSet<u64>,
    /// Keys that rows under a prefix of the bucket may mean by another spelling, of every row whose path has a `+`, a `%`
    /// or a query: a few for each row of the table, perhaps.
    keys: KeyFilter,
    failed: FailedPaths,
}

impl OtherSpellings {
    /// Reads the rows of the columns, a stretch of ids at a time: all of them where no index holds those that may mean
    /// an object so.
    pub(super) async fn read(
        ledger: &PostgresLedger,
        columns: &[ReferringColumn],
        throttle: &CommandThrottle<'_>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let mut spellings = Self {
            rows_outside: Some(0),
            failed: FailedPaths::read(ledger, throttle, stop).await?,
            ..Self::default()
        };
        throttle.begin_phase("looking for other spellings", 0);
        for ReferringColumn { at, rules } in columns {
            let unknown = |error| lookup_error(&at.table, &error);
            let condition = rules.odd_condition(&format!("t.{}", at.path));
            let search = RowSearch {
                is_indexed: at
                    .has_index_with(ledger, &condition)
                    .await
                    .map_err(unknown)?,
                condition,
                paths: None,
            };
            let mut cursor = None;
            loop {
                throttle.acquire(0, stop).await?;
                let read = at.read_stretch(ledger, &search, &mut cursor).await;
                let Some((paths, rows)) = read.map_err(unknown)? else {
                    break;
                };
                throttle.advance_by(rows);
                for path in paths {
                    spellings.add_path(rules, &path);
                }
            }
        }
        Ok(spellings)
    }

    fn add_path(&mut self, rules: &ColumnRules, path: &str) {
        for reference in &rules.references {
            if let Some(rest) = path.strip_prefix(&reference.path_prefix) {
                let other = spellings(rest).into_iter().filter(|other| other != rest);
                let keys = other.map(|other| format!("{}{other}", reference.key_prefix));
                keys.for_each(|key| self.keys.insert(&key));
            }
        }
        if !is_outside(path, &rules.known_prefixes) {
            return;
        }
        let rows_outside = self.rows_outside.get_or_insert(0);
        *rows_outside += 1;
        if self.examples.len() < MAX_EXAMPLES {
            self.examples.push(path.to_owned());
        }
        if *rows_outside <= MAX_ROWS_OUTSIDE {
            self.names.extend(file_names(path).iter().map(hash_of));
        }
    }

    /// The operator knows of at most so many rows outside the rule, which mean no object here.
    pub(super) fn accept_rows_outside(&mut self, known: Option<u64>) -> Result<(), SettingsError> {
        let (rows, example) = (self.rows_outside.unwrap_or(0), self.examples.join("', '"));
        let outside = counted(rows, "row is", "rows are");
        let problem = match known {
            Some(known) if rows <= known => {
                self.names.clear();
                return Ok(());
            }
            Some(_) => format!("{outside} outside the path rule ('{example}'), more than stated"),
            None if rows > MAX_ROWS_OUTSIDE => format!(
                "{outside} outside the path rule ('{example}'), too many to keep what they may mean: if they mean no object of the bucket, say so by this number"
            ),
            None => return Ok(()),
        };
        Err(SettingsError::for_setting(
            "--rows-outside-the-rule",
            problem,
        ))
    }

    pub(super) fn may_mean(&self, key: &str) -> bool {
        let name = key.trim_end_matches('/').rsplit('/').next();
        self.keys.contains(key)
            || self.failed.may_mean(key)
            || name.is_some_and(|name| self.has_name(&name.to_lowercase()))
    }

    /// Whole, or in parts where delimiters are in the name itself, which was taken apart in a row.
    fn has_name(&self, name: &str) -> bool {
        let is_known = |name: &str| self.names.contains(&hash_of(name));
        let mut parts = name_parts(name).peekable();
        is_known(name) || parts.peek().is_some() && parts.all(is_known)
    }
}

impl ColumnRules {
    /// Which paths may mean an object by another spelling. All literals, so that the predicate of an index made of it
    /// follows.
    pub(super) fn odd_condition(&self, path: &str) -> String {
        let path = format!(r#"({path}::text COLLATE "C")"#);
        let is_elsewhere = |prefix: &&String| {
            let pattern = quote_literal(&like_prefix(prefix));
            format!("{path} NOT LIKE {pattern}")
        };
        let prefixes = self
            .known_prefixes
            .iter()
            .filter(|prefix| !prefix.is_empty());
        let (related, others): (Vec<_>, Vec<_>) = prefixes.partition(|one| self.is_related(one));
        let mut all = vec![format!("{path} <> ''")];
        all.extend(others.iter().map(is_elsewhere));
        let outside: Vec<String> = related.iter().map(is_elsewhere).collect();
        // Where a prefix is empty, it is told row by row.
        if !outside.is_empty() {
            let (pattern, outside) = (quote_literal(ODD_PATTERN), outside.join(" AND "));
            all.push(format!("({path} ~ {pattern} OR {outside})"));
        }
        all.join(" AND ")
    }

    /// Whether paths under a known prefix may name objects of the bucket.
    fn is_related(&self, prefix: &str) -> bool {
        let mut references = self
            .references
            .iter()
            .map(|reference| &reference.path_prefix);
        references.any(|of| of.starts_with(prefix) || prefix.starts_with(of))
    }
}

/// Where a rule's prefix is empty, everything that looks like a key is under it.
fn is_outside(path: &str, known_prefixes: &[String]) -> bool {
    let is_known = |prefix: &String| match prefix.as_str() {
        "" => !path.starts_with('/') && !path.contains("://") && !path.contains(['?', '#', '%']),
        prefix => path.starts_with(prefix),
    };
    !known_prefixes.iter().any(is_known)
}

/// A path without its percent-encoding: as it is, decoded once, twice, and with `+` for a space; and the same of what it
/// says in HTML or in JSON.
fn decodings(path: &str) -> Vec<Cow<'_, str>> {
    let texts = [path.into(), without_entities(path), without_escapes(path)];
    let is_other = |(n, text): &(usize, Cow<'_, str>)| *n == 0 || **text != *path;
    let texts = texts.into_iter().enumerate().filter(is_other);
    texts
        .flat_map(|(_, text)| percent_decodings(text))
        .collect()
}

fn percent_decodings(path: Cow<'_, str>) -> [Cow<'_, str>; 4] {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let once = decode(&path);
    let (twice, spaced) = (decode(&once), decode(&path.replace('+', " ")));
    [path, once.into(), twice.into(), spaced.into()]
}

/// `&amp;` and the like, of which a name may consist.
fn without_entities(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return text.into();
    }
    let named = [
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
        ("&#x27;", "'"),
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&amp;", "&"),
    ];
    let decoded = named
        .iter()
        .fold(text.to_owned(), |text, (entity, character)| {
            text.replace(entity, character)
        });
    decoded.into()
}

/// What is left of JSON's escapes outside ASCII, and of its slashes.
fn without_escapes(text: &str) -> Cow<'_, str> {
    if !text.contains('\\') {
        return text.into();
    }
    let quoted = text.replace("\\\"", "\"").replace('"', "\\\"");
    let decoded = serde_json::from_str::<String>(&format!("\"{quoted}\""));
    decoded.map_or_else(|_| text.into(), Cow::Owned)
}

/// A path up to its query, and up to its fragment.
fn without_query(path: &str) -> [&str; 4] {
    let up_to = |delimiters: &[char]| path.split(delimiters).next().unwrap_or(path);
    [path, up_to(&['?']), up_to(&['#']), up_to(&['?', '#'])]
}

/// What the rest of a path may mean as the rest of a key.
fn spellings(rest: &str) -> HashSet<String> {
    let mut found = HashSet::new();
    for cut in without_query(rest) {
        for decoded in decodings(cut) {
            found.extend(without_query(&decoded).map(resolve_segments));
            found.insert(decoded.into_owned());
        }
    }
    found
}

/// Without doubled slashes, `.` and `..`, as a browser or a file system reads it.
fn resolve_segments(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.trim().split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    segments.join("/")
}

fn name_parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(DELIMITERS).flat_map(str::split_whitespace)
}

/// Everything in a path that may be a file's name, in small letters.
fn file_names(path: &str) -> HashSet<String> {
    let mut names = HashSet::new();
    for decoded in decodings(path) {
        let text = decoded.to_lowercase();
        for cut in without_query(&text) {
            let name = cut.trim().trim_end_matches('/').rsplit('/').next();
            names.extend(name.map(ToOwned::to_owned));
        }
        names.extend(name_parts(&text).map(ToOwned::to_owned));
        names.extend(text.split(DELIMITERS).map(|name| name.trim().to_owned()));
    }
    names.remove("");
    names
}

#[cfg(test)]
mod tests {
    use bucket_brigade_common::companions::CompanionPatterns;
    use bucket_brigade_common::path_encoding::PathEncoding;

    use super::*;
    use crate::clean::path_references::PathReference;

    fn urls() -> ColumnRules {
        ColumnRules {
            known_prefixes: vec!["https://old.example/".into(), "https://new.example/".into()],
            references: vec![PathReference {
                path_prefix: "https://old.example/".into(),
                key_prefix: "image/".into(),
                encoding: PathEncoding::None,
                companions: CompanionPatterns::default(),
            }],
        }
    }

    fn spellings_of(path: &str) -> OtherSpellings {
        let mut spellings = OtherSpellings::default();
        spellings.add_path(&urls(), path);
        spellings
    }

    #[test]
    fn rows_under_a_prefix_of_another_bucket_are_not_read() {
        assert_eq!(
            urls().odd_condition("p"),
            r#"(p::text COLLATE "C") <> '' AND (p::text COLLATE "C") NOT LIKE 'https://new.example/%'"#.to_owned()
                + r#" AND ((p::text COLLATE "C") ~ E'[?#%+&\\\\]|\\s|/\\.|[^:]//|^/|\\A\\.' OR (p::text COLLATE "C") NOT LIKE 'https://old.example/%')"#
        );
        let mut rules = urls();
        rules.known_prefixes = vec![String::new(), "https://old.example/".into()];
        assert!(!rules.odd_condition("p").contains("LIKE '%'"));
        rules.known_prefixes = vec!["https://".into(), "https://old.example/u/".into()];
        assert!(
            rules
                .odd_condition("p")
                .ends_with("'https://old.example/u/%')")
        );
    }

    #[test]
    fn a_row_outside_the_rule_may_mean_what_bears_its_name() {
        for path in [
            "http://old.example/u/a b.png",
            "//old.example/u/a%20b.png",
            "HTTPS://OLD.example/u/a%2520b.png",
            "https://OLD.example/u/A+B.PNG?v=2",
            "/u/a b.png#top",
            "u//a b.png",
            "image/u/a b.png",
            "s3://images-old/image/u/a b.png",
            r#"{"file":"u/a b.png","alt":""}"#,
            "https://cdn.example/fetch?path=image%2Fu%2Fa%20b.png&w=3",
            " https://old.example/u/a b.png ",
        ] {
            let spellings = spellings_of(path);
            assert_eq!(spellings.rows_outside, Some(1), "{path}");
            assert!(spellings.may_mean("image/u/a b.png"), "{path}");
            assert!(!spellings.may_mean("image/u/c.png"), "{path}");
        }
    }

    #[test]
    fn html_and_json_spell_names_in_their_own_ways() {
        for (path, name) in [
            ("http://old.example/u/a&amp;b.png", "a&b.png"),
            ("<img src='/u/it&#39;s.png'>", "it's.png"),
            (r#"{"f":"u\/\u00fcn\u00ef.png"}"#, "ünï.png"),
            ("https://old.example/u/a&amp;b.png", "a&b.png"),
        ] {
            let key = format!("image/u/{name}");
            assert!(spellings_of(path).may_mean(&key), "{path}");
        }
    }

    #[test]
    fn delimiters_may_be_part_of_a_name() {
        for name in ["a (1).png", "a[2].png", "o'neil & co, ltd=x;y.png", "a: b"] {
            for path in [
                format!("<img src=\"http://old.example/u/{name}\">"),
                format!("http://old.example/u/{name}?v=2"),
                format!("{{\"one\":\"u/{name}\",\"two\":\"b.png\"}}"),
            ] {
                let spellings = spellings_of(&path);
                assert!(spellings.may_mean(&format!("image/u/{name}")), "{path}");
                assert!(!spellings.may_mean("image/u/a (3).png"), "{path}");
            }
        }
    }

    #[test]
    fn a_row_under_the_prefix_may_mean_the_same_key_spelled_otherwise() {
        for rest in [
            "u/a.png?v=2",
            "u/a.png#top",
            "u//a.png",
            "/u/a.png",
            "u/./a.png",
            "u/x/../a.png",
            "%75/%61.png",
            "u%2Fa.png",
            "u\\a.png",
            "u/a.png ",
            "u/a.png%3Fv=2",
        ] {
            let spellings = spellings_of(&format!("https://old.example/{rest}"));
            assert_eq!(spellings.rows_outside, None, "{rest}");
            assert!(spellings.may_mean("image/u/a.png"), "{rest}");
            assert!(!spellings.may_mean("image/v/a.png"), "{rest}");
        }
    }

    #[test]
    fn a_row_that_names_its_object_means_no_other() {
        let spellings = spellings_of("https://old.example/u/50%25 a+b?.png");
        assert!(!spellings.may_mean("image/u/50%25 a+b?.png"));
        let moved = spellings_of("https://new.example/u/a.png");
        assert_eq!(moved.rows_outside, None);
        assert!(!moved.may_mean("image/u/a.png"));
    }

    #[test]
    fn under_an_empty_prefix_everything_is_a_key_that_looks_like_one() {
        let known = ["image/".to_owned(), String::new()];
        for (path, outside) in [("a.png", false), ("//h/a.png", true), ("http://h/a", true)] {
            assert_eq!(is_outside(path, &known), outside, "{path}");
        }
    }
}
