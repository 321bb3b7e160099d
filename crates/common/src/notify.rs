//! Notifications: a small JSON POST to an operator's URL. They hold nothing up: a URL that does not answer costs
//! its notifications, and nothing else.

use std::time::Duration;

use reqwest::header::CONTENT_TYPE;
use reqwest::redirect::Policy;
use reqwest::{Client, Url};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::aws::error_chain;
use crate::ledger::feed_source::RunProgress;
use crate::preflight::PreflightError;
use crate::retry::Backoff;
use crate::settings::SecretString;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

const MAX_ATTEMPTS: u32 = 3;

const RETRY_BACKOFF: Backoff = Backoff {
    initial_delay: Duration::from_secs(1),
    max_delay: Duration::from_secs(5),
};

/// Notifications that wait; more are dropped.
const MAX_WAITING: usize = 100;

/// What is left at the end of a process may take so long.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// What has happened to a run.
#[derive(Debug, Clone)]
pub struct RunNotification {
    pub event: &'static str,
    /// The same for people, with details.
    pub words: String,
    pub run: i64,
    pub table: String,
    pub progress: RunProgress,
}

impl RunNotification {
    /// `text` is what chats show of a webhook.
    fn to_json(&self) -> String {
        let Self {
            event,
            words,
            run,
            table,
            progress,
        } = self;
        let counts = format!(
            "{} moved, {} changed by the application, {} failed",
            progress.moved, progress.changed, progress.failed
        );
        serde_json::json!({
            "event": event,
            "text": format!("run {run} ({table}): {words} ({counts})"),
            "run": run,
            "table": table,
            "in_scope": progress.in_scope,
            "fed": progress.fed,
            "moved": progress.moved,
            "changed": progress.changed,
            "failed": progress.failed,
        })
        .to_string()
    }
}

pub struct Notifier {
    waiting: mpsc::Sender<String>,
    sending: JoinHandle<()>,
}

impl Notifier {
    /// Sends to `url`, which [`parse_notify_url`] has read. Its path and query may be a secret: only the host is ever
    /// written.
    pub fn start(url: &SecretString) -> Result<Self, PreflightError> {
        let invalid = |problem: String| PreflightError::invalid("NOTIFY_URL", problem);
        let url = Url::parse(url.expose_secret());
        let url = url.map_err(|_| invalid("is not a URL".into()))?;
        let client = Client::builder()
            .timeout(REQUEST_TIMEOUT)
            .redirect(Policy::none())
            .build();
        let client = client.map_err(|error| invalid(error_chain(&error)))?;
        let (waiting, mut bodies) = mpsc::channel(MAX_WAITING);
        let sending = tokio::spawn(async move {
            while let Some(body) = bodies.recv().await {
                send_notification(&client, &url, body).await;
            }
        });
        Ok(Self { waiting, sending })
    }

    pub fn notify(&self, news: &RunNotification) {
        if self.waiting.try_send(news.to_json()).is_err() {
            tracing::warn!("a notification is dropped: those before it are not taken");
        }
    }

    /// Sends what is left.
    pub async fn finish(self) {
        drop(self.waiting);
        if timeout(FLUSH_TIMEOUT, self.sending).await.is_err() {
            tracing::warn!(
                "NOTIFY_URL: the last notifications are not sent within {FLUSH_TIMEOUT:?}"
            );
        }
    }
}

async fn send_notification(client: &Client, url: &Url, body: String) {
    for tries in 1..=MAX_ATTEMPTS {
        let request = client.post(url.clone()).body(body.clone());
        let request = request.header(CONTENT_TYPE, "application/json");
        let problem = match request.send().await {
            Ok(response) if response.status().is_success() => return,
            Ok(response) => response.status().to_string(),
            // With its URL the error would hold the secret.
            Err(error) => error_chain(&error.without_url()),
        };
        let is_last = tries == MAX_ATTEMPTS;
        if is_last {
            let host = url.host_str().unwrap_or_default();
            tracing::warn!("NOTIFY_URL ({host}): a notification could not be sent: {problem}");
        } else {
            sleep(RETRY_BACKOFF.delay_ceiling(tries)).await;
        }
    }
}

/// An `http` or `https` URL. No message holds its text.
pub fn parse_notify_url(text: &str) -> Result<Option<SecretString>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match Url::parse(text) {
        Ok(url) if ["http", "https"].contains(&url.scheme()) && url.has_host() => {
            Ok(Some(text.to_owned().into()))
        }
        _ => Err("is not a URL that begins with https:// or http://".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_are_taken_and_none_is_repeated() {
        for good in [
            "https://hooks.example/T0/s3cret",
            "http://127.0.0.1:9/x?token=s3cret",
        ] {
            assert!(parse_notify_url(good).unwrap().is_some());
        }
        assert!(parse_notify_url("").unwrap().is_none());
        for bad in [
            "s3cret",
            "ftp://a/s3cret",
            "https://",
            "mailto:s3cret@a",
            "https:/\u{0}s3cret",
        ] {
            assert!(!parse_notify_url(bad).unwrap_err().contains("s3cret"));
        }
    }
}
