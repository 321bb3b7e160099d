//! The path rule: how one value of the path column names the source object, the destination
//! object and the value the column gets when the image has moved.
//!
//! ```text
//! path         OLD_PREFIX + rest              →  NEW_PREFIX + rest
//! source key   SOURCE_KEY_PREFIX + key
//! dest. key    DESTINATION_KEY_PREFIX + key
//! ```
//!
//! The key is the rest itself, or what it spells by [`PathEncoding`].

use serde::Serialize;
use thiserror::Error;

use crate::companions::CompanionPatterns;
use crate::path_encoding::PathEncoding;
use crate::printable::printable;

/// The longest object key S3 accepts, in bytes of UTF-8.
/// Source: Amazon S3 User Guide, "Naming Amazon S3 objects".
pub const MAX_KEY_BYTES: usize = 1024;

/// A checked path rule. Prefix means prefix: only a leading match is ever replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathRule {
    old_prefix: String,
    new_prefix: String,
    source_key_prefix: String,
    destination_key_prefix: String,
    encoding: PathEncoding,
    companions: CompanionPatterns,
}

/// The keys and the new path of one path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize)]
pub struct MoveRoute {
    /// The value the path column holds now.
    pub old_path: String,
    /// The value it gets once the object is at its destination.
    pub new_path: String,
    pub source_key: String,
    pub destination_key: String,
}

/// Why a path rule is refused before anything is touched.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PathRuleError {
    /// Every path would be in scope, the new ones too.
    #[error("OLD_PREFIX is empty: every path would match, also those already moved")]
    EmptyOldPrefix,
    #[error(
        "NEW_PREFIX '{new_prefix}' starts with OLD_PREFIX '{old_prefix}': a moved path would still match the old prefix, so moved rows could not be distinguished from those still to move"
    )]
    NewPathsStillMatch {
        old_prefix: String,
        new_prefix: String,
    },
}

/// Why one path cannot be routed. None of these stops other paths.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RouteError {
    #[error("the path does not start with OLD_PREFIX")]
    OutsideRule,
    /// The new path would start with the old prefix again (possible when `NEW_PREFIX` is shorter).
    #[error("the new path '{}' would still match OLD_PREFIX", printable(.0))]
    StillMatches(String),
    /// S3 has no object without a key.
    #[error("the object key would be empty")]
    EmptyKey,
    #[error("the object key would be {0} bytes long, S3 accepts {MAX_KEY_BYTES}")]
    KeyTooLong(usize),
    /// Neither Postgres text nor an S3 key can hold it.
    #[error("the path holds a NUL character")]
    ContainsNul,
    #[error("'{}' in the path is no percent-encoding (PATH_ENCODING)", printable(.0))]
    InvalidEscape(String),
    #[error("the percent-encoding in the path is not UTF-8, which a key is (PATH_ENCODING)")]
    EscapeNotUtf8,
    /// Spelled as a URL it is longer than any key needs, its query included.
    #[error("the path is {0} bytes long after its prefix, more than any key takes (PATH_ENCODING)")]
    PathTooLong(usize),
    #[error("the path's query has '{}', which holds in the old bucket alone (PATH_ENCODING)", printable(.0))]
    QueryOfBucket(String),
}

impl RouteError {
    /// The code under which the failure is recorded.
    pub fn error_code(&self) -> &'static str {
        match self {
            Self::OutsideRule => "OutsideRule",
            Self::StillMatches(_) => "NewPathStillMatches",
            Self::EmptyKey => "EmptyKey",
            Self::KeyTooLong(_) => "KeyTooLong",
            Self::ContainsNul => "NulInPath",
            Self::InvalidEscape(_) => "InvalidEscape",
            Self::EscapeNotUtf8 => "EscapeNotUtf8",
            Self::PathTooLong(_) => "PathTooLong",
            Self::QueryOfBucket(_) => "QueryOfBucket",
        }
    }
}

impl PathRule {
    /// Checks the two path prefixes. The key prefixes default to the path prefixes.
    pub fn new(
        old_prefix: impl Into<String>,
        new_prefix: impl Into<String>,
        source_key_prefix: Option<String>,
        destination_key_prefix: Option<String>,
    ) -> Result<Self, PathRuleError> {
        let (old_prefix, new_prefix) = (old_prefix.into(), new_prefix.into());
        if old_prefix.is_empty() {
            return Err(PathRuleError::EmptyOldPrefix);
        }
        if new_prefix.starts_with(&old_prefix) {
            return Err(PathRuleError::NewPathsStillMatch {
                old_prefix,
                new_prefix,
            });
        }
        Ok(Self {
            source_key_prefix: source_key_prefix.unwrap_or_else(|| old_prefix.clone()),
            destination_key_prefix: destination_key_prefix.unwrap_or_else(|| new_prefix.clone()),
            old_prefix,
            new_prefix,
            encoding: PathEncoding::None,
            companions: CompanionPatterns::default(),
        })
    }

    /// The same rule for paths that spell keys in this way.
    #[must_use]
    pub fn with_encoding(self, encoding: PathEncoding) -> Self {
        Self { encoding, ..self }
    }

    /// The same rule for images with these companions.
    #[must_use]
    pub fn with_companions(self, companions: CompanionPatterns) -> Self {
        Self { companions, ..self }
    }

    pub fn route_for(&self, path: &str) -> Result<MoveRoute, RouteError> {
        let rest = path
            .strip_prefix(&self.old_prefix)
            .ok_or(RouteError::OutsideRule)?;
        if path.contains('\0') {
            return Err(RouteError::ContainsNul);
        }
        if let Some(name) = self.encoding.bucket_parameter(rest) {
            return Err(RouteError::QueryOfBucket(name.to_owned()));
        }
        let new_path = format!("{}{rest}", self.new_prefix);
        if new_path.starts_with(&self.old_prefix) {
            return Err(RouteError::StillMatches(new_path));
        }
        Ok(MoveRoute {
            old_path: path.to_owned(),
            new_path,
            source_key: self.object_key(&self.source_key_prefix, rest)?,
            destination_key: self.object_key(&self.destination_key_prefix, rest)?,
        })
    }

