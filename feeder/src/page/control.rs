//! Pause, resume and limit from the page. Without a token none of this is there.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::middleware::from_fn_with_state;
use axum::routing::post;
use bucket_brigade_common::catalog::CatalogError;
use bucket_brigade_common::ledger::Limits;
use bucket_brigade_common::settings::Secret;
use serde::Deserialize;

use super::board::Board;
use super::token::demand;
use crate::command::limit::{MOST_COPIES, is_rate};

/// More than any order needs, in bytes.
const LONGEST_ORDER: usize = 4096;

/// Characters of a reason.
const LONGEST_REASON: usize = 200;

/// Who steered, for whoever asks with `feeder status`.
const BY: &str = "the live page";

/// How an order was taken: the status, and words for a person.
type Taken = (StatusCode, String);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pause {
    reason: Option<String>,
}

/// What is null stays as it is; with `lift` both limits end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Limit {
    rate: Option<f64>,
    concurrency: Option<u32>,
    #[serde(default)]
    lift: bool,
}

/// The routes, each behind the token.
pub(super) fn routes(board: Arc<Board>, token: Secret) -> Router {
    Router::new()
        .route("/pause", post(pause))
        .route("/resume", post(resume))
        .route("/limit", post(limit))
        .layer(DefaultBodyLimit::max(LONGEST_ORDER))
        .layer(from_fn_with_state(token, demand))
        .with_state(board)
}

async fn pause(State(board): State<Arc<Board>>, body: Bytes) -> Result<Taken, Taken> {
    let order: Pause = read(&body)?;
    let reason = order.reason.as_deref().map(str::trim);
    let reason = reason.filter(|reason| !reason.is_empty());
    if let Some(reason) = reason {
        check_reason(reason)?;
    }
    board.pause(BY, reason).await.map_err(failed)?;
    tracing::info!(reason, "paused from the live page");
    taken("Paused: within two seconds nothing new is begun.")
}

async fn resume(State(board): State<Arc<Board>>) -> Result<Taken, Taken> {
    board.resume().await.map_err(failed)?;
    tracing::info!("resumed from the live page");
    taken("The run goes on.")
}

async fn limit(State(board): State<Arc<Board>>, body: Bytes) -> Result<Taken, Taken> {
    let order: Limit = read(&body)?;
    let Limit {
        rate, concurrency, ..
    } = order;
    if rate.is_some_and(|rate| !is_rate(rate)) {
        return Err(refused("rows per second: a number from 0.001 to 1e9"));
    }
    if concurrency.is_some_and(|most| !(1..=MOST_COPIES).contains(&most)) {
        return Err(refused(format!(
            "copies in flight: a whole number from 1 to {MOST_COPIES}"
        )));
    }
    if order.lift == (rate.is_some() || concurrency.is_some()) {
        return Err(refused("give a limit, or lift both"));
    }
    let limits = Limits { rate, concurrency };
    board.limit(order.lift, limits).await.map_err(failed)?;
    tracing::info!(?limits, lifted = order.lift, "limited from the live page");
    taken("The limits hold within two seconds.")
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Taken> {
    serde_json::from_slice(body).map_err(|error| refused(format!("not understood: {error}")))
}

/// It is shown in terminals and logs.
fn check_reason(reason: &str) -> Result<(), Taken> {
    if reason.chars().any(char::is_control) || reason.chars().count() > LONGEST_REASON {
        return Err(refused(format!(
            "reason: one line of at most {LONGEST_REASON} characters"
        )));
    }
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "the way each order ends")]
fn taken(words: &str) -> Result<Taken, Taken> {
    Ok((StatusCode::OK, words.to_owned()))
}

fn refused(words: impl Into<String>) -> Taken {
    (StatusCode::BAD_REQUEST, words.into())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: CatalogError) -> Taken {
    let words = format!("the order could not be written: {error}");
    (StatusCode::SERVICE_UNAVAILABLE, words)
}
