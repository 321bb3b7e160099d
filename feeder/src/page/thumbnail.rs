//! The newest moved images, as URLs that a browser may read for some minutes. The feeder itself reads
//! none of them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use aws_sdk_s3::presigning::PresigningConfig;
use bucket_brigade_common::ledger::Ledger;
use bucket_brigade_common::path_rule::PathRule;
use serde::Serialize;

use super::Subject;

/// Images shown.
const SHOWN: usize = 12;

/// How often new ones are looked for.
const LOOK: Duration = Duration::from_secs(10);

/// How long a URL can be read.
const VALID: Duration = Duration::from_mins(10);

/// When it is signed anew. Until then it stays the same, so that browsers fetch no image twice.
const SIGN_AGAIN: Duration = Duration::from_mins(5);

/// An image that moved.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Thumbnail {
    path: String,
    url: String,
    #[serde(skip)]
    signed: Instant,
}

/// Signs URLs of the destination bucket.
pub(super) struct Gallery {
    s3: aws_sdk_s3::Client,
    bucket: String,
    rule: PathRule,
    origin: String,
    shown: Mutex<(Option<Instant>, Vec<Thumbnail>)>,
}

impl Gallery {
    /// None, with a word in the log, when nothing can be signed.
    pub(super) async fn open(subject: &Subject) -> Option<Self> {
        let mut gallery = Self {
            s3: subject.s3.clone(),
            bucket: subject.destination_bucket.clone(),
            rule: subject.rule.clone(),
            origin: String::new(),
            shown: Mutex::default(),
        };
        gallery.origin = origin(&gallery.sign("origin").await?)?;
        Some(gallery)
    }

    /// Where the images come from, as `https://HOST`.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// The newest, newest first. While the database does not answer, those that were seen last.
    pub(super) async fn newest(&self, ledger: &Ledger) -> Vec<Thumbnail> {
        let (looked, shown) = self.lock().clone();
        if looked.is_some_and(|at| at.elapsed() < LOOK) {
            return shown;
        }
        let Ok(paths) = ledger.newest_moves(SHOWN).await else {
            return shown;
        };
        let mut known: HashMap<String, Thumbnail> = shown
            .into_iter()
            .map(|one| (one.path.clone(), one))
            .collect();
        let mut newest = Vec::new();
        for (old_path, path) in paths {
            let still_good = known
                .remove(&path)
                .filter(|one| one.signed.elapsed() < SIGN_AGAIN);
            let thumbnail = match still_good {
                Some(one) => Some(one),
                None => self.thumbnail(&old_path, path).await,
            };
            newest.extend(thumbnail);
        }
        *self.lock() = (Some(Instant::now()), newest.clone());
        newest
    }

    async fn thumbnail(&self, old_path: &str, path: String) -> Option<Thumbnail> {
        let route = self.rule.route(old_path).ok()?;
        Some(Thumbnail {
            path,
            url: self.sign(&route.destination_key).await?,
            signed: Instant::now(),
        })
    }

    async fn sign(&self, key: &str) -> Option<String> {
        let valid = PresigningConfig::expires_in(VALID).ok()?;
        let request = self.s3.get_object().bucket(&self.bucket).key(key);
        match request.presigned(valid).await {
            Ok(signed) => Some(signed.uri().to_owned()),
            Err(error) => {
                tracing::warn!(%error, "no URL can be signed for the thumbnails");
                None
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Option<Instant>, Vec<Thumbnail>)> {
        // Nothing that can panic runs under this lock.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scheme, host and port of a URL.
fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    Some(format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_no_path() {
        let origin = |url| origin(url).unwrap_or_default();
        assert_eq!(
            origin("https://b.s3.amazonaws.com/k?X=1"),
            "https://b.s3.amazonaws.com"
        );
        assert_eq!(origin("http://127.0.0.1:1?x"), "http://127.0.0.1:1");
    }
}
