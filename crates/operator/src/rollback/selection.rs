//! Which moves are to be undone, as an operator says it.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use bucket_brigade_common::printable::counted;
use bucket_brigade_common::row_id::{IdColumnType, IdType};
use bucket_brigade_common::settings::{Setting, SettingsError, SettingsProblems, setting};

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(super) struct SelectionArgs {
    /// The rows with these ids
    #[arg(long, value_name = "ID", num_args = 1.., allow_negative_numbers = true)]
    ids: Option<Vec<String>>,
    /// The rows moved since then: a time such as 2026-03-01T14:00:00Z, or how long ago, such as 2h
    #[arg(long, value_name = "TIME", value_parser = setting(parse_since))]
    since: Option<Setting<MoveSelection>>,
    /// All rows
    #[arg(long)]
    all: bool,
}

#[derive(Debug, Clone, PartialEq, Default)]
pub(super) enum MoveSelection {
    #[default]
    All,
    Since(SystemTime),
    /// Those made within this time until now, by the database's clock.
    Within(Duration),
    /// Those of these rows.
    Ids(Vec<String>),
}

impl MoveSelection {
    /// Reads the ids as the database spells them, or says what is not an id of this type.
    pub(super) fn parse_ids(self, id_type: IdType) -> Result<Self, SettingsError> {
        let Self::Ids(given) = self else {
            return Ok(self);
        };
        let mut problems = SettingsProblems::default();
        let mut ids = Vec::new();
        for text in given.iter().flat_map(|text| split_ids(text, id_type)) {
            match id_type.parse(text) {
                Some(id) => ids.push(id.as_str().to_owned()),
                None => problems.add("--ids", format!("'{text}' is not an id of type {id_type}")),
            }
        }
        problems.finish(Some(Self::Ids(ids)))
    }

    pub(super) fn ids(&self) -> &[String] {
        match self {
            Self::Ids(ids) => ids,
            _ => &[],
        }
    }

    pub(super) fn describe(&self) -> String {
        match self {
            Self::All => "of all".into(),
            Self::Since(time) => format!("since {}", humantime::format_rfc3339_seconds(*time)),
            Self::Within(time) => format!("of the last {}", humantime::format_duration(*time)),
            Self::Ids(ids) => format!("of {}", counted(ids.len(), "row", "rows")),
        }
    }
}

impl SelectionArgs {
    /// The ids are not yet measured against the column's type.
    pub(super) fn parse(self, problems: &mut SettingsProblems) -> MoveSelection {
        let since = self.since.map(|since| since.take(problems));
        let ids = self.ids.map(MoveSelection::Ids);
        ids.or(since).unwrap_or_default()
    }
}

/// A comma may be part of an id that is text, and is of one of several columns.
fn split_ids(text: &str, id_type: IdType) -> Vec<&str> {
    match id_type.columns() {
        [IdColumnType::Text | IdColumnType::Character] | [_, _, ..] => vec![text],
        _ => text.split(',').filter(|part| !part.is_empty()).collect(),
    }
}

/// Timestamps of Postgres reach no further back than some thousand years.
const LONGEST_AGO: Duration = Duration::from_hours(24 * 365 * 1000);

fn parse_since(text: &str) -> Result<MoveSelection, String> {
    if let Ok(time) = humantime::parse_duration(text) {
        if time > LONGEST_AGO {
            return Err("is longer ago than anything was moved".into());
        }
        return Ok(MoveSelection::Within(time));
    }
    match parse_time(text) {
        Some(time) if time <= SystemTime::now() + Duration::from_hours(24) => {
            Ok(MoveSelection::Since(time))
        }
        Some(_) => Err("is in the future".into()),
        None => Err("is neither a time (2026-03-01T14:00:00Z, or +02:00 in place of the Z) nor how long ago (2h, 3days)".into()),
    }
}

/// In UTC, or with the offset of a time zone.
fn parse_time(text: &str) -> Option<SystemTime> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Some(time);
    }
    let text = text.replacen(' ', "T", 1);
    let time = DateTime::from_str(&text, DateTimeFormat::DateTimeWithOffset);
    let time = SystemTime::try_from(time.ok()?).ok();
    time.filter(|time| *time >= SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_both_ways() {
        assert_eq!(
            parse_since("2h"),
            Ok(MoveSelection::Within(Duration::from_hours(2)))
        );
        let time = humantime::parse_rfc3339("2024-05-01T10:00:00Z").unwrap();
        assert_eq!(
            parse_since("2024-05-01T10:00:00Z"),
            Ok(MoveSelection::Since(time))
        );
        assert_eq!(
            parse_since("2024-05-01 10:00:00"),
            Ok(MoveSelection::Since(time))
        );
        for elsewhere in [
            "2024-05-01T12:30:00+02:30",
            "2024-05-01 05:00:00-05:00",
            "2024-05-01T10:00:00.0+00:00",
        ] {
            assert_eq!(
                parse_since(elsewhere),
                Ok(MoveSelection::Since(time)),
                "{elsewhere}"
            );
        }
        for bad in [
            "2024-05-01T10:00:00+2:00",
            "2024-05-01T10:00:00Z+02:00",
            "2024-05-01T10:00:00+24:00",
            "2024-05-01T10:00:00+02",
            "yesterday",
            "",
            "2h ago",
            "10000000000y",
            "2999-01-01T00:00:00Z",
        ] {
            assert!(parse_since(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_are_measured_against_the_column() {
        let asked = |ids: &[&str], id_type: IdColumnType| {
            let ids = ids.iter().map(|id| (*id).to_owned()).collect();
            MoveSelection::Ids(ids).parse_ids(id_type.into())
        };
        let ids = |ids: &[&str]| MoveSelection::Ids(ids.iter().map(|id| (*id).into()).collect());
        assert_eq!(
            asked(&["007,8", "9"], IdColumnType::Integer).unwrap(),
            ids(&["7", "8", "9"])
        );
        assert_eq!(asked(&["a,b"], IdColumnType::Text).unwrap(), ids(&["a,b"]));
        let wrong = asked(&["1", "x", "y"], IdColumnType::Integer)
            .unwrap_err()
            .to_string();
        assert!(wrong.contains("'x'") && wrong.contains("'y'"), "{wrong}");
    }
}
