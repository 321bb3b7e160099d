//! Settings, `NAME=value` one to a line, given to the feeder and the consumer as flags.
//!
//! The first of each name counts. Names that are no setting are left out: which flags there are is
//! `--help`'s business, what their values may do is ours.

use std::collections::BTreeMap;

use bucket_brigade_common::settings::SettingsError;
use clap::Parser;

/// A password in every corpus entry's `DATABASE_URL`, and in `PGPASSWORD` where `script/fuzz` or
/// the caller sets it: it must never be printed.
pub const MARKER: &str = "x7Marker7x";

type SettingValues = BTreeMap<&'static str, String>;

/// What a consumer requires of these; the ledger has the rest.
const CONSUMER_REQUIRED: [&str; 2] = ["DATABASE_URL", "QUEUE_URL"];

/// What the feeder requires, valid.
const REQUIRED_SETTINGS: [(&str, &str); 7] = [
    ("DATABASE_URL", "postgres://app:x7Marker7x@db/app"),
    ("IMAGES_TABLE", "images"),
    (
        "QUEUE_URL",
        "https://sqs.eu-central-1.amazonaws.com/123456789012/images",
    ),
    ("SOURCE_BUCKET_NAME", "old-images"),
    ("DESTINATION_BUCKET_NAME", "new-images"),
    ("OLD_PREFIX", "image/"),
    ("NEW_PREFIX", "avatar/"),
];

const OPTIONAL_SETTINGS: [&str; 11] = [
    "ID_COLUMN",
    "PATH_COLUMN",
    "ROW_FILTER",
    "SOURCE_KEY_PREFIX",
    "DESTINATION_KEY_PREFIX",
    "S3_FORCE_PATH_STYLE",
    "MAX_COMMIT_LATENCY",
    "MAX_REPLICA_LAG",
    "METRICS_ADDR",
    "LOG_FORMAT",
    "RUST_LOG",
];

const FEEDER_SETTINGS: [&str; 4] = [
    "PAGE_SIZE",
    "MAX_BACKLOG",
    "WATCH_INTERVAL",
    "FULL_SWEEP_INTERVAL",
];

const CONSUMER_SETTINGS: [&str; 8] = [
    "MAX_CONCURRENCY",
    "VISIBILITY_TIMEOUT",
    "SHUTDOWN_GRACE",
    "STORAGE_CLASS",
    "CONDITIONAL_COPY",
    "SOURCE_REGION",
    "COPY_TIMEOUT",
    "CONSUMER_NAME",
];

/// These are checked together: one of them can be at fault only beside another.
const JOINTLY_CHECKED_SETTINGS: [&str; 8] = [
    "OLD_PREFIX",
    "NEW_PREFIX",
    "SOURCE_KEY_PREFIX",
    "DESTINATION_KEY_PREFIX",
    "SOURCE_BUCKET_NAME",
    "DESTINATION_BUCKET_NAME",
    "ID_COLUMN",
    "PATH_COLUMN",
];

/// Checks one set of settings, each setting by itself too.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    check_feeder(&text, None);
    check_consumer(&text, None);
}

/// Checks them for one of the programs, and one setting by itself: the flags are parsed twice and not
/// forty times.
pub fn sample(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let dice = input.iter().fold(0, |sum: usize, byte| {
        sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
    });
    if dice.is_multiple_of(2) {
        check_feeder(&text, Some(dice / 2));
    } else {
        check_consumer(&text, Some(dice / 2));
    }
}

fn check_feeder(text: &str, only: Option<usize>) {
    let required = REQUIRED_SETTINGS.map(|(name, _)| name);
    check_program(
        text,
        &[&required, &OPTIONAL_SETTINGS, &FEEDER_SETTINGS],
        &required,
        only,
        |flags| {
            let args = bucket_brigade_feeder::settings::Args::try_parse_from(flags)
                .map_err(|error| error.to_string())?;
            assert_no_secret(&format!("{args:?}"));
            Ok(args.parse_settings().map(drop))
        },
    );
}

fn check_consumer(text: &str, only: Option<usize>) {
    let required = REQUIRED_SETTINGS.map(|(name, _)| name);
    check_program(
        text,
        &[&required, &OPTIONAL_SETTINGS, &CONSUMER_SETTINGS],
        &CONSUMER_REQUIRED,
        only,
        |flags| {
            let args = bucket_brigade_consumer::settings::Args::try_parse_from(flags)
                .map_err(|error| error.to_string())?;
            assert_no_secret(&format!("{args:?}"));
            Ok(args.parse_settings().map(drop))
        },
    );
}

/// clap's error about flags that cannot be read at all.
type FlagError = String;

fn assert_no_secret(text: &str) {
    assert!(!text.contains(MARKER), "the password is printed: {text}");
}

fn check_program(
    text: &str,
    names: &[&[&'static str]],
    required: &[&str],
    only: Option<usize>,
    parse: impl Fn(Vec<String>) -> Result<Result<(), SettingsError>, FlagError>,
) {
    let check = |values: &SettingValues| settings_error(values, &parse);
    let given = values_in(text, names);
    let complaint = check(&given).unwrap_or_default();
    for (number, (name, value)) in given.iter().enumerate() {
        if only.is_some_and(|only| only % given.len() != number) {
            continue;
        }
        // What is wrong by itself is reported by its name whatever else is wrong.
        let mut alone = valid_values();
        alone.insert(name, value.clone());
        if let Some(single) = check(&alone) {
            assert!(single.contains(name), "{name} is not named by: {single}");
            // Empty is missing, which only the required ones must not be.
            let may_be_empty = !required.contains(name) && value.trim().is_empty();
            let stays = !JOINTLY_CHECKED_SETTINGS.contains(name) && !may_be_empty;
            assert!(
                !stays || complaint.contains(name),
                "{name} is missing in: {complaint}"
            );
        }
    }
    for name in required {
        assert!(
            given.contains_key(name) || complaint.contains(name),
            "{name} is not missed: {complaint}"
        );
    }
}

/// Why the program refuses these settings; none when it takes them.
fn settings_error(
    values: &SettingValues,
    parse: &impl Fn(Vec<String>) -> Result<Result<(), SettingsError>, FlagError>,
) -> Option<String> {
    let flags = values.iter().map(|(name, value)| {
        let flag = name.to_lowercase().replace('_', "-");
        format!("--{flag}={value}")
    });
    let flags = std::iter::once("program".to_owned()).chain(flags).collect();
    let complaint = match parse(flags) {
        Err(unread) => panic!("clap does not read text: {unread}"),
        Ok(Ok(())) => return None,
        Ok(Err(error)) => {
            assert_no_secret(&format!("{error:?}"));
            error.to_string()
        }
    };
    assert_no_secret(&complaint);
    Some(complaint)
}

fn valid_values() -> SettingValues {
    REQUIRED_SETTINGS
        .map(|(name, value)| (name, value.to_owned()))
        .into()
}

fn values_in(text: &str, names: &[&[&'static str]]) -> SettingValues {
    let mut values = SettingValues::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let known = names.concat().into_iter().find(|known| *known == name);
        // A marker elsewhere is no secret: other settings are reported with their values.
        let is_free = name == "DATABASE_URL" || !value.contains(MARKER);
        if let Some(known) = known.filter(|_| is_free) {
            values.entry(known).or_insert_with(|| value.to_owned());
        }
    }
    values
}
