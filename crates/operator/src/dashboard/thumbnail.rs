//! The newest moved images, as URLs that a browser may read for some minutes. The feeder itself reads
//! none of them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_s3::presigning::PresigningConfig;
use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{PostgresLedger, with_timeout};
use serde::Serialize;

use super::OwnRun;

const MAX_THUMBNAILS: usize = 12;

/// How often new ones are looked for.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

const URL_VALIDITY: Duration = Duration::from_mins(10);

/// When it is signed anew. Until then it stays the same, so that browsers fetch no image twice.
const RESIGN_AFTER: Duration = Duration::from_mins(5);

/// There is no index on the time of a move: each commit would have to write it. New rows stand at the
/// end of the table, and the end is found without reading the rest, so this costs the same however many
/// there are. A server before version 14 would read the whole table: it gets no rows.
const SELECT_NEWEST_MOVES: &str = "WITH tail AS MATERIALIZED (
        SELECT run_id, old_path, new_path, moved_at FROM bucket_brigade.moves
         WHERE current_setting('server_version_num')::int >= 140000
           AND ctid >= $2::tid)
    SELECT old_path, new_path FROM tail WHERE run_id = $1 ORDER BY moved_at DESC LIMIT $3";

const COUNT_PAGES: &str =
    "SELECT pg_relation_size('bucket_brigade.moves') / current_setting('block_size')::bigint";

/// Pages of the table that are read. Under load the server adds up to 64 at a time, the last of which are empty at first.
const TAIL_PAGES: i64 = 96;

#[derive(Debug, Clone, Serialize)]
pub(super) struct Thumbnail {
    path: String,
    url: String,
    #[serde(skip)]
    signed_at: Instant,
}

pub(super) struct ThumbnailSigner {
    s3: aws_sdk_s3::Client,
    bucket: String,
    ledger: PostgresLedger,
    image_origin: String,
    refreshed_at: Option<Instant>,
    shown: Vec<Thumbnail>,
}

impl ThumbnailSigner {
    /// None, which is logged, when nothing can be signed.
    pub(super) async fn open(run: &OwnRun, endpoint: Option<String>) -> Option<Self> {
        let mut signer = Self {
            s3: match endpoint {
                None => run.s3.clone(),
                // A signature holds for the host that it was made for.
                Some(url) => {
                    let config = run.s3.config().to_builder().endpoint_url(url);
                    aws_sdk_s3::Client::from_conf(config.build())
                }
            },
            bucket: run.destination_bucket.clone(),
            ledger: run.ledger.clone(),
            image_origin: String::new(),
            refreshed_at: None,
            shown: Vec::new(),
        };
        signer.image_origin = url_origin(&signer.presign_url("origin").await?)?;
        Some(signer)
    }

    /// Where the images come from, as `https://HOST`.
    pub(super) fn image_origin(&self) -> &str {
        &self.image_origin
    }

    /// The newest, newest first. While the database does not answer, those of the last time.
    pub(super) async fn newest_thumbnails(&mut self) -> &[Thumbnail] {
        let is_fresh = |at: Instant| at.elapsed() < REFRESH_INTERVAL;
        if self.refreshed_at.is_some_and(is_fresh) {
            return &self.shown;
        }
        let Ok(paths) = newest_moves(&self.ledger, MAX_THUMBNAILS).await else {
            return &self.shown;
        };
        // Before the first move each look asks.
        self.refreshed_at = (!paths.is_empty()).then(Instant::now);
        let known = self.shown.drain(..).map(|one| (one.path.clone(), one));
        let mut known: HashMap<String, Thumbnail> = known.collect();
        for (old_path, path) in paths {
            let still_good = known.remove(&path);
            let still_good = still_good.filter(|one| one.signed_at.elapsed() < RESIGN_AFTER);
            let thumbnail = match still_good {
                Some(one) => Some(one),
                None => self.sign_thumbnail(&old_path, path).await,
            };
            self.shown.extend(thumbnail);
        }
        &self.shown
    }

    async fn sign_thumbnail(&self, old_path: &str, path: String) -> Option<Thumbnail> {
        let route = self.ledger.rule().route_for(old_path).ok()?;
        Some(Thumbnail {
            path,
            url: self.presign_url(&route.destination_key).await?,
            signed_at: Instant::now(),
        })
    }

    async fn presign_url(&self, key: &str) -> Option<String> {
        let valid = PresigningConfig::expires_in(URL_VALIDITY).ok()?;
        let request = self.s3.get_object().bucket(&self.bucket).key(key);
        match request.presigned(valid).await {
            Ok(signed) => Some(signed.uri().to_owned()),
            Err(error) => {
                tracing::warn!(%error, "no URL can be signed for the thumbnails");
                None
            }
        }
    }
}

/// Scheme, host and port of a URL.
pub(super) fn url_origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || ".-_:[]".contains(letter);
    let is_url =
        ["http", "https"].contains(&scheme) && !host.is_empty() && host.chars().all(is_part);
    is_url.then(|| format!("{scheme}://{host}"))
}

/// Old and new path of the newest moves, newest first, `most` of them at most. None of them where the end of
/// the table holds moves of another run.
pub async fn newest_moves(
    ledger: &PostgresLedger,
    most: usize,
) -> Result<Vec<(String, String)>, StatementError> {
    let pages = sqlx::query_scalar(COUNT_PAGES).fetch_one(ledger.pool());
    let pages: i64 = with_timeout(pages).await?;
    let query = sqlx::query_as(SELECT_NEWEST_MOVES)
        .bind(ledger.run_id())
        .bind(format!("({},0)", (pages - TAIL_PAGES).max(0)))
        .bind(i64::try_from(most).unwrap_or(i64::MAX));
    with_timeout(query.fetch_all(ledger.pool())).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path() {
        let origin = |url| url_origin(url).unwrap_or_default();
        assert_eq!(
            origin("https://b.s3.amazonaws.com/k?X=1"),
            "https://b.s3.amazonaws.com"
        );
        assert_eq!(origin("http://127.0.0.1:1?x"), "http://127.0.0.1:1");
    }
}
