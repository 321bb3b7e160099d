//! The message on the queue: one row to move, `{"id":"123","path":"image/avatar-123.png"}`.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::path_rule::{MoveRoute, PathRule, RouteError};
use crate::row_id::{IdColumnType, RowId};

/// The largest body a well-formed message can have; anything longer is not parsed at all.
/// A byte takes at most six bytes of JSON; a path has 1,024 of its key and those of a prefix, a text
/// id as many as fit into a B-tree's entry, about 2,700.
const MAX_BODY_BYTES: usize = 32 * 1024;

#[derive(Serialize)]
struct EncodedMessage<'a> {
    id: &'a str,
    path: &'a str,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecodedMessage {
    id: String,
    path: String,
}

/// A message that was understood: the row, and the way of its image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveTask {
    pub id: RowId,
    pub route: MoveRoute,
}

/// Why a message is poison: not one of ours, or not for this migration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoisonReason {
    /// Longer than any message the feeder sends.
    #[error("the body is {0} bytes long, no message of ours is longer than {MAX_BODY_BYTES}")]
    TooLong(usize),
    /// Not JSON, or JSON of another shape.
    #[error("the body is not {{\"id\": text, \"path\": text}}: {0}")]
    MalformedBody(String),
    /// The id cannot be one of the id column's type.
    #[error("the id {0:?} is not a valid {1}")]
    BadId(String, &'static str),
    #[error("the path {0:?} has no route: {1}")]
    BadPath(String, RouteError),
}

pub fn encode(id: &RowId, path: &str) -> Result<String, serde_json::Error> {
    let body = serde_json::to_string(&EncodedMessage {
        id: id.as_str(),
        path,
    })?;
    // JSON may hold these two raw, an SQS message may not (SendMessage: "#xE000 to #xFFFD").
    if !body.contains(['\u{fffe}', '\u{ffff}']) {
        return Ok(body);
    }
    Ok(body
        .replace('\u{fffe}', "\\ufffe")
        .replace('\u{ffff}', "\\uffff"))
}

pub fn decode(
    body: &str,
    id_type: IdColumnType,
    rule: &PathRule,
) -> Result<MoveTask, PoisonReason> {
    if body.len() > MAX_BODY_BYTES {
        return Err(PoisonReason::TooLong(body.len()));
    }
    let incoming: DecodedMessage = serde_json::from_str(body)
        .map_err(|error| PoisonReason::MalformedBody(escape_control_characters(&error)))?;
    let Some(id) = id_type.parse(&incoming.id) else {
        return Err(PoisonReason::BadId(incoming.id, id_type.sql_type()));
    };
    match rule.route_for(&incoming.path) {
        Ok(route) => Ok(MoveTask { id, route }),
        Err(reason) => Err(PoisonReason::BadPath(incoming.path, reason)),
    }
}

/// serde repeats the names it does not know, whatever they hold: a line break would forge a line of
/// the log, and Postgres would refuse to record a NUL.
fn escape_control_characters(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let escape = |c: char| {
        if c.is_control() {
            c.escape_default().to_string()
        } else {
            c.into()
        }
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rule() -> PathRule {
        PathRule::new("image/", "avatar/", None, None).unwrap()
    }

    fn read(body: &str) -> Result<MoveTask, PoisonReason> {
        decode(body, IdColumnType::Bigint, &rule())
    }

    #[test]
    fn the_body_is_the_documented_one() {
        let id = RowId::from_database("123".into());
        assert_eq!(
            encode(&id, "image/avatar-123.png").unwrap(),
            r#"{"id":"123","path":"image/avatar-123.png"}"#
        );
    }

    #[test]
    fn anything_else_is_poison() {
        for body in [
            "",
            "null",
            "hello",
            "[]",
            "{}",
            r#"{"id":"1"}"#,
            r#"{"id":1,"path":"image/a"}"#,
            r#"{"id":"1","path":null}"#,
            r#"{"id":"1","path":"image/a","more":1}"#,
            r#"{"id":"1","path":"image/a"} trailing"#,
        ] {
            assert!(
                matches!(read(body), Err(PoisonReason::MalformedBody(_))),
                "{body}"
            );
        }
        assert!(matches!(
            read(r#"{"id":"one","path":"image/a"}"#),
            Err(PoisonReason::BadId(..))
        ));
        assert!(matches!(
            read(r#"{"id":"1","path":"secret/a"}"#),
            Err(PoisonReason::BadPath(..))
        ));
        assert!(matches!(
            read(r#"{"id":"1","path":"image/\u0000"}"#),
            Err(PoisonReason::BadPath(..))
        ));
        assert_eq!(
            read(&"x".repeat(200 * 1024)),
            Err(PoisonReason::TooLong(204_800))
        );
    }

    #[test]
    fn a_reason_holds_no_control_character() {
        let Err(PoisonReason::MalformedBody(reason)) = read(r#"{"a\n\u0000b":1}"#) else {
            panic!("an unknown name is poison");
        };
        assert!(reason.contains(r"unknown field `a\n\u{0}b`"), "{reason}");
    }

    #[test]
    fn the_longest_id_and_path_fit() {
        let id = RowId::from_database("\u{1}".repeat(2704));
        let body = encode(&id, &format!("image/{}", "\u{1}".repeat(1017))).unwrap();
        assert_eq!(decode(&body, IdColumnType::Text, &rule()).unwrap().id, id);
    }

    proptest! {
        #[test]
        fn round_trip(id in any::<i64>(), rest in "\\PC{0,60}|[\u{1}-\u{ffff}]{0,20}") {
            let id = RowId::from_database(id.to_string());
            let body = encode(&id, &format!("image/{rest}")).unwrap();
            // What SendMessage accepts in a body.
            let sendable = |c| matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..);
            prop_assert!(body.chars().all(sendable), "{}", body);
            let task = read(&body).unwrap();
            prop_assert_eq!(task.id, id);
            prop_assert_eq!(task.route.new_path, format!("avatar/{rest}"));
        }

        #[test]
        fn no_body_panics_or_leaves_the_rule(body in any::<String>()) {
            if let Ok(task) = read(&body) {
                prop_assert!(task.route.old_path.starts_with("image/"));
                prop_assert!(task.route.destination_key.starts_with("avatar/"));
            }
        }
    }
}