    /// Whether a path still asks to be moved.
    pub fn is_in_scope(&self, path: &str) -> bool {
        path.starts_with(&self.old_prefix)
    }

    pub fn old_prefix(&self) -> &str {
        &self.old_prefix
    }

    pub fn new_prefix(&self) -> &str {
        &self.new_prefix
    }

    pub fn source_key_prefix(&self) -> &str {
        &self.source_key_prefix
    }

    pub fn destination_key_prefix(&self) -> &str {
        &self.destination_key_prefix
    }

    pub fn encoding(&self) -> PathEncoding {
        self.encoding
    }

    pub fn companions(&self) -> &CompanionPatterns {
        &self.companions
    }

    /// The key under this prefix that is spelled by the rest of a path: one that S3 can have.
    pub(crate) fn object_key(&self, prefix: &str, rest: &str) -> Result<String, RouteError> {
        let rest = self.encoding.decode(rest)?;
        match prefix.len() + rest.len() {
            0 => Err(RouteError::EmptyKey),
            length if length > MAX_KEY_BYTES => Err(RouteError::KeyTooLong(length)),
            _ => Ok(format!("{prefix}{rest}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule() -> PathRule {
        PathRule::new("image/", "avatar/", None, None).unwrap()
    }

    #[test]
    fn replaces_only_the_leading_prefix() {
        let route = rule().route_for("image/a/image/b.png").unwrap();
        assert_eq!(route.new_path, "avatar/a/image/b.png");
        assert_eq!(route.source_key, "image/a/image/b.png");
        assert_eq!(route.destination_key, "avatar/a/image/b.png");
    }

    #[test]
    fn near_misses_are_outside_the_rule() {
        for path in ["", "image", "Image/a", "ximage/a", " image/a", "avatar/a"] {
            assert_eq!(
                rule().route_for(path),
                Err(RouteError::OutsideRule),
                "{path}"
            );
            assert!(!rule().is_in_scope(path), "{path}");
        }
    }

    #[test]
    fn the_prefix_alone_is_an_object_too() {
        assert_eq!(
            rule().route_for("image/").unwrap().destination_key,
            "avatar/"
        );
    }

    #[test]
    fn whole_urls_map_to_bare_keys() {
        let rule = PathRule::new(
            "https://old.example/",
            "https://new.example/",
            Some(String::new()),
            Some(String::new()),
        )
        .unwrap();
        let route = rule.route_for("https://old.example/a b.png").unwrap();
        assert_eq!(route.new_path, "https://new.example/a b.png");
        assert_eq!(route.source_key, "a b.png");
        assert_eq!(
            rule.route_for("https://old.example/"),
            Err(RouteError::EmptyKey)
        );
    }

    fn encoded(encoding: PathEncoding) -> PathRule {
        let none = || Some(String::new());
        let rule = PathRule::new(
            "https://old.example/",
            "https://new.example/",
            none(),
            none(),
        );
        rule.unwrap().with_encoding(encoding)
    }

    #[test]
    fn encoded_urls_name_decoded_keys_and_keep_their_spelling() {
        let route = encoded(PathEncoding::Url)
            .route_for("https://old.example/a%20b+c.png?v=2")
            .unwrap();
        assert_eq!(route.new_path, "https://new.example/a%20b+c.png?v=2");
        assert_eq!(route.source_key, "a b+c.png");
        assert_eq!(route.destination_key, "a b+c.png");
        let route = encoded(PathEncoding::Form).route_for("https://old.example/a+b");
        assert_eq!(route.unwrap().source_key, "a b");
    }

    #[test]
    fn an_encoded_key_is_measured_by_what_it_spells() {
        let rule = encoded(PathEncoding::Url);
        let of = |rest: &str| {
            rule.route_for(&format!("https://old.example/{rest}"))
                .map(|route| route.source_key)
        };
        assert_eq!(of(&"%20".repeat(1024)), Ok(" ".repeat(1024)));
        assert_eq!(of(&"%20".repeat(1025)), Err(RouteError::KeyTooLong(1025)));
        assert_eq!(of("?v=2"), Err(RouteError::EmptyKey));
        assert_eq!(of("100%"), Err(RouteError::InvalidEscape("%".into())));
    }

    #[test]
    fn refuses_rules_whose_result_still_matches() {
        for new in ["image/", "image/v2/"] {
            let refused = PathRule::new("image/", new, None, None).unwrap_err();
            assert!(
                matches!(refused, PathRuleError::NewPathsStillMatch { .. }),
                "{new}"
            );
        }
        assert_eq!(
            PathRule::new("", "avatar/", None, None),
            Err(PathRuleError::EmptyOldPrefix)
        );
    }

    #[test]
    fn stripping_a_prefix_refuses_only_the_paths_that_would_match_again() {
        let rule = PathRule::new("image/", "", None, Some("a/".into())).unwrap();
        assert_eq!(rule.route_for("image/x").unwrap().new_path, "x");
        assert_eq!(
            rule.route_for("image/image/x"),
            Err(RouteError::StillMatches("image/x".into()))
        );
    }

    #[test]
    fn keys_longer_than_s3_accepts_are_refused_by_bytes() {
        let rest = "é".repeat(510);
        assert_eq!(
            rule().route_for(&format!("image/{rest}")),
            Err(RouteError::KeyTooLong(1026))
        );
    }
}
