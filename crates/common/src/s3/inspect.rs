//! Looking at an object by a HEAD.

use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::ServerSideEncryption;

use super::{S3Store, bare_etag};
use crate::object_store::StoreError;
use crate::objects::{BucketSide, ObjectStat};

impl S3Store {
    /// None when there is no such object.
    pub async fn stat_object(
        &self,
        side: BucketSide,
        key: &str,
    ) -> Result<Option<ObjectStat>, StoreError> {
        let (client, bucket) = self.client_and_bucket(side);
        let head = self.head_object(client, bucket, key).await?;
        Ok(head.as_ref().map(object_stat))
    }
}

fn object_stat(head: &HeadObjectOutput) -> ObjectStat {
    let etag = bare_etag(head.e_tag().unwrap_or_default()).to_owned();
    ObjectStat {
        is_md5: is_md5(head, &etag),
        etag,
        size_bytes: head.content_length.unwrap_or(0),
        modified_seconds: head.last_modified.map_or(0, |at| at.secs()),
    }
}

/// An upload in parts has a dash in its ETag; KMS and customer keys make it say nothing of the bytes.
fn is_md5(head: &HeadObjectOutput, etag: &str) -> bool {
    let encryption = head.server_side_encryption.as_ref();
    let is_plain = encryption.is_none_or(|kind| *kind == ServerSideEncryption::Aes256);
    is_plain
        && head.sse_customer_algorithm.is_none()
        && etag.len() == 32
        && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_md5_tells_of_the_bytes() {
        let md5 = "d41d8cd98f00b204e9800998ecf8427e";
        let head = |etag: &str| {
            let head = HeadObjectOutput::builder().e_tag(format!("\"{etag}\""));
            head.content_length(3)
        };
        assert!(object_stat(&head(md5).build()).is_md5);
        assert!(!object_stat(&head(&format!("{md5}-2")).build()).is_md5);
        let kms = head(md5).server_side_encryption(ServerSideEncryption::AwsKms);
        assert!(!object_stat(&kms.build()).is_md5);
        assert!(!object_stat(&head(md5).sse_customer_algorithm("AES256").build()).is_md5);
    }
}
