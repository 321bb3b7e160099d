//! The message on the queue: one row of one run to move, `{"run":1,"id":"123","path":"image/avatar-123.png"}`, where
//! the run is a [`RunKey`]. Once a rollback or a clean has raised the run's fence, it is named too.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::path_rule::{MoveRoute, PathRule, RouteError};
use crate::printable::printable;
use crate::row_id::{IdType, RowId};

/// The largest body a well-formed message can have; anything longer is not parsed at all.
/// A byte takes at most six bytes of JSON; a path has 1,024 of its key, or 4,096 where it is a URL, and those of a
/// prefix, a text id as many as fit into a B-tree's entry, about 2,700.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What names a run on a queue that several ledgers may share: its number in the ledger in the lower 20 bits, and above
/// them the lower 32 of the moment when it was opened. Feeders of 0.2 sent the number alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunKey(i64);

const NUMBER_BITS: u32 = 20;

impl RunKey {
    /// `opened_at`: in microseconds.
    pub fn new(number: i64, opened_at: i64) -> Self {
        let moment = opened_at & i64::from(u32::MAX);
        Self(moment << NUMBER_BITS | number)
    }

    pub fn number(self) -> i64 {
        match self.moment() {
            1.. => self.0 & ((1 << NUMBER_BITS) - 1),
            _ => self.0,
        }
    }

    /// Zero where it is not known.
    fn moment(self) -> i64 {
        self.0 >> NUMBER_BITS
    }

    /// Whether both may be the same run.
    fn may_be(self, other: Self) -> bool {
        let moments = [self.moment(), other.moment()];
        let is_moment_known = moments.iter().all(|moment| *moment > 0);
        self.number() == other.number() && (!is_moment_known || moments[0] == moments[1])
    }
}

/// A run by its number alone.
impl From<i64> for RunKey {
    fn from(number: i64) -> Self {
        Self(number)
    }
}

/// What a feeder writes into each of its messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageOrigin {
    pub run: RunKey,
    /// The run's when the feeder took its lock.
    pub fence: i64,
}

impl<T: Into<RunKey>> From<T> for MessageOrigin {
    fn from(run: T) -> Self {
        let run = run.into();
        Self { run, fence: 0 }
    }
}

#[derive(Serialize)]
struct EncodedMessage<'a> {
    run: RunKey,
    #[serde(skip_serializing_if = "is_zero")]
    fence: i64,
    id: &'a str,
    path: &'a str,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(fence: &i64) -> bool {
    *fence == 0
}

/// A message of any run, whose rule is not known yet.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ParsedMessage {
    /// Feeders of earlier versions named none.
    pub run: Option<RunKey>,
    #[serde(default)]
    pub fence: i64,
    pub id: String,
    pub path: String,
}

/// A message that was understood: the row, and the way of its image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MoveTask {
    pub id: RowId,
    pub route: MoveRoute,
    /// The run's when it was fed; once that is higher, the message counts no more.
    pub fence: i64,
}

/// Why a message names no row of the run.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DecodeError {
    #[error("the message is of run {0}")]
    OtherRun(i64),
    /// Made anew, or another database's that shares the queue.
    #[error("the message is of run {0} of another ledger")]
    OtherLedger(i64),
    #[error(transparent)]
    Poison(#[from] PoisonReason),
}

/// Why a message is poison: not one of ours, or not for this migration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PoisonReason {
    /// Longer than any message the feeder sends.
    #[error("the body is {0} bytes long, no message of ours is longer than {MAX_BODY_BYTES}")]
    TooLong(usize),
    /// Not JSON, or JSON of another shape.
    #[error("the body is not {{\"run\": number, \"id\": text, \"path\": text}}: {0}")]
    MalformedBody(String),
    /// The id cannot be one of the id column's type.
    #[error("the id {0:?} is not a valid {1}")]
    BadId(String, IdType),
    #[error("the path {0:?} has no route: {1}")]
    BadPath(String, RouteError),
}

