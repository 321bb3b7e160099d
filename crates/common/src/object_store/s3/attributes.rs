//! What copies get that S3 does not carry over from the source.

use std::borrow::Cow;
use std::sync::atomic::Ordering;

use aws_sdk_s3::types::Permission;

use super::S3Bucket;
use super::copy::RequestHeaders;
use super::encoding::encode_tags;
use super::inspect::ObjectHead;
use crate::ledger::RunOptions;
use crate::object_store::StoreError;

/// The value of a setting of the copies that is read from each source.
pub const FROM_SOURCE: &str = "source";

/// What stores without tags say when they are asked for some.
pub const NO_TAGS_CODES: [&str; 2] = ["NotImplemented", "MethodNotAllowed"];

/// What stores say of an object without tags, of which S3 lists none.
pub const NO_TAG_SET_CODES: [&str; 2] = ["NoSuchTagSet", "NoSuchTagSetError"];

/// The group that is everyone. Source: Amazon S3 User Guide, "Access control list overview".
const ALL_USERS: &str = "http://acs.amazonaws.com/groups/global/AllUsers";

/// None of each for the bucket's default.
#[derive(Debug, Clone, Default)]
pub struct CopyAttributes {
    pub storage_class: Option<String>,
    /// Who may read and write the copies. Without it they belong to the copying account alone.
    pub acl: Option<String>,
    pub encryption: Option<String>,
    pub kms_key_id: Option<String>,
    /// Whether the class is the source's.
    pub keeps_storage_class: bool,
    /// Whether what everyone may read stays so.
    pub keeps_acl: bool,
}

impl CopyAttributes {
    pub(super) fn of_run(options: &RunOptions) -> Self {
        let given = |option: &Option<String>| option.clone().filter(|value| value != FROM_SOURCE);
        let is_from_source = |option: &Option<String>| option.as_deref() == Some(FROM_SOURCE);
        Self {
            storage_class: given(&options.storage_class),
            acl: given(&options.copy_acl),
            encryption: options.sse.clone(),
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
        // Boxed, so that these requests make no room in the future of a copy.
        let filled = Box::pin(async {
            let head = if self.keeps_storage_class {
                source.head(key).await?
            } else {
                None
            };
            let class = head.as_ref().and_then(ObjectHead::storage_class);
            self.fill(source, key, class).await
        });
        filled.await.map(Cow::Owned)
    }

    async fn fill(
        &self,
        source: &S3Bucket,
        key: &str,
        class: Option<&str>,
    ) -> Result<Self, StoreError> {
        let mut own = self.clone();
        if self.keeps_storage_class {
            own.storage_class = readable_class(class);
        }
        if self.keeps_acl && source.is_public(key).await? {
            own.acl = Some(PUBLIC_READ.to_owned());
        }
        Ok(own)
    }

    /// All that an upload of the object is to have.
    pub(super) async fn upload_headers(
        &self,
        source: &S3Bucket,
        key: &str,
        head: &ObjectHead,
        reads_tags: bool,
    ) -> Result<RequestHeaders, StoreError> {
        let mut headers = head.carried_headers()?;
        let own = self.fill(source, key, head.storage_class()).await?;
        headers.extend(own.headers());
        if reads_tags && let Some(tags) = source.read_tags(key).await? {
            headers.push(("x-amz-tagging".into(), tags));
        }
        Ok(headers)
    }

    /// For a probe: with the ACL that some copies may get.
    pub(super) fn for_probe(&self) -> Self {
        let public = self.keeps_acl.then(|| PUBLIC_READ.to_owned());
        Self {
            acl: public.or_else(|| self.acl.clone()),
            keeps_acl: false,
            keeps_storage_class: false,
            ..self.clone()
        }
    }

    /// As `CopyObject` and uploads take them.
    pub(super) fn headers(&self) -> impl Iterator<Item = (Cow<'static, str>, String)> {
        let key = "x-amz-server-side-encryption-aws-kms-key-id";
        let headers = [
            ("x-amz-storage-class", &self.storage_class),
            ("x-amz-acl", &self.acl),
            ("x-amz-server-side-encryption", &self.encryption),
            (key, &self.kms_key_id),
        ];
        let given = |(name, value): (&'static str, &Option<String>)| {
            let value = value.clone()?;
            Some((Cow::Borrowed(name), value))
        };
        headers.into_iter().filter_map(given)
    }
}

const PUBLIC_READ: &str = "public-read";

/// The class of a source, unless it is an archive's: the application could not read the copy.
fn readable_class(class: Option<&str>) -> Option<String> {
    let class = class.filter(|class| !matches!(*class, "GLACIER" | "DEEP_ARCHIVE"));
    class.map(ToOwned::to_owned)
}

impl S3Bucket {
    /// Whether everyone may read the object, by its ACL. In a store without ACLs nothing is public by one.
    pub async fn is_public(&self, key: &str) -> Result<bool, StoreError> {
        let request = self.client.get_object_acl().bucket(&self.name).key(key);
        let output = match request
            .send()
            .await
            .map_err(|error| self.refused(key, error))
        {
            Err(error) if error.code() == "NotImplemented" => return Ok(false),
            output => output?,
        };
        Ok(output.grants().iter().any(|grant| {
            let is_everyone = grant.grantee().and_then(|to| to.uri()) == Some(ALL_USERS);
            let reads = [Permission::Read, Permission::FullControl];
            is_everyone && grant.permission().is_some_and(|may| reads.contains(may))
        }))
    }

    pub(super) fn may_have_tags(&self, head: &ObjectHead) -> bool {
        let count = head.tag_count();
        let is_unknown = || !self.habits.counts_tags.load(Ordering::Relaxed);
        count.map_or_else(is_unknown, |count| count > 0)
    }

    /// A store that has counted the tags of one object counts all.
    pub(super) fn learn_tags(&self, head: &ObjectHead) {
        if head.tag_count().is_some() {
            self.habits.counts_tags.store(true, Ordering::Relaxed);
        }
    }

    /// Its tags as an upload's header; none where there are none, or the store knows none.
    pub(super) async fn read_tags(&self, key: &str) -> Result<Option<String>, StoreError> {
        let request = self.client.get_object_tagging().bucket(&self.name).key(key);
        let output = match request
            .send()
            .await
            .map_err(|error| self.refused(key, error))
        {
            Err(error) if NO_TAGS_CODES.contains(&error.code()) => {
                self.habits.counts_tags.store(true, Ordering::Relaxed);
                return Ok(None);
            }
            Err(error) if NO_TAG_SET_CODES.contains(&error.code()) => return Ok(None),
            output => output?,
        };
        let tags = output.tag_set.iter().map(|tag| (tag.key(), tag.value()));
        Ok((!output.tag_set.is_empty()).then(|| encode_tags(tags)))
    }
}
