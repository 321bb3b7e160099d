//! Streamed copies at a store of one object, which keeps what it is sent.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_smithy_runtime_api::client::http::{HttpConnector, HttpConnectorFuture};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::base64;
use md5::{Digest, Md5};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::hex;
use crate::object_store::s3::fixture::{self, http_response};
use crate::object_store::s3::{CopyMethod, S3Store};
use crate::object_store::{ObjectStore, StoreError};
use crate::path_rule::MoveRoute;

/// The memory is the process's.
static TURN: Mutex<()> = Mutex::const_new(());

const BAD_DIGEST: &str = "<Error><Code>BadDigest</Code></Error>";
const TOO_LARGE: &str = "<Error><Code>EntityTooLarge</Code></Error>";
const NO_MD5: &str = "<Error><Code>InvalidRequest</Code><Message>Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object requests with Object Lock parameters</Message></Error>";
const NO_TAGS: &str = "<Tagging><TagSet/></Tagging>";
const ONE_TAG: &str =
    "<Tagging><TagSet><Tag><Key>team</Key><Value>a b</Value></Tag></TagSet></Tagging>";
const UPLOAD: &str =
    "<InitiateMultipartUploadResult><UploadId>u 1</UploadId></InitiateMultipartUploadResult>";

/// What becomes of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Uploads {
    #[default]
    Written,
    /// They never end.
    Held,
    /// Another byte is written than was sent.
    Broken,
    /// They are too large, whatever their size.
    Refused,
}

#[expect(clippy::struct_excessive_bools, reason = "each may come alone")]
#[derive(Debug, Clone, Default)]
struct OneObject {
    bytes: Vec<u8>,
    /// In place of the MD5.
    etag: Option<&'static str>,
    uploads: Uploads,
    /// Whether some of the metadata fits into no header.
    keeps_metadata_back: bool,
    /// Whether an upload needs its MD5, as under Object Lock.
    wants_md5: bool,
    /// Whether it has one tag.
    is_tagged: bool,
    /// Whether reads count the tags.
    counts_tags: bool,
    written: Arc<parking_lot::Mutex<Vec<u8>>>,
    met: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl OneObject {
    fn of(size: usize) -> Self {
        Self {
            bytes: vec![7; size],
            ..Self::default()
        }
    }

    fn met(&self, what: &str) -> usize {
        let met = self.met.lock();
        met.iter().filter(|line| line.starts_with(what)).count()
    }

    fn md5(&self) -> [u8; 16] {
        Md5::digest(&self.bytes).into()
    }

    fn read(&self, request: &HttpRequest) -> HttpResponse {
        let etag = self.etag.map_or_else(|| hex(&self.md5()), str::to_owned);
        let bytes = if request.uri().contains("/to/") {
            self.written.lock().clone()
        } else {
            self.bytes.clone()
        };
        let length = bytes.len().to_string();
        let mut response = http_response(200, bytes);
        response.headers_mut().insert("content-length", length);
        response.headers_mut().insert("etag", format!("\"{etag}\""));
        response
            .headers_mut()
            .insert("x-amz-meta-owner", "ünal".to_owned());
        response.headers_mut().insert("expires", "never");
        if self.keeps_metadata_back {
            response.headers_mut().insert("x-amz-missing-meta", "1");
        }
        if self.counts_tags {
            let count = u8::from(self.is_tagged).to_string();
            let headers = response.headers_mut();
            headers.insert("x-amz-tagging-count", count);
        }
        response
    }

    async fn write(self, mut request: HttpRequest) -> HttpResponse {
        if self.uploads == Uploads::Held {
            std::future::pending::<()>().await;
        }
        if self.uploads == Uploads::Refused {
            return http_response(400, TOO_LARGE);
        }
        let bytes = ByteStream::new(request.take_body()).collect().await;
        let mut bytes = bytes.unwrap().to_vec();
        let is_broken = self.uploads == Uploads::Broken;
        bytes[0] ^= u8::from(is_broken);
        let md5: [u8; 16] = Md5::digest(&bytes).into();
        let header = |name| request.headers().get(name);
        if self.wants_md5 && header("content-md5").is_none() {
            return http_response(400, NO_MD5);
        }
        let sent = header("content-md5").is_none_or(|sent| sent == base64::encode(md5));
        assert_eq!(header("content-length"), Some(&*bytes.len().to_string()));
        if !sent && !is_broken {
            return http_response(400, BAD_DIGEST);
        }
        *self.written.lock() = bytes;
        let mut response = http_response(200, SdkBody::empty());
        response.headers_mut().insert("etag", hex(&md5));
        response
    }
}

impl HttpConnector for OneObject {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let line = format!("{} {}", request.method(), request.uri());
        self.met.lock().push(line.clone());
        let header = |name| request.headers().get(name);
        let is_whole =
            header("x-amz-meta-owner") == Some("ünal") && header("expires") == Some("never");
        match request.method() {
            "GET" if line.contains("?tagging") => {
                let tags = if self.is_tagged { ONE_TAG } else { NO_TAGS };
                HttpConnectorFuture::ready(Ok(http_response(200, tags)))
            }
            "GET" | "HEAD" => HttpConnectorFuture::ready(Ok(self.read(&request))),
            "POST" => {
                assert!(is_whole || line.contains("uploadId"));
                HttpConnectorFuture::ready(Ok(http_response(200, UPLOAD)))
            }
            "PUT" => {
                assert!(line.contains("partNumber") || is_whole);
                let tags = self.is_tagged.then_some("team=a%20b");
                assert!(line.contains("partNumber") || header("x-amz-tagging") == tags);
                let store = self.clone();
                HttpConnectorFuture::new(async move { Ok(store.write(request).await) })
            }
            _ => HttpConnectorFuture::ready(Ok(http_response(204, SdkBody::empty()))),
        }
    }
}