pub fn encode(
    origin: impl Into<MessageOrigin>,
    id: &RowId,
    path: &str,
) -> Result<String, serde_json::Error> {
    let MessageOrigin { run, fence } = origin.into();
    let body = serde_json::to_string(&EncodedMessage {
        run,
        fence,
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

/// The run that a message names, whatever else it holds.
fn named_key(body: &str) -> Option<RunKey> {
    #[derive(Deserialize)]
    struct NamedRun {
        run: Option<RunKey>,
    }
    if body.len() > MAX_BODY_BYTES {
        return None;
    }
    serde_json::from_str::<NamedRun>(body).ok()?.run
}

/// The number of the run that a message names.
pub fn named_run(body: &str) -> Option<i64> {
    named_key(body).map(RunKey::number)
}

/// Whether a message names this run.
pub fn names_run(body: &str, run: RunKey) -> bool {
    named_key(body).is_some_and(|named| named.may_be(run))
}

/// Reads a message of the run with this key, type of id and rule.
pub fn decode(
    body: &str,
    run: impl Into<RunKey>,
    id_type: impl Into<IdType>,
    rule: &PathRule,
) -> Result<MoveTask, DecodeError> {
    parse(body)?.to_task(run.into(), id_type, rule)
}

pub fn parse(body: &str) -> Result<ParsedMessage, PoisonReason> {
    if body.len() > MAX_BODY_BYTES {
        return Err(PoisonReason::TooLong(body.len()));
    }
    // serde repeats the names it does not know, whatever they hold: a line break would forge a line of
    // the log, and Postgres would refuse to record a NUL.
    let malformed = |error: serde_json::Error| printable(&error.to_string()).to_string();
    serde_json::from_str(body).map_err(|error| PoisonReason::MalformedBody(malformed(error)))
}

impl ParsedMessage {
    /// By the rule of the run with this key.
    pub fn to_task(
        &self,
        run: RunKey,
        id_type: impl Into<IdType>,
        rule: &PathRule,
    ) -> Result<MoveTask, DecodeError> {
        if let Some(other) = self.run.filter(|named| !named.may_be(run)) {
            let number = other.number();
            return Err(if number == run.number() {
                DecodeError::OtherLedger(number)
            } else {
                DecodeError::OtherRun(number)
            });
        }
        let id_type = id_type.into();
        let Some(id) = id_type.parse(&self.id) else {
            return Err(PoisonReason::BadId(self.id.clone(), id_type).into());
        };
        match rule.route_for(&self.path) {
            Ok(route) => Ok(MoveTask {
                id,
                route,
                fence: self.fence,
            }),
            Err(reason) => Err(PoisonReason::BadPath(self.path.clone(), reason).into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row_id::IdColumnType;
    use proptest::prelude::*;

    fn rule() -> PathRule {
        PathRule::new("image/", "avatar/", None, None).unwrap()
    }

    const RUN: i64 = 7;

    fn read(body: &str) -> Result<MoveTask, DecodeError> {
        decode(body, RUN, IdColumnType::Integer, &rule())
    }

    fn poison(body: &str) -> PoisonReason {
        match read(body) {
            Err(DecodeError::Poison(reason)) => reason,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn the_body_is_the_documented_one() {
        let id = RowId::from_database("123".into());
        assert_eq!(
            encode(RUN, &id, "image/avatar-123.png").unwrap(),
            r#"{"run":7,"id":"123","path":"image/avatar-123.png"}"#
        );
        let fenced = MessageOrigin {
            run: RUN.into(),
            fence: 2,
        };
        let body = encode(fenced, &id, "image/a").unwrap();
        assert_eq!(body, r#"{"run":7,"fence":2,"id":"123","path":"image/a"}"#);
        assert_eq!(read(&body).unwrap().fence, 2);
    }

    #[test]
    fn a_message_of_another_run_is_no_poison() {
        let body = r#"{"run":8,"id":"not of our type","path":"outside/our/rule"}"#;
        assert_eq!(read(body), Err(DecodeError::OtherRun(8)));
        assert_eq!(named_run(body), Some(8));
        assert_eq!(named_run("poison"), None);
        let without = r#"{"id":"123","path":"image/avatar-123.png"}"#;
        assert_eq!(named_run(without), None);
        assert!(read(without).is_ok(), "of an earlier version");
    }

    #[test]
    fn a_key_tells_runs_of_two_ledgers_apart() {
        let opened = |at| RunKey::new(RUN, at);
        let (ours, theirs) = (opened(1_764_374_400_000_001), opened(1_764_374_400_000_002));
        let id = RowId::from_database("123".into());
        let body = encode(ours, &id, "image/a").unwrap();
        let read = |run: RunKey| decode(&body, run, IdColumnType::Integer, &rule());
        assert!(read(ours).is_ok() && read(RUN.into()).is_ok());
        assert_eq!(read(theirs), Err(DecodeError::OtherLedger(RUN)));
        assert_eq!(
            read(RunKey::new(8, 1_764_374_400_000_001)),
            Err(DecodeError::OtherRun(RUN))
        );
        assert_eq!(named_run(&body), Some(RUN));
        assert!(names_run(&body, ours) && !names_run(&body, theirs));
        let of_earlier_version = encode(RUN, &id, "image/a").unwrap();
        assert!(names_run(&of_earlier_version, ours));
    }

    proptest! {
        #[test]
        fn a_key_keeps_its_number_and_every_json_reader_its_digits(
            number in 1i64..1 << NUMBER_BITS,
            opened_at: i64,
        ) {
            let key = RunKey::new(number, opened_at);
            prop_assert_eq!(key.number(), number);
            prop_assert!(key.0 > 0 && key.0 < 1 << 53);
        }

        #[test]
        fn any_number_names_itself_or_nothing_that_we_count(number: i64) {
            let key = RunKey(number);
            prop_assert!(key.number() == number || (0..1 << NUMBER_BITS).contains(&key.number()));
        }
    }

    #[test]
    fn anything_else_is_poison() {
        let malformed = r#"|null|hello|[]|{}|{"id":"1"}|{"id":1,"path":"image/a"}|{"run":"7","id":"1","path":"image/a"}|{"run":7.5,"id":"1","path":"image/a"}|{"id":"1","path":null}|{"id":"1","path":"image/a","more":1}|{"id":"1","path":"image/a"} trailing"#;
        for body in malformed.split('|') {
            let reason = poison(body);
            assert!(matches!(reason, PoisonReason::MalformedBody(_)), "{body}");
        }
        let reason = poison(r#"{"id":"one","path":"image/a"}"#);
        assert!(matches!(reason, PoisonReason::BadId(..)));
        for path in ["secret/a", r"image/\u0000"] {
            let reason = poison(&format!(r#"{{"id":"1","path":"{path}"}}"#));
            assert!(matches!(reason, PoisonReason::BadPath(..)), "{path}");
        }
        assert_eq!(
            poison(&"x".repeat(200 * 1024)),
            PoisonReason::TooLong(204_800)
        );
    }

    #[test]
    fn a_reason_holds_no_control_character() {
        let PoisonReason::MalformedBody(reason) = poison(r#"{"a\n\u0000b":1}"#) else {
            panic!("an unknown name is poison");
        };
        assert!(reason.contains(r"unknown field `a\n\u{0}b`"), "{reason}");
    }

    #[test]
    fn the_longest_id_and_path_fit() {
        let id = RowId::from_database("\u{1}".repeat(2704));
        let body = encode(RUN, &id, &format!("image/{}", "\u{1}".repeat(1017))).unwrap();
        let task = decode(&body, RUN, IdColumnType::Text, &rule()).unwrap();
        assert_eq!(task.id, id);
    }
}
