//! What an operator's commands ask of the two buckets, as traits of only the calls used. The S3
//! implementations are in [`crate::s3`].

use async_trait::async_trait;
use serde::Serialize;

use crate::object_store::{Copied, StoreError};
use crate::path_rule::{PathRule, Route};

/// The most objects one `DeleteObjects` removes. Source: Amazon S3 API reference.
pub const REMOVAL_BATCH: usize = 1000;

/// One of the two buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Where the images were.
    Source,
    /// Where they go.
    Destination,
}

/// What is known of an object without reading it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Its ETag, without quotes.
    pub etag: String,
    /// Its size in bytes.
    pub size_bytes: i64,
    /// When it was last written, in seconds since 1970: HTTP's dates know no fractions.
    pub modified_seconds: i64,
    /// Whether the ETag is the MD5 of the bytes, so that different ones prove different bytes. It is not
    /// for uploads in parts and under KMS. Source: Amazon S3 API reference, "Object".
    pub is_md5: bool,
}

/// An object that is to go, if it is still the one that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Doomed {
    /// Its key.
    pub key: String,
    /// The ETag it must have.
    pub etag: String,
}

/// What became of an object that was to go.
#[derive(Debug, Clone)]
pub enum Fate {
    /// It is not there any more.
    Removed {
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
pub enum Versioning {
    /// No: what is removed is gone.
    Off,
    /// Yes: a delete marker hides it, and its versions stay.
    Enabled,
    /// Not any more: earlier versions stay, the one without a version is gone.
    Suspended,
}

/// Looks at objects.
#[async_trait]
pub trait Inspect: Send + Sync {
    /// Looks at one object; none when there is no such object.
    async fn stat(&self, side: Side, key: &str) -> Result<Option<Stat>, StoreError>;
}

/// Replaces copies of ours by newer ones.
#[async_trait]
pub trait Replace: Send + Sync {
    /// Copies the source once more over our copy, only while that still has the ETag `ours`.
    ///
    /// # Errors
    /// [`StoreError::DestinationExists`] when what stands there is another object by now.
    async fn replace(&self, route: &Route, ours: &str) -> Result<Copied, StoreError>;
}

/// Removes objects, and brings one back.
#[async_trait]
pub trait Remove: Send + Sync {
    /// Whether the bucket keeps what is removed from it.
    async fn versioning(&self, side: Side) -> Result<Versioning, StoreError>;

    /// Removes up to [`REMOVAL_BATCH`] objects, each only while it has its ETag. The answers are in the
    /// order of the objects.
    async fn remove(&self, side: Side, objects: &[Doomed]) -> Result<Vec<Fate>, StoreError>;

    /// Copies an object that was removed on one side back from the other, if there is none.
    async fn bring_back(&self, side: Side, route: &Route) -> Result<Copied, StoreError>;
}

impl PathRule {
    /// The object that a row's path names: its bucket and key; none for a path outside the rule.
    pub fn locate(&self, path: &str) -> Option<(Side, String)> {
        let key = |prefix: &str, rest: &str| format!("{prefix}{rest}");
        if let Some(rest) = path.strip_prefix(self.old_prefix()) {
            return Some((Side::Source, key(self.source_key_prefix(), rest)));
        }
        let rest = path.strip_prefix(self.new_prefix())?;
        Some((Side::Destination, key(self.destination_key_prefix(), rest)))
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
    use proptest::prelude::*;

    #[test]
    fn a_path_names_an_object_on_one_side() {
        let key = |text: &str| Some(text.to_owned());
        let rule = PathRule::new("image/", "avatar/", key("i/"), key("a/")).unwrap();
        let found = |path| rule.locate(path);
        assert_eq!(found("image/x"), Some((Side::Source, "i/x".into())));
        assert_eq!(found("avatar/x"), Some((Side::Destination, "a/x".into())));
        assert_eq!(found("other/x"), None);
        // Where the new prefix is empty, everything but the old is new.
        let rule = PathRule::new("image/", "", None, None).unwrap();
        assert_eq!(rule.locate("x"), Some((Side::Destination, "x".into())));
    }

    proptest! {
        #[test]
        fn a_route_is_found_again_from_its_new_path(rest in ".{0,40}") {
            let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
            if let Ok(route) = rule.route(&format!("image/{rest}")) {
                prop_assert_eq!(rule.old_path(&route.new_path), Some(route.old_path.clone()));
                let (source, destination) = (rule.locate(&route.old_path), rule.locate(&route.new_path));
                prop_assert_eq!(source, Some((Side::Source, route.source_key)));
                prop_assert_eq!(destination, Some((Side::Destination, route.destination_key)));
            }
        }
    }
}
