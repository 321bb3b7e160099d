//! Pause, resume and limit from the page. Without a token none of this is there.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::post;
use bucket_brigade_common::ledger::ensure_no_rival;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::settings::SecretString;
use serde::Deserialize;

use super::chosen_run;
use super::snapshot::SnapshotCache;
use super::token::require_token;
use crate::history::Operator;
use crate::limit::{MAX_COPIES_IN_FLIGHT, RequestedLimits, is_valid_rate, set_limits};
use crate::pause::{is_refusal, pause_run, resume_run};

/// More than any request needs.
const MAX_REQUEST_BYTES: usize = 4096;

const MAX_REASON_CHARS: usize = 200;

/// Who paused, in `feeder status`.
const DASHBOARD_OPERATOR: &str = "the live page";

/// The status, and a sentence for people.
type ControlResponse = (StatusCode, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PauseRequest {
    reason: Option<String>,
}

/// What is null stays as it is; with `lift` both limits end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LimitRequest {
    rate: Option<f64>,
    concurrency: Option<i32>,
    #[serde(default)]
    lift: bool,
}

pub(super) fn control_routes(cache: Arc<SnapshotCache>, token: SecretString) -> Router {
    Router::new()
        .route("/pause", post(post_pause))
        .route("/resume", post(post_resume))
        .route("/limit", post(post_limit))
        .layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES))
        .layer(from_fn_with_state(token, require_token))
        .with_state(cache)
}

async fn post_pause(
    State(cache): State<Arc<SnapshotCache>>,
    uri: Uri,
    body: Bytes,
) -> Result<ControlResponse, ControlResponse> {
    let request: PauseRequest = parse_request(&body)?;
    let reason = request.reason.as_deref().map(str::trim);
    let reason = reason.filter(|reason| !reason.is_empty());
    if let Some(reason) = reason {
        check_reason(reason)?;
    }
    let run = require_run(&cache, &uri)?;
    let operator = Operator::new(DASHBOARD_OPERATOR, reason);
    let paused = pause_run(&cache.pool, run, &operator).await;
    let words = "Paused: within two seconds nothing new is begun.";
    accepted_response(&cache, paused, words)
}

async fn post_resume(
    State(cache): State<Arc<SnapshotCache>>,
    uri: Uri,
) -> Result<ControlResponse, ControlResponse> {
    let run = require_run(&cache, &uri)?;
    let operator = Operator::new(DASHBOARD_OPERATOR, None);
    ensure_no_rival(&cache.pool, run).await.map_err(|error| {
        let status = if is_refusal(&error) {
            StatusCode::CONFLICT
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        };
        (status, error.to_string())
    })?;
    let resumed = resume_run(&cache.pool, run, &operator).await;
    accepted_response(&cache, resumed, "The run is resumed.")
}

async fn post_limit(
    State(cache): State<Arc<SnapshotCache>>,
    uri: Uri,
    body: Bytes,
) -> Result<ControlResponse, ControlResponse> {
    let LimitRequest {
        rate,
        concurrency,
        lift,
    } = parse_request(&body)?;
    if rate.is_some_and(|rate| !is_valid_rate(rate)) {
        return Err(bad_request("rows per second: a number from 0.001 to 1e9"));
    }
    if concurrency.is_some_and(|most| !(1..=MAX_COPIES_IN_FLIGHT).contains(&most)) {
        return Err(bad_request(format!(
            "copies in flight: a whole number from 1 to {MAX_COPIES_IN_FLIGHT}"
        )));
    }
    if lift == (rate.is_some() || concurrency.is_some()) {
        return Err(bad_request("give a limit, or lift both"));
    }
    let run = require_run(&cache, &uri)?;
    let limits = RequestedLimits { rate, concurrency };
    let operator = Operator::new(DASHBOARD_OPERATOR, None);
    let limited = set_limits(&cache.pool, run, lift, limits, &operator).await;
    accepted_response(&cache, limited, "The limits hold within two seconds.")
}

fn require_run(cache: &SnapshotCache, uri: &Uri) -> Result<i64, ControlResponse> {
    let chosen = chosen_run(uri);
    if uri.query().is_some() && chosen.is_none() {
        return Err(bad_request("run: the number of a run, as in ?run=1"));
    }
    let run = cache.find_run(chosen);
    run.ok_or_else(|| bad_request("choose one of the runs first"))
}

fn parse_request<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, ControlResponse> {
    serde_json::from_slice(body).map_err(|error| bad_request(format!("not understood: {error}")))
}

/// It is shown in terminals and logs.
fn check_reason(reason: &str) -> Result<(), ControlResponse> {
    if reason.chars().any(char::is_control) || reason.chars().count() > MAX_REASON_CHARS {
        return Err(bad_request(format!(
            "reason: one line of at most {MAX_REASON_CHARS} characters"
        )));
    }
    Ok(())
}

fn accepted_response<T>(
    cache: &SnapshotCache,
    outcome: Result<T, StatementError>,
    words: &str,
) -> Result<ControlResponse, ControlResponse> {
    let refused = |error| format!("the order could not be written: {error}");
    outcome.map_err(|error| (StatusCode::SERVICE_UNAVAILABLE, refused(error)))?;
    cache.request_refresh();
    tracing::info!("from the live page: {words}");
    Ok((StatusCode::OK, words.to_owned()))
}

fn bad_request(words: impl Into<String>) -> ControlResponse {
    (StatusCode::BAD_REQUEST, words.into())
}
