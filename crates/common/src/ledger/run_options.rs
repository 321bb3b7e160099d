//! The settings of a run that have no column of their own in the ledger.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::LedgerError;
use crate::companions::{CompanionError, CompanionPatterns};
use crate::path_encoding::PathEncoding;
use crate::path_rule::PathRule;

/// Each by its setting's name, absent where it is not set. A ledger with one that this version does not know
/// is not read: a copy made without it would be a wrong one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE", default, deny_unknown_fields)]
pub struct RunOptions {
    pub companions: Option<String>,
    pub copy_acl: Option<String>,
    pub copy_method: Option<String>,
    pub expected_destination_owner: Option<String>,
    pub expected_source_owner: Option<String>,
    pub request_payer: Option<String>,
    pub sse: Option<String>,
    pub sse_kms_key_id: Option<String>,
    pub storage_class: Option<String>,
    pub path_encoding: Option<PathEncoding>,
    /// An SQL expression: which rows with the old prefix are to move.
    pub row_filter: Option<String>,
    /// Whether the feeder had its buckets at two endpoints: a bucket of the same name is another one elsewhere. No setting
    /// of its own.
    pub two_stores: Option<bool>,
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
    /// The rule with what the options add to it.
    pub fn complete_rule(&self, rule: PathRule) -> Result<PathRule, CompanionError> {
        let companions = self.companions.as_deref().map(CompanionPatterns::parse);
        let companions = companions.transpose()?.unwrap_or_default();
        let encoding = self.path_encoding.unwrap_or_default();
        Ok(rule.with_encoding(encoding).with_companions(companions))
    }

    /// For copies to where the images come from, in the order in which they are tried: class and encryption are that
    /// bucket's own, unless its policy wants it asked for; and it may take no ACL.
    pub fn of_way_back(&self) -> Vec<Self> {
        let own = Self {
            copy_method: self.copy_method.clone().filter(|method| method != "server"),
            sse: None,
            sse_kms_key_id: None,
            storage_class: None,
            ..self.clone()
        };
        let encrypted = |options: &Self| Self {
            sse: Some("AES256".into()),
            ..options.clone()
        };
        let without_acl = Self {
            copy_acl: None,
            ..own.clone()
        };
        let mut tried = vec![own.clone(), encrypted(&own)];
        if own != without_acl {
            tried.extend([without_acl.clone(), encrypted(&without_acl)]);
        }
        tried
    }

    /// What is set of the copies that a store may not know: the first setting, and all with their values.
    pub fn copy_attributes(&self) -> Option<(&'static str, String)> {
        let settings = [
            ("STORAGE_CLASS", &self.storage_class),
            ("SSE", &self.sse),
            ("SSE_KMS_KEY_ID", &self.sse_kms_key_id),
            ("COPY_ACL", &self.copy_acl),
        ];
        let given = settings
            .iter()
            .filter_map(|(name, value)| Some((*name, value.as_ref()?)));
        let (first, _) = given.clone().next()?;
        let all: Vec<String> = given
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        Some((first, all.join(", ")))
    }

    pub(super) fn to_json(&self) -> String {
        let mut options = to_map(self);
        options.retain(|_, value| !is_off(value));
        Value::Object(options).to_string()
    }

    /// What a consumer or a command is given all the same must be the ledger's.
    pub fn ensure_given(&self, given: &Self, run: Option<&str>) -> Result<(), LedgerError> {
        let differences = self.differences(given, OptionMatch::Given);
        if differences.is_empty() {
            return Ok(());
        }
        Err(LedgerError::RunDiffers {
            name: run.unwrap_or_default().to_owned(),
            differences: differences.join("\n  "),
        })
    }

    /// The settings in which these, the ledger's, are not `given`, with both values.
    pub(super) fn differences(&self, given: &Self, matching: OptionMatch) -> Vec<String> {
        differences(&to_map(self), &to_map(given), matching)
    }
}

/// Where it matters, the buckets are opened.
const TWO_STORES: &str = "TWO_STORES";

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
        .filter(|name| *name != TWO_STORES)
        .filter(|name| set_value(ours, name) != set_value(given, name));
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

/// `none` says that a setting is not set.
fn is_off(value: &Value) -> bool {
    value == "none"
}

fn set_value<'a>(options: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    options.get(name).filter(|value| !is_off(value))
}

fn to_map(options: &RunOptions) -> Map<String, Value> {
    let Ok(Value::Object(mut map)) = serde_json::to_value(options) else {
        return Map::new();
    };
    map.retain(|_, value| !value.is_null());
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Map<String, Value> {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn what_comes_back_is_first_tried_as_its_bucket_has_it() {
        let options = RunOptions {
            copy_acl: Some("public-read".into()),
            copy_method: Some("server".into()),
            sse: Some("aws:kms".into()),
            sse_kms_key_id: Some("key".into()),
            ..RunOptions::default()
        };
        let ways = options.of_way_back();
        let tried = ways
            .iter()
            .map(|way| (way.copy_acl.is_some(), way.sse.as_deref()));
        let tried: Vec<_> = tried.collect();
        let aes = Some("AES256");
        assert_eq!(
            tried,
            [(true, None), (true, aes), (false, None), (false, aes)]
        );
        assert_eq!(RunOptions::default().of_way_back().len(), 2);
        assert!(
            ways.iter()
                .all(|way| way.copy_method.is_none() && way.sse_kms_key_id.is_none())
        );
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

    #[test]
    fn none_is_as_good_as_nothing_and_differs_from_something() {
        let none = map(r#"{"PATH_ENCODING":"none"}"#);
        for matching in [OptionMatch::Given, OptionMatch::Exact] {
            assert!(differences(&Map::new(), &none, matching).is_empty());
            let url = map(r#"{"PATH_ENCODING":"url"}"#);
            let differing = differences(&url, &none, matching);
            assert_eq!(differing, ["PATH_ENCODING: 'url' there, 'none' here"]);
        }
        let options = RunOptions {
            path_encoding: Some(PathEncoding::None),
            ..RunOptions::default()
        };
        assert_eq!(options.to_json(), "{}");
    }
}
