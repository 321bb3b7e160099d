//! How a path spells an object's key: letter by letter, or as a URL does.

use std::borrow::Cow;
use std::str::FromStr;

use percent_encoding::{
    AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode,
};
use serde::{Deserialize, Serialize};

use crate::path_rule::RouteError;

/// The longest that follows the prefix in a path which is spelled as a URL, in bytes: each byte of the longest key
/// escaped, and a query.
const MAX_SPELLED_BYTES: usize = 4096;

/// Parameters of a query that names a version, or is signed for a bucket: of S3 and CloudFront.
const BUCKET_PARAMETERS: [&str; 3] = ["versionId", "X-Amz-Signature", "Signature"];

/// What JavaScript's `encodeURI` escapes.
const URI: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// What is escaped everywhere but in "unreserved" characters and slashes. Source: RFC 3986, section 2.3.
pub(crate) const STRICT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathEncoding {
    /// The key letter by letter.
    #[default]
    None,
    /// Percent-encoded; a query and a fragment are not part of the key.
    Url,
    /// The same, and a plus is a space.
    Form,
}

impl FromStr for PathEncoding {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "none" => Ok(Self::None),
            "url" => Ok(Self::Url),
            "form" => Ok(Self::Form),
            _ => Err("must be one of none, url, form"),
        }
    }
}

impl PathEncoding {
    pub const ALL: [Self; 3] = [Self::None, Self::Url, Self::Form];

    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Url => "url",
            Self::Form => "form",
        }
    }

    /// What follows the prefix in the key that a path names, by what follows the prefix in the path.
    pub fn decode(self, rest: &str) -> Result<Cow<'_, str>, RouteError> {
        if self == Self::None {
            return Ok(rest.into());
        }
        if rest.len() > MAX_SPELLED_BYTES {
            return Err(RouteError::PathTooLong(rest.len()));
        }
        let name = rest.split(['?', '#']).next().unwrap_or_default();
        if let Some(escape) = invalid_escape(name) {
            return Err(RouteError::InvalidEscape(escape.to_owned()));
        }
        let decoded = if self == Self::Form && name.contains('+') {
            let spaced = name.replace('+', " ");
            let decoded = percent_decode_str(&spaced).decode_utf8();
            decoded.map(|decoded| decoded.into_owned().into())
        } else {
            percent_decode_str(name).decode_utf8()
        };
        let decoded = decoded.map_err(|_| RouteError::EscapeNotUtf8)?;
        if decoded.contains('\0') {
            return Err(RouteError::ContainsNul);
        }
        Ok(decoded)
    }

    /// The first parameter of what follows the prefix that means nothing in another bucket.
    pub(crate) fn bucket_parameter(self, rest: &str) -> Option<&str> {
        let (_, query) = rest.split('#').next()?.split_once('?')?;
        let names = query.split('&').filter_map(|one| one.split('=').next());
        let is_bound = |name: &&str| {
            BUCKET_PARAMETERS
                .iter()
                .any(|one| one.eq_ignore_ascii_case(name))
        };
        names.filter(|_| self != Self::None).find(is_bound)
    }

    /// The usual ways to spell what follows the prefix in a key. There are more, with a query for one.
    pub fn usual_spellings(self, rest: &str) -> Vec<String> {
        let mut spellings = vec![rest.to_owned()];
        if self != Self::None {
            spellings.extend([URI, STRICT].map(|set| utf8_percent_encode(rest, set).to_string()));
            let spaced = spellings.iter().map(|one| one.replace("%20", "+"));
            spellings.extend(spaced.collect::<Vec<_>>());
            spellings.retain(|one| self.decode(one).is_ok_and(|key| key == rest));
            spellings.sort();
            spellings.dedup();
        }
        spellings
    }
}

/// A percent sign without two hexadecimal digits, and the characters after it.
fn invalid_escape(text: &str) -> Option<&str> {
    let is_valid = |at: usize| {
        let digits = text.as_bytes().get(at + 1..at + 3);
        digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    let (at, _) = text.match_indices('%').find(|(at, _)| !is_valid(*at))?;
    let end = text[at..].char_indices().nth(3);
    Some(&text[at..end.map_or(text.len(), |(length, _)| at + length)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(rest: &str) -> Result<Cow<'_, str>, RouteError> {
        PathEncoding::Url.decode(rest)
    }

    #[test]
    fn a_url_names_the_decoded_key() {
        for (rest, key) in [
            ("a%20b.png?v=2", "a b.png"),
            ("caf%C3%A9.png", "café.png"),
            ("caf%c3%a9.png#top?x", "café.png"),
            ("a%2Bb+c.png", "a+b+c.png"),
            ("%28x%29%3F%23.png", "(x)?#.png"),
            ("a%2520b", "a%20b"),
            ("u%2F1.png", "u/1.png"),
            ("漢字 raw.png", "漢字 raw.png"),
            ("../a//b", "../a//b"),
            ("?v=2", ""),
            ("a.png?x=%zz", "a.png"),
        ] {
            assert_eq!(url(rest).unwrap(), key, "{rest}");
        }
        assert_eq!(
            PathEncoding::Form.decode("a+b%2Bc+%C3%A9?+").unwrap(),
            "a b+c é"
        );
        assert_eq!(PathEncoding::None.decode("a%20b?c").unwrap(), "a%20b?c");
    }

    #[test]
    fn a_query_may_hold_in_the_old_bucket_alone() {
        for (rest, name) in [
            ("a.png?versionId=x", Some("versionId")),
            ("a.png?v=2&versionid=x#y", Some("versionid")),
            (
                "a.png?X-Amz-Date=1&X-Amz-Signature=2",
                Some("X-Amz-Signature"),
            ),
            ("a.png?Expires=1&Signature=2", Some("Signature")),
            ("a.png?version=2#?versionId=x", None),
            ("versionId=x", None),
        ] {
            assert_eq!(PathEncoding::Url.bucket_parameter(rest), name, "{rest}");
            assert_eq!(PathEncoding::None.bucket_parameter(rest), None);
        }
    }

    #[test]
    fn what_no_key_can_be_made_of_has_a_code_of_its_own() {
        for (rest, escape) in [
            ("100%", "%"),
            ("a%2", "%2"),
            ("%zz.png", "%zz"),
            ("%é1x", "%é1"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(
                url(rest),
                Err(RouteError::InvalidEscape(escape.into())),
                "{rest}"
            );
        }
        for rest in ["%ff.png", "caf%C3.png", "%ed%a0%80"] {
            assert_eq!(url(rest), Err(RouteError::EscapeNotUtf8), "{rest}");
        }
        assert_eq!(url("a%00b"), Err(RouteError::ContainsNul));
        let long = "x".repeat(MAX_SPELLED_BYTES + 1);
        assert_eq!(url(&long), Err(RouteError::PathTooLong(long.len())));
    }

    proptest! {
        #[test]
        fn every_key_is_named_by_its_usual_spellings(key in "[^\0]{0,40}") {
            for encoding in PathEncoding::ALL {
                let spellings = encoding.usual_spellings(&key);
                prop_assert!(!spellings.is_empty());
                for spelling in spellings {
                    prop_assert_eq!(encoding.decode(&spelling).unwrap(), &*key);
                }
            }
        }

        #[test]
        fn what_follows_the_name_says_nothing(name in "[^?#\0]{0,20}", more in "[?#].{0,20}") {
            for encoding in [PathEncoding::Url, PathEncoding::Form] {
                let longer = format!("{name}{more}");
                prop_assert_eq!(encoding.decode(&longer), encoding.decode(&name));
            }
        }
    }
}
