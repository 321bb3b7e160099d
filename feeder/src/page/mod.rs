//! The live page: the run in a browser, served at `STATUS_ADDR`. Off unless set.
//!
//! The run is looked at once for all who watch, by the same queries as `feeder status`. The page, its
//! script and its style are part of the binary; nothing is fetched from elsewhere, but the thumbnails
//! where they are wanted.

mod asset;
mod board;
mod control;
mod history;
mod settings;
mod thumbnail;
mod token;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;
use bucket_brigade_common::ledger::Ledger;
use bucket_brigade_common::path_rule::PathRule;
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::sqs::SqsQueue;
use tokio::net::TcpListener;

use board::Board;
pub use settings::{PageArgs, PageSettings};
use thumbnail::Gallery;

/// What the page tells of, and steers.
pub struct Subject {
    /// The run.
    pub ledger: Ledger,
    /// Its queue.
    pub queue: SqsQueue,
    /// Its destination bucket, whose URLs are signed for the thumbnails.
    pub s3: aws_sdk_s3::Client,
    /// The bucket's name.
    pub destination_bucket: String,
    /// Where in it the images are.
    pub rule: PathRule,
}

/// A page that listens, and is answered once there is a run to tell of.
pub struct Page {
    listener: TcpListener,
    settings: PageSettings,
}

impl Page {
    /// Listens; none when the page is off.
    ///
    /// # Errors
    /// [`PreflightError`] naming `STATUS_ADDR` when nothing can listen there.
    pub async fn listen(settings: &PageSettings) -> Result<Option<Self>, PreflightError> {
        let Some(address) = settings.address else {
            return Ok(None);
        };
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|error| cannot_listen(address, &error))?;
        Ok(Some(Self {
            listener,
            settings: settings.clone(),
        }))
    }

    /// Answers in the background until the process ends.
    pub async fn serve(self, subject: Subject) {
        let gallery = if self.settings.thumbnails {
            Gallery::open(&subject).await
        } else {
            None
        };
        let policy = asset::policy(gallery.as_ref().map(Gallery::origin));
        let token = self.settings.token;
        let board = Arc::new(Board::new(subject, gallery, token.is_some()));
        tokio::spawn({
            let board = Arc::clone(&board);
            async move { board.look_forever().await }
        });
        let mut router = Router::new()
            .route("/status.json", get(status))
            .route("/history.json", get(history))
            .with_state(Arc::clone(&board))
            .merge(asset::routes());
        if let Some(token) = token {
            router = router.merge(control::routes(board, token));
        }
        let router = asset::guarded(router, &policy);
        if let Ok(address) = self.listener.local_addr() {
            tracing::info!("the live page is at http://{address}/");
        }
        tokio::spawn(async move { axum::serve(self.listener, router).await });
    }
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> PreflightError {
    PreflightError::Wrong {
        setting: "STATUS_ADDR",
        problem: format!("cannot listen on {address}: {error}"),
    }
}

async fn status(State(board): State<Arc<Board>>) -> impl IntoResponse {
    json(board.status())
}

async fn history(State(board): State<Arc<Board>>) -> impl IntoResponse {
    json(board.history())
}

fn json(body: Bytes) -> impl IntoResponse {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
    ];
    (headers, body)
}
