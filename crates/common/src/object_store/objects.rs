//! What an operator's commands ask of the two buckets.

use std::time::{Duration, Instant, SystemTime};

use serde::Serialize;

use crate::object_store::StoreError;
use crate::path_rule::PathRule;

/// The most objects one `DeleteObjects` removes. Source: Amazon S3 API reference.
pub const MAX_DELETE_OBJECTS: usize = 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BucketSide {
    /// Where the images were.
    Source,
    Destination,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStat {
    pub etag: String,
    pub size_bytes: i64,
    /// When it was last written by the store's clock, in seconds since 1970: HTTP's dates know no fractions. None
    /// where the store does not say.
    pub modified_seconds: Option<i64>,
    /// Whether the ETag is the MD5 of the bytes, so that different ones prove different bytes. It is not
    /// for uploads in parts and under KMS. Source: Amazon S3 API reference, "Object".
    pub is_md5: bool,
    /// A header that is not UTF-8: whether the copy has the same cannot be told.
    pub unreadable_header: Option<&'static str>,
}

/// An object that is to go, if it is still the one that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteTarget {
    pub key: String,
    /// The ETag it must have.
    pub etag: String,
}

/// What became of an object that was to go.
#[derive(Debug, Clone)]
pub enum DeleteOutcome {
    /// It is not there any more.
    Deleted {
        /// The version of the delete marker that hides it, in a bucket with versions.
        delete_marker: Option<String>,
    },
    /// It is another object by now, and stays.
    Changed,
    /// It stays for another reason.
    Refused(StoreError),
}

/// Whether a bucket keeps what is removed from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BucketVersioning {
    /// No: what is removed is gone.
    Off,
    /// Yes: a delete marker hides it, and its versions stay.
    Enabled,
    /// Not any more: earlier versions stay, the one without a version is gone.
    Suspended,
}

/// Until when what was decided to go may be asked for. By two clocks: the one stands still while the machine does, and
/// the decision may be an old one by then; the other may be set back.
#[derive(Debug, Clone, Copy)]
pub struct RemovalDeadline {
    expires_at: Instant,
    expires_on: SystemTime,
}

impl RemovalDeadline {
    pub fn after(time: Duration) -> Self {
        Self {
            expires_at: Instant::now() + time,
            expires_on: SystemTime::now() + time,
        }
    }

    /// # Errors
    /// It is over.
    pub fn check(self) -> Result<(), StoreError> {
        if Instant::now() <= self.expires_at && SystemTime::now() <= self.expires_on {
            return Ok(());
        }
        Err(StoreError::Systemic {
            code: "RemovalExpired".into(),
            message:
                "it was decided too long ago that these objects may go: run the same command again"
                    .into(),
        })
    }
}

impl PathRule {
    /// The object that a row's path names: its bucket and key; none for a path outside the rule, an empty one,
    /// and one that no key can be made of.
    pub fn locate_object(&self, path: &str) -> Option<(BucketSide, String)> {
        let (side, prefix, rest) = match path.strip_prefix(self.old_prefix()) {
            Some(rest) => (BucketSide::Source, self.source_key_prefix(), rest),
            None => (
                BucketSide::Destination,
                self.destination_key_prefix(),
                path.strip_prefix(self.new_prefix())?,
            ),
        };
        let key = self.object_key(prefix, rest);
        let key = key.ok().filter(|_| !path.is_empty())?;
        Some((side, key))
    }

    /// The path that a new path had before its move; none for a path outside the rule.
    pub fn old_path(&self, new_path: &str) -> Option<String> {
        let rest = new_path.strip_prefix(self.new_prefix())?;
        Some(format!("{}{rest}", self.old_prefix()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path_encoding::PathEncoding;
    use proptest::prelude::*;

    #[test]
    fn a_path_names_an_object_on_one_side() {
        let key = |text: &str| Some(text.to_owned());
        let rule = PathRule::new("image/", "avatar/", key("i/"), key("a/")).unwrap();
        let found = |path| rule.locate_object(path);
        assert_eq!(found("image/x"), Some((BucketSide::Source, "i/x".into())));
        assert_eq!(
            found("avatar/x"),
            Some((BucketSide::Destination, "a/x".into()))
        );
        assert_eq!(found("other/x"), None);
        // Where the new prefix is empty, everything but the old is new.
        let rule = PathRule::new("image/", "", None, None).unwrap();
        assert_eq!(
            rule.locate_object("x"),
            Some((BucketSide::Destination, "x".into()))
        );
        // What is no key names no object.
        assert_eq!(rule.locate_object(""), None);
        assert_eq!(rule.locate_object(&"x".repeat(1025)), None);
        let rule = PathRule::new("image/", "", None, key("a/")).unwrap();
        assert_eq!(rule.locate_object(""), None);
    }

    proptest! {
        #[test]
        fn a_route_is_found_again_from_its_new_path(
            rest in "(.|%[0-9a-f]{2}|[?#+]){0,40}",
            encoding in proptest::sample::select(PathEncoding::ALL.to_vec()),
        ) {
            let rule = PathRule::new("image/", "avatar/", None, None).unwrap().with_encoding(encoding);
            if let Ok(route) = rule.route_for(&format!("image/{rest}")) {
                prop_assert_eq!(rule.old_path(&route.new_path), Some(route.old_path.clone()));
                let (source, destination) = (rule.locate_object(&route.old_path), rule.locate_object(&route.new_path));
                prop_assert_eq!(source, Some((BucketSide::Source, route.source_key)));
                prop_assert_eq!(destination, Some((BucketSide::Destination, route.destination_key)));
            }
        }
    }
}
