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
pub(crate) enum CollectorMode {
    Takes,
    Answers(u16),
    Hangs,
}

/// What is said of a span or an event.
pub(crate) type SpanAttributes = BTreeMap<String, String>;

/// A span as it was sent.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedSpan {
    pub(crate) resource: SpanAttributes,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    /// Empty for the first of a trace.
    pub(crate) parent: String,
    pub(crate) attributes: SpanAttributes,
    pub(crate) events: Vec<(String, SpanAttributes)>,
    pub(crate) is_failed: bool,
    pub(crate) began: u64,
    pub(crate) ended: u64,
}

impl ReceivedSpan {
    pub(crate) fn attribute(&self, key: &str) -> &str {
        self.attributes.get(key).map_or("", String::as_str)
    }
}

struct CollectorState {
    manner: Mutex<CollectorMode>,
    spans: Mutex<Vec<ReceivedSpan>>,
    requests: Mutex<Vec<HeaderMap>>,
}

pub(crate) struct TraceCollector {
    shared: Arc<CollectorState>,
    endpoint: String,
    serving: JoinHandle<()>,
}

impl Drop for TraceCollector {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl TraceCollector {
    pub(crate) async fn start() -> Self {
        Self::serve(None).await
    }

    pub(crate) async fn start_with_tls(tls: TlsAcceptor) -> Self {
        Self::serve(Some(tls)).await
    }

    async fn serve(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(CollectorState {
            manner: Mutex::new(CollectorMode::Takes),
            spans: Mutex::default(),
            requests: Mutex::default(),
        });
        let serving = tokio::spawn(accept_connections(listener, tls, Arc::clone(&shared)));
        Self {
            shared,
            endpoint: format!("{scheme}://{address}"),
            serving,
        }
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub(crate) fn set_mode(&self, manner: CollectorMode) {
        *self.shared.manner.lock().unwrap() = manner;
    }

    /// The headers of every request so far.
    pub(crate) fn requests(&self) -> Vec<HeaderMap> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Every span so far, in the order of their beginnings.
    pub(crate) fn spans(&self) -> Vec<ReceivedSpan> {
        let mut spans = self.shared.spans.lock().unwrap().clone();
        spans.sort_by_key(|span| span.began);
        spans
    }

    /// The spans of the trace that began when this row was fed.
    pub(crate) fn trace_of(&self, row: &str) -> Vec<ReceivedSpan> {
        let spans = self.spans();
        let is_feed = |span: &&ReceivedSpan| {
            span.name == "feed" && span.attribute("bucket_brigade.row_id") == row
        };
        let trace = spans.iter().find(is_feed).unwrap().trace.clone();
        let of_trace = |span: &ReceivedSpan| span.trace == trace;
        spans.into_iter().filter(of_trace).collect()
    }
}

async fn accept_connections(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<CollectorState>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                None => serve_connection(stream, shared).await,
                Some(tls) => {
                    // A client that does not trust us hangs up.
                    if let Ok(stream) = tls.accept(stream).await {
                        serve_connection(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve_connection(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    shared: Arc<CollectorState>,
) {
    let service = service_fn(|request| handle_request(Arc::clone(&shared), request));
    // An error here is the client's leaving.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

async fn handle_request(
    shared: Arc<CollectorState>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), usize::MAX).await;
    shared.requests.lock().unwrap().push(parts.headers.clone());
    let manner = *shared.manner.lock().unwrap();
    match manner {
        CollectorMode::Takes => {}
        CollectorMode::Hangs => std::future::pending().await,
        CollectorMode::Answers(status) => {
            let refusal = Response::builder().status(status);
            return Ok(refusal.body(Body::from("not now")).unwrap());
        }
    }
    assert_eq!(parts.uri.path(), "/v1/traces");
    let spans = decode_spans(&parts.headers, &body.unwrap());
    shared.spans.lock().unwrap().extend(spans);
    Ok(Response::new(Body::empty()))
}

fn decode_spans(headers: &HeaderMap, body: &Bytes) -> Vec<ReceivedSpan> {
    assert_eq!(headers["content-type"], "application/x-protobuf");
    let mut plain = Vec::new();
    if headers.get("content-encoding").is_some() {
        GzDecoder::new(&body[..]).read_to_end(&mut plain).unwrap();
    } else {
        plain.extend_from_slice(body);
    }
    let request = ExportTraceServiceRequest::decode(&plain[..]).unwrap();
    request
        .resource_spans
        .into_iter()
        .flat_map(spans_of_resource)
        .collect()
}

fn spans_of_resource(of_resource: ResourceSpans) -> Vec<ReceivedSpan> {
    let resource = collect_attributes(of_resource.resource.unwrap_or_default().attributes);
    let scopes = of_resource.scope_spans.into_iter();
    let spans = scopes.flat_map(|scope| scope.spans);
    spans
        .map(|span| received_span(span, resource.clone()))
        .collect()
}

fn received_span(span: Span, resource: SpanAttributes) -> ReceivedSpan {
    // 2 is ERROR in OTLP.
    let is_failed = span.status.is_some_and(|status| status.code == 2);
    let event = |event: Event| (event.name, collect_attributes(event.attributes));
    ReceivedSpan {
        resource,
        name: span.name,
        trace: hex(&span.trace_id),
        id: hex(&span.span_id),
        parent: hex(&span.parent_span_id),
        attributes: collect_attributes(span.attributes),
        events: span.events.into_iter().map(event).collect(),
        is_failed,
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
    }
}

fn collect_attributes(pairs: Vec<KeyValue>) -> SpanAttributes {
    let mut all = SpanAttributes::new();
    for KeyValue { key, value, .. } in pairs {
        let before = all.insert(key.clone(), value_text(value));
        assert_eq!(before, None, "{key} is said twice");
    }
    all
}

fn value_text(value: Option<AnyValue>) -> String {
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
