//! What copies get that S3 does not carry over from the source.

use std::borrow::Cow;

use aws_sdk_s3::types::{ObjectCannedAcl, Permission, ServerSideEncryption, StorageClass};

use super::{S3Bucket, store_error};
use crate::ledger::RunOptions;
use crate::object_store::StoreError;

/// The value of a setting of the copies that is read from each source.
pub const FROM_SOURCE: &str = "source";

/// The group that is everyone. Source: Amazon S3 User Guide, "Access control list overview".
const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

/// None of each for the bucket's default.
#[derive(Debug, Clone, Default)]
pub struct CopyAttributes {
    pub storage_class: Option<StorageClass>,
    /// Who may read and write the copies. Without it they belong to the copying account alone.
    pub acl: Option<ObjectCannedAcl>,
    pub encryption: Option<ServerSideEncryption>,
    /// With encryption by KMS: the key.
    pub kms_key_id: Option<String>,
    /// Whether the class is the source's.
    pub keeps_storage_class: bool,
    /// Whether what everyone may read stays so.
    pub keeps_acl: bool,
}

impl CopyAttributes {
    pub(super) fn of_run(options: &RunOptions) -> Self {
        let given = |option: &Option<String>| {
            let given = option.as_deref().filter(|value| *value != FROM_SOURCE);
            given.map(ToOwned::to_owned)
        };
        let is_from_source = |option: &Option<String>| option.as_deref() == Some(FROM_SOURCE);
        Self {
            storage_class: given(&options.storage_class).map(|class| class.as_str().into()),
            acl: given(&options.copy_acl).map(|acl| acl.as_str().into()),
            encryption: options.sse.as_deref().map(Into::into),
            kms_key_id: options.sse_kms_key_id.clone(),
            keeps_storage_class: is_from_source(&options.storage_class),
            keeps_acl: is_from_source(&options.copy_acl),
        }
    }

    /// With what is the source's filled in.
    pub(super) async fn for_object(
        &self,
        source: &S3Bucket,
        key: &str,
    ) -> Result<Cow<'_, Self>, StoreError> {
        if !self.keeps_storage_class && !self.keeps_acl {
            return Ok(Cow::Borrowed(self));
        }
        // Boxed, so that the SDK's futures make no room in the one of a copy.
        Box::pin(self.read_from(source, key)).await.map(Cow::Owned)
    }

    async fn read_from(&self, source: &S3Bucket, key: &str) -> Result<Self, StoreError> {
        let mut own = self.clone();
        if self.keeps_storage_class {
            let head = source.head(key).await?;
            own.storage_class = head.and_then(|head| readable_class(head.storage_class));
        }
        if self.keeps_acl && source.is_public(key).await? {
            own.acl = Some(ObjectCannedAcl::PublicRead);
        }
        Ok(own)
    }

    /// For a probe: with the ACL that some copies may get.
    pub(super) fn for_probe(&self) -> Self {
        Self {
            acl: if self.keeps_acl {
                Some(ObjectCannedAcl::PublicRead)
            } else {
                self.acl.clone()
            },
            keeps_acl: false,
            keeps_storage_class: false,
            ..self.clone()
        }
    }

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

/// The class of a source, unless it is an archive's: the application could not read the copy.
pub(super) fn readable_class(class: Option<StorageClass>) -> Option<StorageClass> {
    class.filter(|class| !matches!(class, StorageClass::Glacier | StorageClass::DeepArchive))
}

impl S3Bucket {
    /// Whether everyone may read the object, by its ACL. In a store without ACLs nothing is public by one.
    pub async fn is_public(&self, key: &str) -> Result<bool, StoreError> {
        let request = self.client.get_object_acl().bucket(&self.name).key(key);
        let output = match request.send().await.map_err(store_error) {
            Err(error) if error.code() == "NotImplemented" => return Ok(false),
            output => output?,
        };
        Ok(output.grants().iter().any(|grant| {
            let is_everyone = grant.grantee().and_then(|to| to.uri()) == Some(ALL_USERS);
            let reads = [Permission::Read, Permission::FullControl];
            is_everyone && grant.permission().is_some_and(|may| reads.contains(may))
        }))
    }
}
