//! The encoding of keys in addresses and in the `x-amz-copy-source` header, which the SDK leaves to the
//! caller.

use percent_encoding::{AsciiSet, PercentEncode, utf8_percent_encode};

use crate::path_encoding::STRICT;

/// `bucket/key`, percent-encoded. Through an access point it is the object's ARN, which separates its parts
/// by slashes. Source: Amazon S3 API reference, `CopyObject`.
pub fn copy_source(bucket: &str, key: &str) -> String {
    let key = encode_key(key);
    if bucket.starts_with("arn:") {
        let arn = bucket.replace(":accesspoint:", ":accesspoint/");
        return format!("{}/object/{key}", encode_key(&arn));
    }
    format!("{bucket}/{key}")
}

/// A key, percent-encoded as the path of a request has it. A `+` or a space sent raw would name another object.
pub(super) fn encode_key(key: &str) -> PercentEncode<'_> {
    utf8_percent_encode(key, STRICT)
}

const RESERVED: &AsciiSet = &STRICT.add(b'/');

/// A value in the query of a request.
pub(crate) fn encode_query(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// A set of tags as the `x-amz-tagging` header wants it.
pub(super) fn encode_tags<'a>(tags: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let pair = |(key, value)| format!("{}={}", encode_query(key), encode_query(value));
    let pairs: Vec<String> = tags.map(pair).collect();
    pairs.join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_that_break_other_tools() {
        let source = |key| copy_source("b", key);
        assert_eq!(source("image/a b+c%20.png"), "b/image/a%20b%2Bc%2520.png");
        assert_eq!(source("a//../b/"), "b/a//../b/");
        assert_eq!(source("\u{1}?#&='\"é"), "b/%01%3F%23%26%3D%27%22%C3%A9");
    }

    #[test]
    fn an_access_point_has_objects() {
        assert_eq!(
            copy_source(
                "arn:aws:s3:eu-central-1:1234:accesspoint:images",
                "image/a b"
            ),
            "arn%3Aaws%3As3%3Aeu-central-1%3A1234%3Aaccesspoint/images/object/image/a%20b"
        );
    }

    #[test]
    fn tags_keep_their_separators_apart() {
        let tags = [("a b", "1&2"), ("c=", "")];
        assert_eq!(encode_tags(tags.into_iter()), "a%20b=1%262&c%3D=");
    }
}