async fn store(object: &OneObject) -> S3Store {
    let mut store = fixture::store(object.clone(), Duration::from_hours(1)).await;
    store.options.method = CopyMethod::Stream;
    store
}

fn route() -> MoveRoute {
    fixture::route("a b.png")
}

/// How many uploads are begun where so many objects are to be copied at once; none waits with its object open.
async fn begun_uploads(object: OneObject, copies: usize) -> usize {
    let (store, mut tasks) = (store(&object).await, JoinSet::new());
    for _ in 0..copies {
        let store = store.clone();
        tasks.spawn(async move { store.copy(&route()).await });
    }
    sleep(Duration::from_secs(1)).await;
    assert_eq!(object.met("GET"), object.met("PUT"));
    object.met("PUT")
}

#[tokio::test(start_paused = true)]
async fn memory_is_bounded_whatever_the_objects_sizes() {
    let _turn = TURN.lock().await;
    for (size, begun) in [(4 << 10, 300), (256 << 10, 191), (1 << 20, 96)] {
        let object = OneObject {
            uploads: Uploads::Held,
            ..OneObject::of(size)
        };
        assert_eq!(begun_uploads(object, 300).await, begun, "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_proven_whatever_the_etag() {
    let _turn = TURN.lock().await;
    for size in [10, 600 << 10] {
        // That of an upload in parts, and one that only looks like an MD5.
        for (etag, uploads) in [
            (None, 1),
            (Some("0a-2"), 1),
            (Some("00000000000000000000000000000000"), 2),
        ] {
            let object = OneObject {
                etag,
                ..OneObject::of(size)
            };
            let copied = store(&object).await.copy(&route()).await.unwrap();
            assert_eq!(copied.etag, hex(&object.md5()));
            assert_eq!(object.met("PUT"), uploads, "{etag:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn tags_are_asked_for_where_no_answer_counts_them() {
    let _turn = TURN.lock().await;
    // AWS or not, the tag, whether reads count it, and the questions for the tags of two images.
    for (is_aws, is_tagged, counts_tags, questions) in [
        (false, true, false, 2),
        (false, true, true, 2),
        (false, false, true, 0),
        (false, false, false, 2),
        (true, true, true, 2),
        (true, false, false, 0),
    ] {
        let object = OneObject {
            is_tagged,
            counts_tags,
            ..OneObject::of(10)
        };
        let store = store(&object).await;
        let known = &store.source.habits.counts_tags;
        assert!(known.swap(is_aws, Ordering::Relaxed), "AWS counts them");
        for _ in 0..2 {
            store.copy(&route()).await.unwrap();
        }
        let met = object.met.lock();
        let asked = met.iter().filter(|line| line.contains("?tagging")).count();
        assert_eq!(asked, questions, "{is_aws} {is_tagged} {counts_tags}");
    }
}

#[tokio::test(start_paused = true)]
async fn under_object_lock_each_upload_has_its_md5() {
    let _turn = TURN.lock().await;
    let object = OneObject {
        etag: Some("0a-2"),
        wants_md5: true,
        ..OneObject::of(600 << 10)
    };
    for in_parts in [false, true] {
        let (object, store) = (object.clone(), store(&object).await);
        let before = object.met("PUT");
        for uploads in [2, 3] {
            object.written.lock().clear();
            if in_parts {
                // The fake completes none.
                store.copy_multipart(&route()).await.unwrap_err();
            } else {
                store.copy(&route()).await.unwrap();
            }
            assert_eq!(*object.written.lock(), object.bytes);
            assert_eq!(object.met("PUT") - before, uploads, "{in_parts}");
        }
    }
}

/// A proxy's, for example, which are served under the object's own headers.
#[tokio::test(start_paused = true)]
async fn bytes_that_contradict_an_etag_are_not_written_where_etags_are_md5s() {
    let _turn = TURN.lock().await;
    let sound = OneObject::of(10);
    let sound_store = store(&sound).await;
    sound_store.copy(&route()).await.unwrap();
    let other = OneObject {
        etag: Some("00000000000000000000000000000000"),
        ..OneObject::of(10)
    };
    let mut other_store = store(&other).await;
    other_store.source.habits = sound_store.source.habits;
    let error = other_store.copy(&route()).await.unwrap_err();
    assert_eq!(error.code(), "OtherBytes", "{error}");
    assert!(other.written.lock().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_has_no_etag_is_not_the_object() {
    let _turn = TURN.lock().await;
    let page = OneObject {
        etag: Some(""),
        ..OneObject::of(10)
    };
    let error = store(&page).await.copy(&route()).await.unwrap_err();
    assert_eq!(error.code(), "NoETag", "{error}");
    assert_eq!(page.met("PUT"), 0);
}

#[tokio::test(start_paused = true)]
async fn other_bytes_than_were_read_are_removed_again() {
    let _turn = TURN.lock().await;
    for etag in [None, Some("0a-2")] {
        let object = OneObject {
            etag,
            uploads: Uploads::Broken,
            ..OneObject::of(600 << 10)
        };
        let error = store(&object).await.copy(&route()).await.unwrap_err();
        assert_eq!(error.code(), "BrokenCopy");
        assert_eq!(object.met("DELETE"), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn metadata_that_no_header_holds_is_not_lost_in_silence() {
    let _turn = TURN.lock().await;
    let object = OneObject {
        keeps_metadata_back: true,
        ..OneObject::of(10)
    };
    let store = store(&object).await;
    for copied in [
        store.copy(&route()).await,
        store.copy_multipart(&route()).await,
    ] {
        assert_eq!(copied.unwrap_err().code(), "Unreadable");
    }
    assert_eq!(object.met("P"), 0);
}

#[tokio::test(start_paused = true)]
async fn an_upload_in_parts_that_is_given_up_leaves_nothing_behind() {
    let _turn = TURN.lock().await;
    let object = OneObject {
        uploads: Uploads::Held,
        ..OneObject::of(1 << 20)
    };
    let store = store(&object).await;
    let given_up = timeout(Duration::from_secs(1), store.copy_multipart(&route())).await;
    assert!(given_up.is_err());
    sleep(Duration::from_secs(1)).await;
    let aborts: Vec<String> = object.met.lock().clone();
    let abort = aborts.last().unwrap();
    assert!(
        abort.starts_with("DELETE") && abort.contains("uploadId=u%201"),
        "{abort}"
    );
}

/// Smaller ones may pass: it is this object's trouble, and no further try's.
#[tokio::test(start_paused = true)]
async fn an_object_too_large_for_the_store_in_parts_too_fails_for_good() {
    let _turn = TURN.lock().await;
    let object = OneObject {
        uploads: Uploads::Refused,
        ..OneObject::of(600 << 10)
    };
    let error = store(&object).await.copy_whole(&route()).await.unwrap_err();
    let is_permanent = matches!(error, StoreError::Permanent { .. });
    assert!(is_permanent && error.code() == "EntityTooLarge", "{error}");
}
