//! `.env`, which feeder and consumer read alike: what it cannot be read for, and names in it that are misspelt.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::Path;

use strsim::osa_distance;

/// Every setting, of both programs: a test holds them to this.
const SAMPLES: [&str; 2] = [
    include_str!("../../../../feeder/env.sample"),
    include_str!("../../../../consumer/env.sample"),
];

/// Nearly settings, but others': of `docker-compose.yml`, and of the SDK for each service.
const OTHERS: [&str; 2] = ["STATUS_PORT", "AWS_ENDPOINT_URL"];

const MAX_TYPOS: usize = 2;

/// Sets what the file of the working directory has, and the environment has not. Returns a warning for each name that
/// is nearly a setting. One of a folder above is another project's, and a folder of that name is none.
pub fn read_dotenv() -> anyhow::Result<Vec<String>> {
    let file = Path::new(".env");
    let mut text = match std::fs::read(file) {
        Err(_) if file.is_dir() => {
            return Ok(vec![".env is a directory: no setting is read of it".into()]);
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(vec![]),
        text => text.map_err(|error| anyhow::anyhow!(".env: {error}"))?,
    };
    // No variable can hold one: to set it would be a panic that prints the value.
    if text.contains(&0) {
        anyhow::bail!(".env: a NUL byte is in it: save it as UTF-8 text");
    }
    // Spaces after a last line without an end would be an error.
    text.push(b'\n');
    dotenvy::from_read(&*text)
        .map_err(|error| anyhow::anyhow!(".env: {}", describe_error(&error, &text)))?;
    let misspelt = misspelt_names(&text).into_iter();
    let misspelt = misspelt
        .map(|(name, known)| format!(".env: {name} is not a setting; did you mean {known}?"));
    let repeated = repeated_names(&text).into_iter();
    let repeated =
        repeated.map(|name| format!(".env: {name} is there more than once: the first one counts"));
    Ok(misspelt.chain(repeated).collect())
}

/// Those with another value each time.
fn repeated_names(text: &[u8]) -> BTreeSet<String> {
    let mut first = BTreeMap::new();
    let lines = dotenvy::from_read_iter(text).flatten();
    let repeated = lines.filter(|(name, value)| {
        let known: &mut String = first.entry(name.clone()).or_insert_with(|| value.clone());
        known != value
    });
    repeated.map(|(name, _)| name).collect()
}

/// Why it cannot be read, without the error's own text: a part of the line, or of its value, which may be a password.
fn describe_error(error: &dotenvy::Error, text: &[u8]) -> String {
    if !matches!(error, dotenvy::Error::LineParse(..)) {
        return error.to_string();
    }
    let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
    let can_be_read = |count: &usize| {
        let text = lines[..*count].concat();
        dotenvy::from_read_iter(&*text).all(|line| line.is_ok())
    };
    // A value may have several lines: it begins after the last line up to which all can be read.
    let before = (0..lines.len()).rev().find(can_be_read).unwrap_or(0);
    let name = lines.get(before).and_then(|line| name_of(line));
    let name = name.map_or_else(String::new, |name| format!(" ({name})"));
    format!(
        "line {}{name} cannot be read: enclose the value in ' where it holds a space, # or $, and close every quote",
        before + 1
    )
}

/// What stands before the first `=`, if that can be a variable's name.
fn name_of(line: &[u8]) -> Option<&str> {
    let (name, _) = str::from_utf8(line).ok()?.split_once('=')?;
    let name = name.trim().trim_start_matches("export ").trim_start();
    let is_part = |c: char| c == '_' || c.is_ascii_alphanumeric();
    let is_name = name.chars().all(is_part) && !name.starts_with(|c: char| c.is_ascii_digit());
    (is_name && !name.is_empty()).then_some(name)
}

/// A variable of the environment that is most likely this setting's, misspelt.
pub(super) fn misspelt_variable(setting: &str) -> Option<String> {
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let mut misspelt = variables.filter(|name| nearest_setting(name) == Some(setting));
    misspelt.next()
}

fn known_names() -> impl Iterator<Item = &'static str> {
    let lines = SAMPLES.iter().flat_map(|sample| sample.lines());
    let names = lines.filter_map(|line| Some(line.trim_start_matches('#').split_once('=')?.0));
    names.filter(|name| !name.contains(|c: char| c.is_ascii_lowercase() || c == ' '))
}

