//! A collector of traces on loopback: OTLP over HTTP, plain or by TLS, and what it was sent.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, Response};
use flate2::read::GzDecoder;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::span::Event;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

/// How it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    Takes,
    Answers(u16),
    Hangs,
}

/// What is said of a span or an event.
pub(crate) type Attributes = BTreeMap<String, String>;

/// A span as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) resource: Attributes,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) attributes: Attributes,
    pub(crate) events: Vec<(String, Attributes)>,
    pub(crate) is_failed: bool,
    pub(crate) began: u64,
    pub(crate) ended: u64,
}

impl Seen {
    pub(crate) fn says(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

struct Shared {
    manner: Mutex<Manner>,
    spans: Mutex<Vec<Seen>>,
    requests: Mutex<Vec<HeaderMap>>,
}

pub(crate) struct Collector {
    shared: Arc<Shared>,
    endpoint: String,
    serving: JoinHandle<()>,
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Collector {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    pub(crate) async fn by_tls(tls: TlsAcceptor) -> Self {
        Self::serve(Some(tls)).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            manner: Mutex::new(Manner::Takes),
            spans: Mutex::default(),
            requests: Mutex::default(),
        });
        let serving = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Self {
            shared,
            endpoint: format!("{scheme}://{address}"),
            serving,
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// The headers of every request so far.
    pub(crate) fn requests(&self) -> Vec<HeaderMap> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Every span so far, in the order of their beginnings.
    pub(crate) fn spans(&self) -> Vec<Seen> {
        let mut spans = self.shared.spans.lock().unwrap().clone();
        spans.sort_by_key(|span| span.began);
        spans
    }

    /// The spans of the trace that began when this row was fed.
    pub(crate) fn trace_of(&self, row: &str) -> Vec<Seen> {
        let spans = self.spans();
        let is_feed =
            |span: &&Seen| span.name == "feed" && span.says("bucket_brigade.row_id") == row;
        let trace = spans.iter().find(is_feed).unwrap().trace.clone();
        let of_trace = |span: &Seen| span.trace == trace;
        spans.into_iter().filter(of_trace).collect()
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => talk(stream, shared).await,
                Some(tls) => {
                    // A client that does not trust us hangs up.
                    if let Ok(stream) = tls.accept(stream).await {
                        talk(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let service = service_fn(|request| answer(Arc::clone(&shared), request));
    // An error here is the client's leaving.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), usize::MAX).await;
    shared.requests.lock().unwrap().push(parts.headers.clone());
    let manner = *shared.manner.lock().unwrap();
    match manner {
        Manner::Takes => {}
        Manner::Hangs => std::future::pending().await,
        Manner::Answers(status) => {
            let refusal = Response::builder().status(status);
            return Ok(refusal.body(Body::from("not now")).unwrap());
        }
    }
    assert_eq!(parts.uri.path(), "/v1/traces");
    let spans = decode(&parts.headers, &body.unwrap());
    shared.spans.lock().unwrap().extend(spans);
    Ok(Response::new(Body::empty()))
}

fn decode(headers: &HeaderMap, body: &Bytes) -> Vec<Seen> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut plain = Vec::new();
    if headers.get("content-encoding").is_some() {
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    } else {
        plain.extend_from_slice(body);
    }
    let request = ExportTraceServiceRequest::decode(&plain[..]).unwrap();
    request.resource_spans.into_iter().flat_map(seen).collect()
}

fn seen(of_resource: ResourceSpans) -> Vec<Seen> {
    let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
    let scopes = of_resource.scope_spans.into_iter();
    let spans = scopes.flat_map(|scope| scope.spans);
    spans.map(|span| one(span, resource.clone())).collect()
}

fn one(span: Span, resource: Attributes) -> Seen {
    // 2 is ERROR in OTLP.
    let is_failed = span.status.is_some_and(|status| status.code == 2);
    let event = |event: Event| (event.name, attributes(event.attributes));
    Seen {
        resource,
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        attributes: attributes(span.attributes),
        events: span.events.into_iter().map(event).collect(),
        is_failed,
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
    }
}

fn attributes(pairs: Vec<KeyValue>) -> Attributes {
    let mut all = Attributes::new();
    for KeyValue { key, value, .. } in pairs {
        let before = all.insert(key.clone(), text(value));
        assert_eq!(before, None, "{key} is said twice");
    }
    all
}

fn text(value: Option<AnyValue>) -> String {
    match value.and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    let halves = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    let digits = halves.filter_map(|half| char::from_digit(half.into(), 16));
    digits.collect()
}
