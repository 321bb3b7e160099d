//! Bodies of answers: what is at hand, or so many zeros, of which all objects are made.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

static ZEROS: [u8; 256 << 10] = [0; 256 << 10];

#[derive(Debug)]
pub(super) enum StubBody {
    Full(Full<Bytes>),
    Zeros(u64),
}

impl Body for StubBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let left = match &mut *self {
            Self::Full(body) => return Pin::new(body).poll_frame(context),
            Self::Zeros(0) => return Poll::Ready(None),
            Self::Zeros(left) => left,
        };
        let size = usize::try_from(*left)
            .unwrap_or(usize::MAX)
            .min(ZEROS.len());
        *left -= size as u64;
        let chunk = Bytes::from_static(&ZEROS[..size]);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(body) => body.is_end_stream(),
            Self::Zeros(left) => *left == 0,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(body) => body.size_hint(),
            Self::Zeros(left) => SizeHint::with_exact(*left),
        }
    }
}

/// So many zeros, a chunk at a time.
pub(super) fn zeros(size: u64) -> impl Iterator<Item = &'static [u8]> {
    let (whole, rest) = (size / ZEROS.len() as u64, size % ZEROS.len() as u64);
    let rest = usize::try_from(rest).unwrap_or_default();
    (0..whole).map(|_| &ZEROS[..]).chain([&ZEROS[..rest]])
}
