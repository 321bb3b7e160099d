//! The application's objects.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anyhow::{Result, ensure};
use aws_sdk_s3::operation::get_object::GetObjectError;
use aws_sdk_s3::primitives::ByteStream;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sha2::{Digest, Sha256};

use super::Application;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectLocation {
    pub bucket: String,
    pub key: String,
}

impl std::fmt::Display for ObjectLocation {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{:?} in {}", self.key, self.bucket)
    }
}

/// What an object is besides its bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ObjectProperties {
    pub content_type: Option<String>,
    pub cache_control: Option<String>,
    pub content_encoding: Option<String>,
    pub content_disposition: Option<String>,
    /// User metadata, by lower-case names without `x-amz-meta-`.
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApplicationObject {
    /// The SHA-256 of its bytes, in hex.
    pub sha256: String,
    /// The rest, but for tags, which take a request of their own.
    pub properties: ObjectProperties,
    pub tag_count: i32,
}

impl Application {
    /// Uploads an object and returns the SHA-256 of its bytes.
    pub async fn put_object(
        &self,
        at: &ObjectLocation,
        bytes: Vec<u8>,
        properties: &ObjectProperties,
    ) -> Result<String> {
        let sha256 = sha256_hex(&bytes);
        let metadata = properties.metadata.clone().into_iter().collect();
        let tagging = (!properties.tags.is_empty()).then(|| url_encoded(&properties.tags));
        let put = self
            .s3
            .put_object()
            .bucket(&at.bucket)
            .key(&at.key)
            .body(ByteStream::from(bytes));
        let put = put.set_content_type(properties.content_type.clone());
        let put = put.set_cache_control(properties.cache_control.clone());
        let put = put.set_content_encoding(properties.content_encoding.clone());
        let put = put.set_content_disposition(properties.content_disposition.clone());
        put.set_metadata(Some(metadata))
            .set_tagging(tagging)
            .send()
            .await?;
        Ok(sha256)
    }

    /// Reads an object; none when there is no such object.
    pub async fn get_object(&self, at: &ObjectLocation) -> Result<Option<ApplicationObject>> {
        let got = match self
            .s3
            .get_object()
            .bucket(&at.bucket)
            .key(&at.key)
            .send()
            .await
        {
            Ok(got) => got,
            Err(error)
                if error
                    .as_service_error()
                    .is_some_and(GetObjectError::is_no_such_key) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };
        let announced = got.content_length;
        let bytes = got.body.collect().await?.into_bytes();
        ensure!(
            announced.is_none_or(|length| usize::try_from(length) == Ok(bytes.len())),
            "cut short"
        );
        let properties = ObjectProperties {
            content_type: got.content_type,
            cache_control: got.cache_control,
            content_encoding: got.content_encoding,
            content_disposition: got.content_disposition,
            metadata: got.metadata.into_iter().flatten().collect(),
            tags: BTreeMap::new(),
        };
        let tag_count = got.tag_count.unwrap_or_default();
        Ok(Some(ApplicationObject {
            sha256: sha256_hex(&bytes),
            properties,
            tag_count,
        }))
    }

    /// Reads an object with its tags; none when there is no such object.
    pub async fn get_tagged_object(
        &self,
        at: &ObjectLocation,
    ) -> Result<Option<ApplicationObject>> {
        let mut found = self.get_object(at).await?;
        if let Some(object) = found.as_mut().filter(|object| object.tag_count > 0) {
            object.properties.tags = self.get_object_tags(at).await?;
        }
        Ok(found)
    }

    pub async fn get_object_tags(&self, at: &ObjectLocation) -> Result<BTreeMap<String, String>> {
        let got = self
            .s3
            .get_object_tagging()
            .bucket(&at.bucket)
            .key(&at.key)
            .send()
            .await?;
        Ok(got
            .tag_set
            .into_iter()
            .map(|tag| (tag.key, tag.value))
            .collect())
    }
}

/// The SHA-256 of `bytes`, in hex.
pub fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}

fn url_encoded(pairs: &BTreeMap<String, String>) -> String {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    pairs.join("&")
}
