//! A server in this process that records requests.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use parking_lot::Mutex;

use super::exchange::USER_AGENT;
use crate::object_store::s3::fixture::http_response;

pub(crate) const COPIED: &str =
    "<CopyObjectResult><ETag>&quot;9b2c&quot;</ETag></CopyObjectResult>";

pub(crate) const SKEWED: &str = "<Error><Code>RequestTimeTooSkewed</Code></Error>";

const SQS_SKEWED: &str = r#"{"__type": "com.amazon.coral.service#SignatureDoesNotMatch", "message": "Signature expired: 20261130T000000Z is now earlier than"}"#;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) uri: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    fn of(request: &HttpRequest) -> Self {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            method: request.method().to_owned(),
            uri: request.uri().to_owned(),
            headers: request.headers().iter().map(pair).collect(),
            body: request.body().bytes().unwrap_or_default().to_vec(),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        self.headers["user-agent"] == USER_AGENT
    }

    fn is_of_queue(&self) -> bool {
        self.headers.contains_key("x-amz-target")
    }

    /// Without what differs from request to request by its nature, and the name of the program.
    pub(crate) fn comparable(mut self) -> Self {
        for name in [
            "amz-sdk-invocation-id",
            "amz-sdk-request",
            "authorization",
            "x-amz-date",
            "user-agent",
            "x-amz-user-agent",
        ] {
            self.headers.remove(name);
        }
        self
    }

    /// Whether it is signed at this time, give or take a minute.
    fn is_of(&self, clock: SystemTime) -> bool {
        let minute = |clock: SystemTime| {
            let text = DateTime::from(clock).fmt(DateTimeFormat::DateTime);
            text.unwrap().replace(['-', ':'], "")[..13].to_owned()
        };
        let soon = clock + Duration::from_mins(1);
        let date = &self.headers["x-amz-date"];
        date.starts_with(&minute(clock)) || date.starts_with(&minute(soon))
    }
}

/// Records what it is sent. Its clock stands still.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    received: Arc<Mutex<Vec<Request>>>,
    response: Arc<Mutex<(u16, &'static str)>>,
    /// In its place, in this order.
    next: Arc<Mutex<VecDeque<(u16, &'static str)>>>,
    header: Arc<Mutex<Option<(&'static str, &'static str)>>>,
    clock: SystemTime,
}

impl Server {
    pub(crate) fn new(clock: SystemTime) -> Self {
        Self {
            received: Arc::default(),
            response: Arc::new(Mutex::new((200, COPIED))),
            next: Arc::default(),
            header: Arc::default(),
            clock,
        }
    }

    pub(crate) fn respond_with(&self, status: u16, body: &'static str) {
        *self.response.lock() = (status, body);
    }

    pub(crate) fn respond_first_with(&self, responses: &[(u16, &'static str)]) {
        self.next.lock().extend(responses);
    }

    pub(crate) fn add_header(&self, name: &'static str, value: &'static str) {
        *self.header.lock() = Some((name, value));
    }

    pub(crate) fn last(&self) -> Request {
        self.received.lock().last().unwrap().clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.received.lock().len()
    }
}

impl HttpConnector for Server {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = Request::of(&request);
        let next = self.next.lock().pop_front();
        let (status, body) = match next.unwrap_or(*self.response.lock()) {
            _ if request.is_of_queue() && !request.is_of(self.clock) => (403, SQS_SKEWED),
            _ if !request.is_of(self.clock) => (403, SKEWED),
            response => response,
        };
        self.received.lock().push(request);
        if status == 0 {
            return HttpConnectorFuture::new(std::future::pending());
        }
        let is_head = self.received.lock().last().unwrap().method == "HEAD";
        let mut response = http_response(status, if is_head { "" } else { body });
        response.headers_mut().insert("etag", "\"9b2c\"");
        if is_head {
            response.headers_mut().insert("content-length", "5");
        }
        response
            .headers_mut()
            .insert("x-amz-bucket-region", "eu-north-1");
        if let Some((name, value)) = *self.header.lock() {
            response.headers_mut().insert(name, value);
        }
        let date = DateTime::from(self.clock).fmt(DateTimeFormat::HttpDate);
        response.headers_mut().insert("date", date.unwrap());
        HttpConnectorFuture::ready(Ok(response))
    }
}
