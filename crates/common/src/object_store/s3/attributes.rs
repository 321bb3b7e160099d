//! What copies get that S3 does not carry over from the source.

use aws_sdk_s3::types::{ObjectCannedAcl, ServerSideEncryption, StorageClass};

/// None of each for the bucket's default.
#[derive(Debug, Clone, Default)]
pub struct CopyAttributes {
    pub storage_class: Option<StorageClass>,
    /// Who may read and write the copies. Without it they belong to the copying account alone.
    pub acl: Option<ObjectCannedAcl>,
    pub encryption: Option<ServerSideEncryption>,
    /// With encryption by KMS: the key.
    pub kms_key_id: Option<String>,
}

impl CopyAttributes {
    /// As `CopyObject` takes them.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let headers = [
            (
                "x-amz-storage-class",
                self.storage_class.as_ref().map(StorageClass::as_str),
            ),
            ("x-amz-acl", self.acl.as_ref().map(ObjectCannedAcl::as_str)),
            (
                "x-amz-server-side-encryption",
                self.encryption.as_ref().map(ServerSideEncryption::as_str),
            ),
            (
                "x-amz-server-side-encryption-aws-kms-key-id",
                self.kms_key_id.as_deref(),
            ),
        ];
        let given = |(name, value): (&'static str, Option<_>)| Some((name, value?));
        headers.into_iter().filter_map(given)
    }
}
