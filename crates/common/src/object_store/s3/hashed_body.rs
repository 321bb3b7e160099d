//! A body that may be hashed as it passes.

use std::io::{Error, ErrorKind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use md5::{Digest, Md5};
use tokio::time::{Instant, Sleep, sleep};

/// Of what has passed so far.
pub(super) type SharedMd5 = Arc<Mutex<Md5>>;

/// Given up when it stalls.
pub(super) struct HashedBody {
    source: ByteStream,
    left: u64,
    hash: Option<SharedMd5>,
    limit: Duration,
    stall: Pin<Box<Sleep>>,
}

impl HashedBody {
    pub(super) fn new(
        source: SdkBody,
        size: u64,
        hash: Option<SharedMd5>,
        limit: Duration,
    ) -> Self {
        Self {
            source: ByteStream::new(source),
            left: size,
            hash,
            limit,
            stall: Box::pin(sleep(limit)),
        }
    }

    fn pass(&mut self, chunk: Bytes) -> Frame<Bytes> {
        if let Some(hash) = &self.hash {
            let mut hash = hash.lock().unwrap_or_else(PoisonError::into_inner);
            hash.update(&chunk);
        }
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(length);
        self.stall.as_mut().reset(Instant::now() + self.limit);
        Frame::data(chunk)
    }
}

impl Body for HashedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.source).poll_next(context) {
            Poll::Ready(chunk) => {
                let chunk = chunk.map(|chunk| chunk.map_err(Error::other));
                Poll::Ready(chunk.map(|chunk| chunk.map(|chunk| self.pass(chunk))))
            }
            Poll::Pending => {
                let stalled = self.stall.as_mut().poll(context);
                stalled.map(|()| Some(Err(ErrorKind::TimedOut.into())))
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

pub(super) fn finish(hash: &Mutex<Md5>) -> [u8; 16] {
    let hash = hash.lock().unwrap_or_else(PoisonError::into_inner);
    hash.clone().finalize().into()
}

pub(super) fn hex(md5: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*md5))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::object_store::s3::fixture::body;

    #[tokio::test(start_paused = true)]
    async fn a_body_is_hashed_as_it_passes_and_given_up_when_it_stalls() {
        let stalling = body(b"abc", 3, true);
        let hash = SharedMd5::default();
        let mut body = HashedBody::new(stalling, 4, Some(hash.clone()), Duration::from_mins(1));
        let mut next = async || poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
        assert!(next().await.unwrap().is_ok());
        let error = next().await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(hex(&finish(&hash)), "900150983cd24fb0d6963f7d28e17f72");
    }
}
