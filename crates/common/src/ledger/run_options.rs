//! The settings of a run that have no column of their own in the ledger.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Each by its setting's name, absent where it is not set. A ledger with one that this version does not know
/// is not read: a copy made without it would be a wrong one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default, deny_unknown_fields)]
pub struct RunOptions {
    /// An SQL expression: which rows with the old prefix are to move.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_filter: Option<String>,
}

/// Whether a setting that is not given differs from one that the ledger has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OptionMatch {
    /// It does: the feeder's settings are the run.
    Exact,
    /// It does not: consumers and commands take it from the ledger.
    Given,
}

impl RunOptions {
    pub(super) fn to_json(&self) -> String {
        Value::Object(to_map(self)).to_string()
    }

    /// The settings in which these, the ledger's, are not `given`, with both values.
    pub(super) fn differences(&self, given: &Self, matching: OptionMatch) -> Vec<String> {
        differences(&to_map(self), &to_map(given), matching)
    }
}

fn differences(
    ours: &Map<String, Value>,
    given: &Map<String, Value>,
    matching: OptionMatch,
) -> Vec<String> {
    let missing = ours.keys().filter(|name| !given.contains_key(*name));
    let missing = missing.filter(|_| matching == OptionMatch::Exact);
    let differing = given
        .keys()
        .chain(missing)
        .filter(|name| ours.get(*name) != given.get(*name));
    let describe = |options: &Map<String, Value>, name: &str| match options.get(name) {
        Some(Value::String(text)) => format!("'{text}'"),
        Some(value) => value.to_string(),
        None => "not set".to_owned(),
    };
    differing
        .map(|name| {
            format!(
                "{name}: {} there, {} here",
                describe(ours, name),
                describe(given, name)
            )
        })
        .collect()
}

fn to_map(options: &RunOptions) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_is_not_given_differs_only_for_the_feeder() {
        let ours = map(r#"{"ROW_FILTER":"a","COPY_ACL":"private"}"#);
        let given = map(r#"{"ROW_FILTER":"b","SSE":"AES256"}"#);
        let of = |matching| differences(&ours, &given, matching);
        let filter = "ROW_FILTER: 'a' there, 'b' here";
        let sse = "SSE: not set there, 'AES256' here";
        assert_eq!(of(OptionMatch::Given), [filter, sse]);
        assert_eq!(
            of(OptionMatch::Exact),
            [filter, sse, "COPY_ACL: 'private' there, not set here"]
        );
        assert!(differences(&ours, &Map::new(), OptionMatch::Given).is_empty());
    }
}
