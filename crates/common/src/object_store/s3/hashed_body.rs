//! A body that is given up when it stalls, and may be hashed as it passes.

use std::future::poll_fn;
use std::mem::replace;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use axum::body::Bytes;
use http_body::{Body, Frame, SizeHint};
use md5::{Digest, Md5};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

use super::access::StoreLabel;
use crate::aws::error_chain;
use crate::aws::exchange::TIMED_OUT;
use crate::object_store::StoreError;

/// A store that sends no byte for so long has fallen silent, however long a whole copy may take.
const STALL_LIMIT: Duration = Duration::from_secs(30);

/// Of what has passed so far.
pub(super) type SharedMd5 = Arc<Mutex<Md5>>;

/// Why a body has ended early, once it has: what it is sent on in does not tell.
pub(super) type BodyFailure = Arc<OnceLock<StoreError>>;

/// The bytes of a response.
pub(super) struct HashedBody {
    body: ByteStream,
    left: u64,
    hash: Option<SharedMd5>,
    stall: Pin<Box<Sleep>>,
    /// Whether a byte is waited for. While the other side takes none, nothing stalls here.
    is_waiting: bool,
    failure: BodyFailure,
    store: StoreLabel,
}

impl HashedBody {
    pub(super) fn new(body: SdkBody, size: u64, store: StoreLabel) -> Self {
        Self {
            body: ByteStream::new(body),
            left: size,
            hash: None,
            stall: Box::pin(sleep(STALL_LIMIT)),
            is_waiting: false,
            failure: BodyFailure::default(),
            store,
        }
    }

    #[must_use]
    pub(super) fn hashed(self, hash: SharedMd5) -> Self {
        let hash = Some(hash);
        Self { hash, ..self }
    }

    /// How many bytes are still to come.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    pub(super) fn failure(&self) -> BodyFailure {
        Arc::clone(&self.failure)
    }

    pub(super) async fn next(&mut self) -> Option<Result<Bytes, StoreError>> {
        let frame = poll_fn(|context| Pin::new(&mut *self).poll_frame(context)).await?;
        Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
    }

    pub(super) fn stalled(&self, limit: Duration) -> StoreError {
        let mut message = format!("no byte of an object has come for {limit:?}");
        self.store.append_to(&mut message);
        StoreError::transient(TIMED_OUT, message)
    }

    fn cut_short(&self, error: &(dyn std::error::Error + 'static)) -> StoreError {
        let mut message = error_chain(error);
        self.store.append_to(&mut message);
        StoreError::transient("BodyCutShort", message)
    }

    fn pass(&mut self, chunk: Bytes) -> Frame<Bytes> {
        if let Some(hash) = &self.hash {
            let mut hash = hash.lock();
            hash.update(&chunk);
        }
        let length = u64::try_from(chunk.len()).unwrap_or(u64::MAX);
        self.left = self.left.saturating_sub(length);
        Frame::data(chunk)
    }

    /// When it has been waited for a byte for too long.
    fn poll_stall(&mut self, context: &mut Context<'_>) -> Poll<StoreError> {
        if !replace(&mut self.is_waiting, true) {
            self.stall.as_mut().reset(Instant::now() + STALL_LIMIT);
        }
        ready!(self.stall.as_mut().poll(context));
        Poll::Ready(self.stalled(STALL_LIMIT))
    }
}

impl Body for HashedBody {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        let error = match Pin::new(&mut self.body).poll_next(context) {
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(chunk))) => {
                self.is_waiting = false;
                return Poll::Ready(Some(Ok(self.pass(chunk))));
            }
            Poll::Ready(Some(Err(error))) => self.cut_short(&error),
            Poll::Pending => ready!(self.poll_stall(context)),
        };
        let error = self.failure.get_or_init(|| error).clone();
        Poll::Ready(Some(Err(error)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

pub(super) fn finish(hash: &Mutex<Md5>) -> [u8; 16] {
    let hash = hash.lock();
    hash.clone().finalize().into()
}

pub(super) fn hex(md5: &[u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(*md5))
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;
    use crate::object_store::s3::fixture::body;

    #[tokio::test(start_paused = true)]
    async fn a_body_is_hashed_as_it_passes_and_given_up_when_it_stalls() {
        let hash = SharedMd5::default();
        let mut body = HashedBody::new(body(b"abc", 2, true), 4, StoreLabel::default());
        body = body.hashed(hash.clone());
        let failure = body.failure();
        assert!(body.next().await.unwrap().is_ok());
        // The other side takes its time: nothing is waited for.
        advance(STALL_LIMIT * 2).await;
        assert!(body.next().await.unwrap().is_ok());
        let began = Instant::now();
        let error = body.next().await.unwrap().unwrap_err();
        assert_eq!(began.elapsed().as_secs(), STALL_LIMIT.as_secs());
        assert!(!error.is_response() && failure.get().is_some(), "{error}");
        assert_eq!(hex(&finish(&hash)), "900150983cd24fb0d6963f7d28e17f72");
    }
}
