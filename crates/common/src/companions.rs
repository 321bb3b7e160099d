//! Companions: objects that belong to an image and that no row names, such as its thumbnails. Patterns name them by
//! the parts of the image's key.
//!
//! ```text
//! a/b.png after the prefix    {key} a/b.png    {dir} a    {name} b.png    {stem} a/b    {ext} png
//! ```
//!
//! Where a key has no folder, `{dir}/` is nothing; where it has no extension, `.{ext}` is nothing.

mod owners;

use std::collections::BTreeMap;
use std::sync::Arc;

use thiserror::Error;

use crate::path_rule::{MAX_KEY_BYTES, MoveRoute, PathRule};

/// Each is a request per image.
const MAX_PATTERNS: usize = 32;

/// A key in which no part can be found by chance.
const PROBE_KEY: &str = "\u{1}/\u{2}.\u{3}";

/// By pattern, the ETag of each companion's copy.
pub type CompanionCopies = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Key,
    Dir,
    Name,
    Stem,
    Ext,
}

const FIELDS: [(&str, Field); 5] = [
    ("key", Field::Key),
    ("dir", Field::Dir),
    ("name", Field::Name),
    ("stem", Field::Stem),
    ("ext", Field::Ext),
];

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(Field),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct CompanionPattern {
    text: String,
    /// Whether an image without it cannot be moved.
    is_required: bool,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CompanionPatterns(Arc<[CompanionPattern]>);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Companion<'a> {
    /// What names it, without the mark that it is required.
    pub pattern: &'a str,
    pub is_required: bool,
    /// Its keys, and the paths of its image.
    pub route: MoveRoute,
    /// Whether no other image has it.
    pub is_own: bool,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum CompanionError {
    #[error("a pattern is empty")]
    Empty,
    #[error(
        "'{0}' has the field {{{1}}}, which is none of {{key}}, {{dir}}, {{name}}, {{stem}}, {{ext}}"
    )]
    UnknownField(String, String),
    #[error("'{0}' has a brace without its other half")]
    OpenBrace(String),
    #[error("'{0}' is the image itself")]
    ImageItself(String),
    #[error("'{0}' would be one object for many images: it needs {{key}}, {{name}} or {{stem}}")]
    NoName(String),
    #[error(
        "'{0}' leaves the key prefix: what it names follows SOURCE_KEY_PREFIX and DESTINATION_KEY_PREFIX, without / at its start and without .."
    )]
    LeavesPrefix(String),
    #[error("'{0}' and '{1}' are the same object")]
    Duplicate(String, String),
    #[error("there are more than {MAX_PATTERNS} patterns")]
    TooMany,
}

