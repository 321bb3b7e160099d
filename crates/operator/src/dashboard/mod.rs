//! The live page: all runs in a browser, served at `STATUS_ADDR`, by a feeder or on its own.
//!
//! The status is read once for all browsers, by the same queries as for `feeder status`. The page, its
//! script and its style are part of the binary; nothing is fetched from elsewhere, but the thumbnails
//! where they are switched on.

mod asset;
pub mod command;
mod control;
mod history;
mod host;
mod settings;
mod snapshot;
mod thumbnail;
mod token;

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::Uri;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use bucket_brigade_common::healthcheck::connectable_address;
use bucket_brigade_common::http_server::{bind, serve};
use bucket_brigade_common::ledger::{DatabasePool, PostgresLedger};
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::queue::sqs::SqsQueue;
use tokio::net::TcpListener;

pub use settings::{DashboardArgs, DashboardSettings};
use snapshot::SnapshotCache;
use thumbnail::ThumbnailSigner;
pub use thumbnail::newest_moves;

pub struct DashboardContext {
    pub pool: DatabasePool,
    pub queue: Option<SqsQueue>,
    /// That of the feeder that serves it.
    pub own_run: Option<OwnRun>,
}

/// The run that is shown unless another is chosen, and whose images can be.
pub struct OwnRun {
    pub ledger: PostgresLedger,
    /// Of its destination bucket, whose URLs are signed for the thumbnails.
    pub s3: aws_sdk_s3::Client,
    pub destination_bucket: String,
}

/// A page that listens, and answers once there is a run to show.
pub struct Dashboard {
    listener: TcpListener,
    settings: DashboardSettings,
}

impl Dashboard {
    /// Listens; none when the page is off.
    pub async fn bind_listener(
        settings: &DashboardSettings,
    ) -> Result<Option<Self>, PreflightError> {
        let Some(address) = settings.address else {
            return Ok(None);
        };
        Ok(Some(Self {
            listener: bind("STATUS_ADDR", address).await?,
            settings: settings.clone(),
        }))
    }

    /// Answers in the background until the process ends.
    pub async fn spawn_server(self, context: DashboardContext) {
        let endpoint = self.settings.thumbnails_endpoint;
        let signer = match &context.own_run {
            Some(run) if self.settings.thumbnails => ThumbnailSigner::open(run, endpoint).await,
            _ => None,
        };
        let policy =
            asset::content_security_policy(signer.as_ref().map(ThumbnailSigner::image_origin));
        let token = self.settings.token;
        let cache = Arc::new(SnapshotCache::new(context, token.is_some()));
        tokio::spawn({
            let cache = Arc::clone(&cache);
            async move { cache.refresh_forever(signer).await }
        });
        let mut router = Router::new()
            .route("/status.json", get(get_status))
            .route("/history.json", get(get_history))
            .with_state(Arc::clone(&cache))
            .merge(asset::asset_routes());
        if let Some(token) = token {
            router = router.merge(control::control_routes(cache, token));
        }
        let router = asset::with_security_headers(router, &policy);
        let router = host::with_checked_host(router, self.settings.host);
        if let Ok(address) = self.listener.local_addr() {
            let address = connectable_address(address);
            tracing::info!("the live page is at http://{address}/");
        }
        tokio::spawn(serve(self.listener, router));
    }
}

async fn get_status(State(cache): State<Arc<SnapshotCache>>, uri: Uri) -> impl IntoResponse {
    json_response(cache.status_json(chosen_run(&uri)))
}

async fn get_history(State(cache): State<Arc<SnapshotCache>>, uri: Uri) -> impl IntoResponse {
    json_response(cache.history_json(chosen_run(&uri)))
}

/// The run of `?run=1`.
fn chosen_run(uri: &Uri) -> Option<i64> {
    uri.query()?.strip_prefix("run=")?.parse().ok()
}

fn json_response(body: Bytes) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, body)
}