/// With the setting that each is nearest to.
fn misspelt_names(text: &[u8]) -> BTreeMap<String, &'static str> {
    let names = dotenvy::from_read_iter(text)
        .flatten()
        .map(|(name, _)| name);
    let with_nearest = |name: String| nearest_setting(&name).map(|known| (name, known));
    names.filter_map(with_nearest).collect()
}

/// None for a setting, and for a name that is near to none.
fn nearest_setting(name: &str) -> Option<&'static str> {
    if known_names().any(|known| known == name) || OTHERS.iter().any(|of| name.starts_with(of)) {
        return None;
    }
    let upper = name.to_ascii_uppercase();
    let typos = known_names().filter_map(|known| Some((count_typos(&upper, known)?, known)));
    let (typos, known) = typos.min()?;
    // Of a short name a few other letters make another word.
    (typos <= MAX_TYPOS.min(known.len() / 4)).then_some(known)
}

/// None where a whole word is another.
fn count_typos(name: &str, known: &str) -> Option<usize> {
    let typos = osa_distance(name, known);
    let (words, of_known) = (name.split('_'), known.split('_'));
    let are_words = words.clone().count() == of_known.clone().count()
        && words
            .zip(of_known)
            .all(|(word, known)| osa_distance(word, known) <= 1);
    (typos <= 1 || are_words).then_some(typos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nearly_a_setting_is_misspelt() {
        for (name, known) in [
            ("OLD_PREFX", "OLD_PREFIX"),
            ("OLD_PERFIX", "OLD_PREFIX"),
            ("old_prefix", "OLD_PREFIX"),
            ("DESTINATION_BUKET_NAM", "DESTINATION_BUCKET_NAME"),
            ("MAX_CONCURENCY", "MAX_CONCURRENCY"),
            ("DATABASE_URI", "DATABASE_URL"),
            ("S3_FORCE_PATHSTYLE", "S3_FORCE_PATH_STYLE"),
        ] {
            let found = misspelt_names(format!("{name}=x\nexport {name}='y'\n").as_bytes());
            assert_eq!(found, [(name.to_owned(), known)].into(), "{name}");
        }
    }

    #[test]
    fn a_name_with_two_values_is_named() {
        let text = b"A=1\nB=1\nexport A='2'\nB=1\n";
        assert_eq!(repeated_names(text), ["A".to_owned()].into());
    }

    #[test]
    fn a_line_that_cannot_be_read_is_named_without_its_value() {
        for (lines, named) in [
            (
                "DATABASE_URL=postgres://u:pa ss@h/d?sslmode=x",
                "line 3 (DATABASE_URL)",
            ),
            (
                "export DATABASE_URL=postgres://u:pa ss@h/d",
                "line 3 (DATABASE_URL)",
            ),
            (
                "DATABASE_URL='postgres://u:pa\nss@h/d",
                "line 3 (DATABASE_URL)",
            ),
            ("B='one\ntwo'\nC=postgres://u:pa ss@h/d", "line 5 (C)"),
            ("postgres://u:pa ss@h/d?sslmode=x", "line 3"),
            ("pa ss", "line 3"),
        ] {
            let text = format!("# Comment\nA=1\n{lines}\nZ=2\n");
            let mut found = dotenvy::from_read_iter(text.as_bytes());
            let error = found.find_map(Result::err).unwrap();
            let message = describe_error(&error, text.as_bytes());
            assert!(message.starts_with(&format!("{named} cannot")), "{message}");
            for secret in ["pa ", "ss@", "postgres", "sslmode"] {
                assert!(!message.contains(secret), "{message}");
            }
        }
    }

    #[test]
    fn settings_of_either_program_and_names_of_others_are_not() {
        let samples = SAMPLES.concat().replace("\n#", "\n");
        for name in known_names() {
            assert!(samples.contains(&format!("\n{name}=")), "{name}");
        }
        for name in known_names().chain([
            "PATH",
            "SEED",
            "SSE2",
            "IMAGES",
            "S3_PORT",
            "STATUS_PORT",
            "FEEDER_OPTIONS",
            "PGSSLCERT",
            "AWS_ENDPOINT_URL",
            "AWS_ENDPOINT_URL_SQS",
            "AWS_ROLE_ARN",
            "SECRET_KEY_BASE",
            "NODE_ENV",
            "KEY_PREFIX",
            "IMAGE_SIZE",
            "DATABASE_PATH",
            "SQS_REGION",
            "RUN_DATE",
        ]) {
            assert_eq!(misspelt_names(format!("{name}=x\n").as_bytes()), [].into());
        }
    }
}
