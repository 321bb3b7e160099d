//! The way to the collector: OTLP over the HTTP client that the AWS SDK brings, and a word about it when
//! it is barred.

use std::error::Error;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_http_client::{Connector, HttpClientError};
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use axum::body::Body;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use tokio::runtime::Handle;
use tokio::task::JoinError;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::settings::Export;
use crate::aws::error_chain;

/// More than any collector has to say.
const LONGEST_ANSWER_BYTES: usize = 64 * 1024;

/// How long the same trouble is not told again.
const QUIET: Duration = Duration::from_mins(5);

/// Where spans go.
#[derive(Debug)]
pub(super) struct Collector {
    connector: SharedHttpConnector,
    /// Where requests are made: the SDK asks for them on a thread of its own.
    runtime: Handle,
    timeout: Duration,
    reach: Reach,
}

impl Collector {
    /// A client whose requests are made on the current runtime.
    pub(super) fn new(export: &Export) -> Result<Self, HttpClientError> {
        let roots = match &export.authorities {
            None => TrustStore::default(),
            Some(pem) => TrustStore::empty().with_pem_certificate(pem.clone()),
        };
        let tls = TlsContext::builder().with_trust_store(roots).build()?;
        let connector = Connector::builder()
            .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
            .tls_context(tls)
            .build();
        Ok(Self {
            connector: SharedHttpConnector::new(connector),
            runtime: Handle::current(),
            timeout: export.timeout,
            reach: Reach::default(),
        })
    }

    async fn ask(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (connector, patience) = (self.connector.clone(), self.timeout);
        // The time, too, is that of the runtime.
        let asking = async move { timeout(patience, ask(connector, request)).await };
        let asked = AbortOnDropHandle::new(self.runtime.spawn(asking)).await?;
        asked.map_err(|_| format!("no answer within {patience:?}"))?
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.ask(request).await;
        // A request that ends with its runtime says nothing of the collector.
        if !matches!(&answer, Err(error) if error.is::<JoinError>()) {
            self.reach.note(trouble(&answer));
        }
        answer
    }
}

async fn ask(
    connector: SharedHttpConnector,
    request: Request<Bytes>,
) -> Result<Response<Bytes>, HttpError> {
    let request = HttpRequest::try_from(request.map(SdkBody::from))?;
    let answer = connector.call(request).await?.try_into_http1x()?;
    let (parts, body) = answer.into_parts();
    let body = axum::body::to_bytes(Body::new(body), LONGEST_ANSWER_BYTES).await?;
    Ok(Response::from_parts(parts, body))
}

/// Why an answer means that spans are lost; none when it does not.
fn trouble(answer: &Result<Response<Bytes>, HttpError>) -> Option<String> {
    match answer {
        Ok(answer) if answer.status().is_success() => None,
        Ok(answer) => Some(format!("the collector answers {}", answer.status())),
        Err(error) => {
            let error: &(dyn Error + 'static) = &**error;
            Some(error_chain(error))
        }
    }
}

/// Whether the collector can be reached, told when that changes.
#[derive(Default)]
struct Reach(Mutex<Told>);

#[derive(Default)]
struct Told {
    is_barred: bool,
    last: Option<Instant>,
}

/// What is to be said.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Barred,
    Open,
}

impl fmt::Debug for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reach")
    }
}

impl Reach {
    fn note(&self, trouble: Option<String>) {
        // Nothing that can panic runs under this lock.
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let word = told.hear(trouble.is_some(), Instant::now());
        drop(told);
        match word {
            Some(Word::Barred) => {
                let reason = trouble.unwrap_or_default();
                tracing::warn!(
                    reason,
                    "traces cannot be exported, and the work goes on without them: {reason}"
                );
            }
            Some(Word::Open) => tracing::info!("traces are exported again"),
            None => {}
        }
    }
}

impl Told {
    /// A collector that comes and goes is told once in a while, not each time.
    fn hear(&mut self, is_barred: bool, now: Instant) -> Option<Word> {
        if is_barred == self.is_barred {
            return None;
        }
        let is_quiet = self.last.is_some_and(|last| now - last < QUIET);
        if is_barred && is_quiet {
            return None;
        }
        self.is_barred = is_barred;
        self.last = Some(now);
        Some(if is_barred { Word::Barred } else { Word::Open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_comes_and_goes_is_told_once_in_a_while() {
        let mut told = Told::default();
        let began = Instant::now();
        let mut hear =
            |is_barred, seconds| told.hear(is_barred, began + Duration::from_secs(seconds));
        assert_eq!(hear(false, 0), None);
        assert_eq!(hear(true, 5), Some(Word::Barred));
        assert_eq!(hear(true, 10), None);
        assert_eq!(hear(true, 1000), None);
        assert_eq!(hear(false, 1005), Some(Word::Open));
        for second in (1010..1300).step_by(5) {
            assert_eq!(hear(second % 10 == 0, second), None);
        }
        assert_eq!(hear(true, 1310), Some(Word::Barred));
    }
}
