//! A message's body, read for every type of id and under several rules.

use bucket_brigade_common::message::{
    DecodeError, MessageOrigin, MoveTask, PoisonReason, decode, encode,
};
use bucket_brigade_common::object_store::s3::copy_source;
use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::row_id::{IdColumnType, IdType};
use percent_encoding::percent_decode_str;

use crate::path_rule::check_route;

const RUN: i64 = 1;

const ID_TYPES: [IdColumnType; 7] = [
    IdColumnType::Integer,
    IdColumnType::Uuid,
    IdColumnType::Text,
    IdColumnType::Character,
    IdColumnType::Date,
    IdColumnType::Timestamp,
    IdColumnType::TimestampTz,
];

/// The plain rule, whole URLs onto bare keys, a prefix stripped, and wildcards of `LIKE`.
const RULES: [(&str, &str, Option<&str>, Option<&str>); 4] = [
    ("image/", "avatar/", None, None),
    (
        "https://old.example/",
        "https://new.example/",
        Some(""),
        Some(""),
    ),
    ("image/", "", None, Some("a/")),
    ("im_g%/", "avatar/", None, None),
];

/// Checks one body.
pub fn check(input: &[u8]) {
    let body = String::from_utf8_lossy(input);
    for (old, new, source, destination) in RULES {
        let (source, destination) = (source.map(Into::into), destination.map(Into::into));
        let Ok(rule) = PathRule::new(old, new, source, destination) else {
            panic!("the rule {old} to {new} is refused");
        };
        let composite = IdType::from_columns(&ID_TYPES[1..]);
        let id_types = || ID_TYPES.map(IdType::from).into_iter().chain(composite);
        for encoding in PathEncoding::ALL {
            let rule = rule.clone().with_encoding(encoding);
            for id_type in id_types() {
                match decode(&body, RUN, id_type, &rule) {
                    Ok(task) => check_task(&task, id_type, &rule),
                    Err(DecodeError::OtherRun(run) | DecodeError::OtherLedger(run)) => {
                        assert_ne!(run, RUN);
                    }
                    Err(DecodeError::Poison(poison)) => check_poison(&poison, &body),
                }
            }
        }
    }
}

fn check_task(task: &MoveTask, id_type: IdType, rule: &PathRule) {
    check_route(rule, &task.route.old_path, &task.route);
    check_id(task.id.as_str(), id_type);
    assert_eq!(
        id_type.parse(task.id.as_str()).as_ref(),
        Some(&task.id),
        "not canonical"
    );
    check_copy_source(&task.route.source_key);
    let origin = MessageOrigin {
        fence: task.fence,
        ..RUN.into()
    };
    let Ok(body) = encode(origin, &task.id, &task.route.old_path) else {
        panic!("{task:?} cannot be encoded");
    };
    assert!(body.chars().all(is_sendable), "SQS would refuse {body:?}");
    match decode(&body, RUN, id_type, rule) {
        Ok(again) => assert_eq!(again, *task),
        // Escaped, a body may be longer than the one it was read from.
        Err(error) => {
            let too_long = DecodeError::Poison(PoisonReason::TooLong(body.len()));
            assert_eq!(error, too_long);
        }
    }
}

/// Nothing but the id's own type ever reaches a statement.
fn check_id(id: &str, id_type: IdType) {
    if let [column] = id_type.columns() {
        return check_column(id, *column);
    }
    assert!(
        id.starts_with('[') && id.ends_with(']'),
        "{id:?} is no array"
    );
}

fn check_column(id: &str, id_type: IdColumnType) {
    let valid = match id_type {
        IdColumnType::Integer => id.parse::<i64>().is_ok(),
        IdColumnType::Uuid => {
            id.len() == 36
                && id
                    .bytes()
                    .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'))
        }
        IdColumnType::Date | IdColumnType::Timestamp | IdColumnType::TimestampTz => {
            id.ends_with("infinity") || id.starts_with(|first: char| first.is_ascii_digit())
        }
        IdColumnType::Text => !id.contains('\0'),
        IdColumnType::Character => !id.contains('\0') && !id.ends_with(' '),
    };
    assert!(valid, "{id:?} as {id_type:?}");
}

/// The header names the key's own object and no other, whatever is in the key.
fn check_copy_source(key: &str) {
    let source = copy_source("bucket", key);
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~/%".contains(&b);
    assert!(source.bytes().all(plain), "{source}");
    let named = source
        .strip_prefix("bucket/")
        .map(|key| percent_decode_str(key).decode_utf8());
    assert!(matches!(named, Some(Ok(named)) if named == key), "{source}");
}

/// What `SendMessage` accepts in a body.
fn is_sendable(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// A reason is short enough for a log line, and says why.
fn check_poison(poison: &PoisonReason, body: &str) {
    let reason = poison.to_string();
    assert!(
        !reason.is_empty() && !reason.contains(['\n', '\0']),
        "{reason:?}"
    );
    if let PoisonReason::TooLong(length) = poison {
        assert_eq!(*length, body.len());
    }
}
