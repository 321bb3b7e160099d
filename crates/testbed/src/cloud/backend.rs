//! The S3 and SQS that answer behind the front: fakecloud's services, in memory.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{ConnectInfo, Extension, Query};
use axum::http::Request;
use fakecloud_core::auth::IamMode;
use fakecloud_core::delivery::DeliveryBus;
use fakecloud_core::dispatch::{DispatchConfig, dispatch};
use fakecloud_core::multi_account::MultiAccountState;
use fakecloud_core::registry::ServiceRegistry;
use fakecloud_s3::{S3Service, SharedS3State};
use fakecloud_sqs::{SharedSqsState, SqsService};
use parking_lot::RwLock;

use super::operation::BucketKey;
use super::response::{self, CloudResponse};

const ACCOUNT_ID: &str = "000000000000";
pub(super) const REGION: &str = "us-east-1";

/// A request on its way to the services.
pub(super) struct BackendCall {
    pub(super) peer: SocketAddr,
    pub(super) request: Request<Body>,
}

/// Both services and a view into the store.
pub(super) struct CloudBackend {
    registry: Arc<ServiceRegistry>,
    config: Arc<DispatchConfig>,
    objects: SharedS3State,
}

impl CloudBackend {
    /// `endpoint` is what queue URLs begin with.
    pub(super) fn new(endpoint: &str) -> Self {
        let objects: SharedS3State = Arc::new(RwLock::new(MultiAccountState::new(
            ACCOUNT_ID, REGION, endpoint,
        )));
        let queues: SharedSqsState = Arc::new(RwLock::new(MultiAccountState::new(
            ACCOUNT_ID, REGION, endpoint,
        )));
        let mut registry = ServiceRegistry::new();
        registry.register(Arc::new(S3Service::new(
            Arc::clone(&objects),
            Arc::new(DeliveryBus::new()),
        )));
        registry.register(Arc::new(SqsService::new(queues)));
        Self {
            registry: Arc::new(registry),
            config: Arc::new(dispatch_config()),
            objects,
        }
    }

    pub(super) async fn dispatch_call(&self, call: BackendCall) -> CloudResponse {
        let BackendCall { peer, request } = call;
        let Ok(query) = Query::try_from_uri(request.uri()) else {
            return response::s3_error_response(400, "InvalidArgument", "Invalid query string", "");
        };
        let (registry, config) = (Arc::clone(&self.registry), Arc::clone(&self.config));
        let (registry, config) = (Extension(registry), Extension(config));
        dispatch(ConnectInfo(peer), registry, config, query, request).await
    }

    /// The size of the object there, if there is one.
    pub(super) fn object_size_bytes(&self, target: &BucketKey) -> Option<u64> {
        let accounts = self.objects.read();
        let bucket = accounts.get(ACCOUNT_ID)?.buckets.get(&target.bucket)?;
        let object = bucket.objects.get(&target.key);
        let object = object.filter(|object| !object.is_delete_marker);
        object.map(|object| object.size)
    }

    /// The ETag of the object there, without quotes, if there is one.
    pub(super) fn object_etag(&self, target: &BucketKey) -> Option<String> {
        let accounts = self.objects.read();
        let bucket = accounts.get(ACCOUNT_ID)?.buckets.get(&target.bucket)?;
        let object = bucket.objects.get(&target.key);
        let object = object.filter(|object| !object.is_delete_marker);
        object.map(|object| object.etag.clone())
    }

    /// When the object there was written, in seconds since 1970, if there is one.
    pub(super) fn object_written_at(&self, target: &BucketKey) -> Option<f64> {
        let accounts = self.objects.read();
        let bucket = accounts.get(ACCOUNT_ID)?.buckets.get(&target.bucket)?;
        let object = bucket.objects.get(&target.key);
        let written = object?.last_modified.timestamp_millis();
        #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
        Some(written as f64 / 1000.0)
    }

    pub(super) fn count_objects(&self, bucket: &str) -> usize {
        let accounts = self.objects.read();
        let found = accounts
            .get(ACCOUNT_ID)
            .and_then(|account| account.buckets.get(bucket));
        found.map_or(0, |bucket| bucket.objects.len())
    }

    /// The ETags of the objects in this bucket, by key.
    pub(super) fn list_etags(&self, bucket: &str) -> BTreeMap<String, String> {
        let accounts = self.objects.read();
        let found = accounts
            .get(ACCOUNT_ID)
            .and_then(|account| account.buckets.get(bucket));
        let objects = found.map(|bucket| bucket.objects.iter());
        let objects = objects.into_iter().flatten();
        objects
            .map(|(key, object)| (key.clone(), object.etag.clone()))
            .collect()
    }
}

fn dispatch_config() -> DispatchConfig {
    DispatchConfig {
        region: REGION.to_owned(),
        account_id: ACCOUNT_ID.to_owned(),
        verify_sigv4: false,
        iam_mode: IamMode::Off,
        credential_resolver: None,
        policy_evaluator: None,
        resource_policy_provider: None,
        scp_resolver: None,
    }
}
