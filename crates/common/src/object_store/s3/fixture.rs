//! What tests share that respond to requests themselves.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::primitives::SdkBody;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_types::sdk_config::Builder;
use axum::body::Bytes;
use http_body::Frame;

use super::{S3Access, S3Options, S3Store};
use crate::path_rule::{MoveRoute, PathRule};

pub(crate) const SECRET: &str = "secret";

pub(crate) fn sdk() -> Builder {
    let credentials = Credentials::new("AKID", SECRET, Some("token".into()), None, "test");
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("eu-central-1"))
        .retry_config(RetryConfig::disabled())
        .credentials_provider(SharedCredentialsProvider::new(credentials))
}

pub(crate) async fn store(server: impl HttpConnector + 'static, timeout: Duration) -> S3Store {
    let connector = SharedHttpConnector::new(server);
    let access = S3Access::with_connector(&sdk().build(), true, timeout, connector);
    let source = access.bucket("SOURCE_BUCKET_NAME", "from", None);
    let destination = access.bucket("DESTINATION_BUCKET_NAME", "to", None);
    let (source, destination) = (source.await.unwrap(), destination.await.unwrap());
    S3Store::new(source, destination, S3Options::default())
}

pub(crate) fn route(key: &str) -> MoveRoute {
    let rule = PathRule::new("image/", "avatar/", None, None).unwrap();
    rule.route_for(&format!("image/{key}")).unwrap()
}

pub(crate) fn http_response(status: u16, body: impl Into<SdkBody>) -> HttpResponse {
    HttpResponse::new(status.try_into().unwrap(), body.into())
}

/// A body that arrives in frames, and then ends or stalls.
struct FramedBody {
    frames: VecDeque<Bytes>,
    stalls: bool,
}

impl http_body::Body for FramedBody {
    type Data = Bytes;
    type Error = std::io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<std::io::Result<Frame<Bytes>>>> {
        match self.frames.pop_front() {
            None if self.stalls => Poll::Pending,
            frame => Poll::Ready(frame.map(|frame| Ok(Frame::data(frame)))),
        }
    }
}

pub(crate) fn body(bytes: &[u8], frame_bytes: usize, stalls: bool) -> SdkBody {
    let frames = bytes.chunks(frame_bytes).map(Bytes::copy_from_slice);
    SdkBody::from_body_1_x(FramedBody {
        frames: frames.collect(),
        stalls,
    })
}