impl CompanionPatterns {
    /// Patterns with commas between them.
    pub fn parse(text: &str) -> Result<Self, CompanionError> {
        let mut patterns: Vec<CompanionPattern> = Vec::new();
        for pattern in text.split(',') {
            let pattern = CompanionPattern::parse(pattern.trim())?;
            let same = patterns
                .iter()
                .find(|other| other.apply(PROBE_KEY) == pattern.apply(PROBE_KEY));
            if let Some(same) = same {
                return Err(CompanionError::Duplicate(same.text.clone(), pattern.text));
            }
            patterns.push(pattern);
        }
        if patterns.len() > MAX_PATTERNS {
            return Err(CompanionError::TooMany);
        }
        Ok(Self(patterns.into()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }
}

impl CompanionPattern {
    fn parse(text: &str) -> Result<Self, CompanionError> {
        let (text, is_required) = match text.strip_prefix('!') {
            Some(text) => (text.trim(), true),
            None => (text, false),
        };
        if text.is_empty() {
            return Err(CompanionError::Empty);
        }
        let leaves = text.starts_with('/') || text.split('/').any(|part| part == "..");
        let pattern = Self {
            text: text.to_owned(),
            is_required,
            parts: parse_parts(text)?,
        };
        let text = || text.to_owned();
        if leaves {
            Err(CompanionError::LeavesPrefix(text()))
        } else if pattern.apply(PROBE_KEY) == PROBE_KEY {
            Err(CompanionError::ImageItself(text()))
        } else if ![Field::Key, Field::Name, Field::Stem]
            .iter()
            .any(|field| pattern.has(*field))
        {
            Err(CompanionError::NoName(text()))
        } else {
            Ok(pattern)
        }
    }

    fn has(&self, field: Field) -> bool {
        self.parts.contains(&Part::Field(field))
    }

    /// Whether different images have different companions by it. Neither a name nor an extension holds a slash, nor
    /// an extension a dot: what is between them tells where they begin.
    fn is_own(&self) -> bool {
        let splits = |parts: &[Part]| match parts {
            [
                Part::Field(Field::Dir),
                Part::Text(text),
                Part::Field(Field::Name),
            ] => text.starts_with('/'),
            [
                Part::Field(Field::Stem),
                Part::Text(text),
                Part::Field(Field::Ext),
            ] => text.ends_with('.'),
            _ => false,
        };
        self.has(Field::Key) || self.parts.windows(3).any(splits)
    }

    /// What follows the prefix in the companion's key, by what follows it in the image's.
    fn apply(&self, key: &str) -> String {
        let (dir, name) = key
            .rsplit_once('/')
            .map_or((None, key), |(dir, name)| (Some(dir), name));
        let ext = name
            .rsplit_once('.')
            .filter(|(stem, _)| !stem.is_empty())
            .map(|(_, ext)| ext);
        let stem = ext.map_or(key, |ext| &key[..key.len() - ext.len() - 1]);
        let mut text = String::new();
        let mut drops_slash = false;
        for part in &self.parts {
            match part {
                Part::Text(part) if drops_slash => {
                    text.push_str(part.strip_prefix('/').unwrap_or(part));
                }
                Part::Text(part) => text.push_str(part),
                Part::Field(Field::Key) => text.push_str(key),
                Part::Field(Field::Dir) => text.push_str(dir.unwrap_or_default()),
                Part::Field(Field::Name) => text.push_str(name),
                Part::Field(Field::Stem) => text.push_str(stem),
                Part::Field(Field::Ext) => match ext {
                    Some(ext) => text.push_str(ext),
                    None if text.ends_with('.') => drop(text.pop()),
                    None => {}
                },
            }
            drops_slash = *part == Part::Field(Field::Dir) && dir.is_none();
        }
        text
    }
}

fn parse_parts(pattern: &str) -> Result<Vec<Part>, CompanionError> {
    let open = || CompanionError::OpenBrace(pattern.to_owned());
    let (mut parts, mut rest) = (Vec::new(), pattern);
    while let Some(at) = rest.find(['{', '}']) {
        let (text, field) = rest.split_at(at);
        let field = field.strip_prefix('{').ok_or_else(open)?;
        let (field, after) = field.split_once('}').ok_or_else(open)?;
        let known = FIELDS.iter().find(|(name, _)| *name == field);
        let unknown = || CompanionError::UnknownField(pattern.to_owned(), field.to_owned());
        let (_, field) = known.ok_or_else(unknown)?;
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        parts.push(Part::Field(*field));
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(Part::Text(rest.to_owned()));
    }
    Ok(parts)
}

impl PathRule {
    /// What may belong to an image beside its object. What could not be in the source bucket is left out.
    pub fn companions_of<'a>(&'a self, image: &MoveRoute) -> Vec<Companion<'a>> {
        let Some(key) = image.source_key.strip_prefix(self.source_key_prefix()) else {
            return Vec::new();
        };
        let mut companions: Vec<Companion<'a>> = Vec::new();
        for pattern in &*self.companions().0 {
            let rest = pattern.apply(key);
            let source_key = format!("{}{rest}", self.source_key_prefix());
            let is_known = source_key == image.source_key
                || companions
                    .iter()
                    .any(|other| other.route.source_key == source_key);
            if is_known || rest.is_empty() || source_key.len() > MAX_KEY_BYTES {
                continue;
            }
            companions.push(Companion {
                pattern: &pattern.text,
                is_required: pattern.is_required,
                is_own: pattern.is_own(),
                route: MoveRoute {
                    source_key,
                    destination_key: format!("{}{rest}", self.destination_key_prefix()),
                    ..image.clone()
                },
            });
        }
        companions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn companions(patterns: &str, key: &str) -> Vec<String> {
        let key_prefix = |text: &str| Some(text.to_owned());
        let rule = PathRule::new("image/", "avatar/", key_prefix("i/"), key_prefix("a/")).unwrap();
        let rule = rule.with_companions(CompanionPatterns::parse(patterns).unwrap());
        let route = rule.route_for(&format!("image/{key}")).unwrap();
        let companions = rule.companions_of(&route).into_iter();
        companions
            .map(|companion| {
                let key = companion.route.source_key.strip_prefix("i/").unwrap();
                assert_eq!(companion.route.destination_key, format!("a/{key}"));
                key.to_owned()
            })
            .collect()
    }

    #[test]
    fn each_field_is_a_part_of_the_key() {
        let all = "{key}.200x200.jpg, {dir}/thumb_{name},!{stem}@2x.{ext}";
        let of = |key| companions(all, key);
        assert_eq!(
            of("u/7/b.c.png"),
            [
                "u/7/b.c.png.200x200.jpg",
                "u/7/thumb_b.c.png",
                "u/7/b.c@2x.png"
            ]
        );
        assert_eq!(
            of("b.png"),
            ["b.png.200x200.jpg", "thumb_b.png", "b@2x.png"]
        );
        assert_eq!(
            of("v1.2/b"),
            ["v1.2/b.200x200.jpg", "v1.2/thumb_b", "v1.2/b@2x"]
        );
        assert_eq!(of("b"), ["b.200x200.jpg", "thumb_b", "b@2x"]);
        assert_eq!(
            of("/b.png"),
            ["/b.png.200x200.jpg", "/thumb_b.png", "/b@2x.png"]
        );
        assert_eq!(of(".png"), [".png.200x200.jpg", "thumb_.png", ".png@2x"]);
        assert_eq!(of("b."), ["b..200x200.jpg", "thumb_b.", "b@2x."]);
        assert_eq!(of("a/"), ["a/.200x200.jpg", "a/thumb_", "a/@2x"]);
    }

    #[test]
    fn a_pattern_that_is_the_image_of_some_keys_names_nothing_for_them() {
        assert_eq!(companions("{stem}.webp,{stem}", "a.webp"), ["a"]);
        assert_eq!(companions("{stem}.webp,{stem}", "a"), ["a.webp"]);
        assert_eq!(companions("{stem}.webp,{name}.webp", "a"), ["a.webp"]);
        assert!(companions("{key}.200x200.jpg", &"x".repeat(1020)).is_empty());
    }

    #[test]
    fn bad_patterns_are_named() {
        let refused = |text: &str| CompanionPatterns::parse(text).unwrap_err();
        for (texts, why) in [
            ("|!|{key}.a,|{key}.a,,{key}.b| , ", "a pattern is empty"),
            ("{key}|!{dir}/{name}|{stem}.{ext}", "is the image itself"),
            (
                "{file}.jpg|{key}{}|{KEY}.jpg|{key }x",
                "which is none of {key}",
            ),
            (
                "{key|key}.jpg|{key}}x",
                "has a brace without its other half",
            ),
            (
                "../{name}|/{key}.jpg|{dir}/../{name}",
                "leaves the key prefix",
            ),
            (
                "logo.png|{dir}/index.json|x.{ext}",
                "one object for many images",
            ),
            (
                "{key}.a,!{key}.a|{key}.a,{dir}/{name}.a|{stem}.{ext}.a,{key}.a",
                "are the same object",
            ),
        ] {
            for text in texts.split('|') {
                let error = refused(text).to_string();
                assert!(error.contains(why), "{text:?}: {error}");
            }
        }
        let many: Vec<String> = (0..=MAX_PATTERNS).map(|n| format!("{{key}}.{n}")).collect();
        assert_eq!(refused(&many.join(",")), CompanionError::TooMany);
    }

    #[test]
    fn images_may_share_what_only_a_part_of_the_key_names() {
        for text in ["{stem}.webp", "t/{name}", "{dir}-{name}", "{stem}-{ext}"] {
            assert!(!CompanionPattern::parse(text).unwrap().is_own(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn patterns_that_are_an_image_s_own_never_meet(one in "[ab./]{1,8}", other in "[ab./]{1,8}") {
            prop_assume!(one != other);
            for pattern in ["{key}.x", "x/{key}", "t_{dir}/a/b_{name}", "{stem}@2x.{ext}", "{stem}/a.{ext}.b"] {
                let pattern = CompanionPattern::parse(pattern).unwrap();
                prop_assert!(pattern.is_own());
                prop_assert_ne!(pattern.apply(&one), pattern.apply(&other));
            }
        }

        #[test]
        fn no_text_panics(text in any::<String>(), fields in "[!{}a-z./,]{0,20}", key in any::<String>()) {
            for text in [&text, &fields] {
                if let Ok(patterns) = CompanionPatterns::parse(text) {
                    for pattern in &*patterns.0 {
                        pattern.apply(&key);
                    }
                }
            }
        }
    }
}
