//! The same copy by the SDK.

use super::CopyCondition;
use crate::object_store::s3::{S3Store, confirm_copy, copy_source, store_error};
use crate::object_store::{CopiedObject, StoreError};
use crate::path_rule::MoveRoute;

pub(super) async fn copy_by_sdk(
    store: &S3Store,
    route: &MoveRoute,
) -> Result<CopiedObject, StoreError> {
    let (attributes, bucket) = (&store.options.attributes, &store.destination);
    let request = bucket.client.copy_object().bucket(&bucket.name);
    let request = request
        .copy_source(copy_source(&store.source.name, &route.source_key))
        .key(&route.destination_key)
        .set_storage_class(attributes.storage_class.clone())
        .set_acl(attributes.acl.clone())
        .set_server_side_encryption(attributes.encryption.clone())
        .set_ssekms_key_id(attributes.kms_key_id.clone())
        .set_expected_source_bucket_owner(store.source.headers.expected_owner.clone());
    let request = match store.condition() {
        CopyCondition::Absent => request.if_none_match("*"),
        CopyCondition::Over(etag) => request.if_match(etag),
        CopyCondition::None => request,
    };
    let output = request.send().await.map_err(store_error)?;
    let result = output.copy_object_result();
    confirm_copy(result.and_then(|result| result.e_tag()))
}
