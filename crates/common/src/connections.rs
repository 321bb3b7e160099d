//! HTTP connections that are all given up when one of them falls silent.
//!
//! A failover or a NAT that forgets drops connections without a word. The pool hands out idle ones, and each
//! that is dead would cost the time limit of a request, one after the other: the next request connects anew.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::Provider;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::http::Headers;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The SDK's own. Source: `aws-smithy-runtime`, `DEFAULT_CONNECT_TIMEOUT`.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(3100);

/// A request that is given up after that long met silence; what is stopped earlier was not waited for.
const SILENCE: Duration = Duration::from_secs(4);

/// A set of connections that is replaced when a request is given up.
#[derive(Clone)]
pub(crate) struct RenewedConnections {
    connect: Arc<dyn Fn() -> SharedHttpConnector + Send + Sync>,
    current: Arc<Mutex<(u64, SharedHttpConnector)>>,
}

impl RenewedConnections {
    pub(crate) fn new() -> Self {
        Self::made_by(|| {
            let settings = HttpConnectorSettings::builder().connect_timeout(CONNECT_TIMEOUT);
            let connector = Connector::builder()
                .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
                .proxy_config(ProxyConfig::from_env())
                .connector_settings(settings.build());
            SharedHttpConnector::new(connector.build())
        })
    }

    pub(crate) fn made_by(
        connect: impl Fn() -> SharedHttpConnector + Send + Sync + 'static,
    ) -> Self {
        let current = Arc::new(Mutex::new((0, connect())));
        Self {
            connect: Arc::new(connect),
            current,
        }
    }

    /// Requests of that generation that are under way go on.
    fn renew(&self, generation: u64) {
        if self.current.lock().0 != generation {
            return;
        }
        let fresh = (self.connect)();
        let mut current = self.current.lock();
        if current.0 == generation {
            tracing::debug!("a connection fell silent: connecting anew");
            *current = (generation + 1, fresh);
        }
    }
}

impl HttpConnector for RenewedConnections {
    fn call(&self, mut request: HttpRequest) -> HttpConnectorFuture {
        state_empty_length(&mut request);
        let (generation, connector) = self.current.lock().clone();
        let mut silence = SilenceGuard {
            connections: self.clone(),
            generation,
            sent: Some(Instant::now()),
        };
        let call = connector.call(request);
        HttpConnectorFuture::new(async move {
            let mut response = call.await;
            silence.disarm();
            if let Ok(response) = &mut response {
                mark_foreign_bytes(response.headers_mut());
            }
            response
        })
    }
}

/// Without a body a request goes out without its length, which Ceph (16.2) refuses of an upload in parts:
/// 411 `MissingContentLength`.
fn state_empty_length(request: &mut HttpRequest) {
    let is_empty = request.body().content_length() == Some(0);
    let has_length = matches!(request.method(), "POST" | "PUT");
    if has_length && is_empty && !request.headers().contains_key("content-length") {
        request.headers_mut().insert("content-length", "0");
    }
}

/// A private-use character for each byte of a header that is not UTF-8: the SDK takes such a response for
/// unreadable as a whole, and with it the object.
const FIRST_MARK: u32 = 0xe000;

fn mark_foreign_bytes(headers: &mut Headers) {
    let foreign = headers.iter_bytes();
    let foreign = foreign.filter(|(_, value)| std::str::from_utf8(value).is_err());
    let mark = |byte: &u8| match byte {
        0..0x80 => char::from(*byte),
        _ => char::from_u32(FIRST_MARK + u32::from(*byte)).unwrap_or('?'),
    };
    let marked: Vec<(String, String)> = foreign
        .map(|(name, value)| (name.to_owned(), value.iter().map(mark).collect()))
        .collect();
    for (name, value) in marked {
        drop(headers.try_insert(name, value));
    }
}

/// Whether a header's value was no UTF-8.
pub(crate) fn has_marked_byte(value: &str) -> bool {
    value.contains(|c| (FIRST_MARK + 0x80..FIRST_MARK + 0x100).contains(&u32::from(c)))
}

impl fmt::Debug for RenewedConnections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenewedConnections").finish_non_exhaustive()
    }
}

/// Time limits drop the request: that is how it is known that one was reached.
struct SilenceGuard {
    connections: RenewedConnections,
    generation: u64,
    /// None once there is a response, or an error.
    sent: Option<Instant>,
}

impl SilenceGuard {
    fn disarm(&mut self) {
        self.sent = None;
    }
}

impl Drop for SilenceGuard {
    fn drop(&mut self) {
        if self.sent.is_some_and(|sent| sent.elapsed() >= SILENCE) {
            self.connections.renew(self.generation);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use aws_sdk_s3::primitives::SdkBody;
    use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
    use tokio::time::timeout;

    use super::*;

    /// Connections that respond, or are dead.
    #[derive(Debug)]
    struct Connections {
        are_dead: bool,
    }

    impl HttpConnector for Connections {
        fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
            if self.are_dead {
                return HttpConnectorFuture::new(std::future::pending());
            }
            let response = HttpResponse::new(200.try_into().unwrap(), SdkBody::empty());
            HttpConnectorFuture::ready(Ok(response))
        }
    }

    #[test]
    fn what_has_no_body_states_its_length() {
        let length = |method: &str, body: &'static str| {
            let mut request = HttpRequest::new(SdkBody::from(body));
            request.set_method(method).unwrap();
            state_empty_length(&mut request);
            request.headers().get("content-length").map(str::to_owned)
        };
        assert_eq!(length("POST", ""), Some("0".into()));
        assert_eq!(length("PUT", ""), Some("0".into()));
        assert_eq!(length("POST", "body"), None);
        assert_eq!(length("GET", ""), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_fell_silent_is_not_used_again() {
        let made = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&made);
        let connections = RenewedConnections::made_by(move || {
            let are_dead = counted.fetch_add(1, Ordering::Relaxed) == 0;
            SharedHttpConnector::new(Connections { are_dead })
        });
        let call = |limit| timeout(limit, connections.call(HttpRequest::empty()));
        // A stop is no silence.
        assert!(call(Duration::from_secs(1)).await.is_err());
        assert_eq!(made.load(Ordering::Relaxed), 1);
        let limit = Duration::from_secs(5);
        let (first, second) = tokio::join!(call(limit), call(limit));
        assert!(first.is_err() && second.is_err());
        // Once for both.
        assert_eq!(made.load(Ordering::Relaxed), 2);
        assert!(call(limit).await.unwrap().is_ok());
    }
}
