//! Where the requests about a bucket go: the SDK's endpoint rules, asked once.

use aws_config::SdkConfig;
use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint};
use aws_sigv4::http_request::PayloadChecksumKind;
use aws_smithy_runtime_api::box_error::BoxError;

use crate::aws::service_endpoint;
use crate::aws::signer::SigningScope;

/// The address of a bucket, and what its signatures are good for.
#[derive(Debug)]
pub(in crate::object_store::s3) struct BucketAddress {
    /// The address up to the key, with the slash before it.
    pub(super) base: String,
    pub(super) scope: SigningScope,
}

impl BucketAddress {
    /// # Errors
    /// Why nothing can be copied to such a bucket.
    pub(in crate::object_store::s3) async fn resolve(params: Params) -> Result<Self, BoxError> {
        let endpoint = DefaultResolver::new().resolve_endpoint(&params).await?;
        let backend = endpoint.properties().get("backend");
        if backend.is_some_and(|backend| backend.as_string() == Some("S3Express")) {
            return Err("directory buckets (S3 Express One Zone) are not supported".into());
        }
        let mut schemes = endpoint.auth_schemes().iter();
        let scheme = schemes.find(|scheme| scheme.name() == "sigv4").ok_or(
            "multi-region access points (Signature Version 4a) are not supported: name the bucket itself",
        )?;
        let property = |name| {
            let value = scheme.get(name).and_then(|value| value.as_string());
            let missing = || format!("its endpoint has no {name}");
            value.map(ToOwned::to_owned).ok_or_else(missing)
        };
        Ok(Self {
            base: format!("{}/", endpoint.url().trim_end_matches('/')),
            scope: SigningScope {
                region: property("signingRegion")?,
                service: property("signingName")?,
                payload: PayloadChecksumKind::XAmzSha256,
            },
        })
    }
}

/// What the SDK's own client asks the endpoint rules with.
///
/// # Errors
/// A value that no bucket can have.
pub(in crate::object_store::s3) fn endpoint_params(
    sdk: &SdkConfig,
    force_path_style: bool,
    region: Option<&str>,
    bucket: &str,
) -> Result<Params, BoxError> {
    let region = region.or_else(|| sdk.region().map(AsRef::as_ref));
    let params = Params::builder()
        .set_region(region.map(ToOwned::to_owned))
        .set_use_fips(sdk.use_fips())
        .set_use_dual_stack(sdk.use_dual_stack())
        .set_endpoint(service_endpoint(sdk, "S3")?)
        .force_path_style(force_path_style)
        .bucket(bucket);
    Ok(params.build()?)
}
