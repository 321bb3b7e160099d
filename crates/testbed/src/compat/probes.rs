//! Requests that show what a store honours. Each probe has keys of its own.

use anyhow::Result;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::http::{HttpRequest, HttpResponse};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    BucketVersioningStatus, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier,
    VersioningConfiguration,
};
use futures::future::join_all;

use super::store::Store;

const BUCKET: &str = "compat-probes";
const WRONG_ETAG: &str = "\"00000000000000000000000000000000\"";
const RACERS: usize = 8;

const CONDITIONAL_COPY: &str = "CopyObject with `If-None-Match: *`";
const CONDITIONAL_PUT: &str = "PutObject with `If-None-Match: *`";
const CARRIED_TAGS: &str = "a copy carries tags";
const HONOURED: &str = "honoured";

/// Whether the store knows tags.
pub(super) fn knows_tags(probes: &[ProbeResult]) -> bool {
    let mut probes = probes.iter();
    probes.any(|probe| probe.question == CARRIED_TAGS && probe.finding == "yes")
}

/// Whether a new object can be told from one that stands there already, by some request.
pub(super) fn honours_conditions(probes: &[ProbeResult]) -> bool {
    let is_honoured = |probe: &ProbeResult| probe.finding == HONOURED;
    let mut writes = probes.iter().filter(|probe| {
        let question = probe.question;
        question == CONDITIONAL_COPY || question == CONDITIONAL_PUT
    });
    writes.any(is_honoured)
}

/// What a store does, in a word or two.
pub(super) struct ProbeResult {
    pub(super) question: &'static str,
    pub(super) finding: String,
}

pub(super) async fn probe_store(store: &Store) -> Result<Vec<ProbeResult>> {
    let s3 = store.client();
    // It may be there from an earlier run.
    drop(s3.create_bucket().bucket(BUCKET).send().await);
    let mut results = Vec::new();
    let mut note = |question, finding: Result<String>| {
        let finding = finding.unwrap_or_else(|error| describe_error(&error));
        results.push(ProbeResult { question, finding });
    };
    note(CONDITIONAL_COPY, conditional_copy(&s3).await);
    note("eight conditional copies at once", copy_race(&s3).await);
    note(CONDITIONAL_PUT, conditional_put(&s3).await);
    note(
        "CompleteMultipartUpload with `If-None-Match: *`",
        conditional_complete(&s3).await,
    );
    note(
        "DeleteObject with `If-Match`",
        conditional_delete(&s3).await,
    );
    note(
        "CopyObject with `x-amz-copy-source-if-match`",
        conditional_source(&s3).await,
    );
    note("a copy in parts: its ETag", multipart_copy(&s3).await);
    note(
        "a copy carries content type and metadata",
        carried_properties(&s3).await,
    );
    note(CARRIED_TAGS, carried_tags(&s3).await);
    note("DeleteObjects", delete_objects(&s3).await);
    note("versions", versions(&s3).await);
    Ok(results)
}

/// In a few words.
pub(super) fn describe_error(error: &anyhow::Error) -> String {
    let text = format!("{error:#}");
    let code = text
        .split_once("code: \"")
        .and_then(|(_, rest)| rest.split('"').next());
    match code {
        Some(code) => code.to_owned(),
        None if text.contains("parsing XML") => "a response that is not S3's".into(),
        None => text,
    }
}

/// What became of a request whose condition does not hold.
fn describe_refusal<T, E: ProvideErrorMetadata>(
    outcome: &Result<T, SdkError<E, HttpResponse>>,
) -> String {
    let Err(error) = outcome else {
        return "ignored".into();
    };
    match error
        .raw_response()
        .map(|response| response.status().as_u16())
    {
        Some(409 | 412) => HONOURED.into(),
        Some(status) => format!("{status} {}", error.code().unwrap_or_default()),
        None => "no response".into(),
    }
}

async fn put(s3: &Client, key: &str, bytes: &str) -> Result<()> {
    let body = ByteStream::from(bytes.as_bytes().to_vec());
    s3.put_object()
        .bucket(BUCKET)
        .key(key)
        .body(body)
        .send()
        .await?;
    Ok(())
}

async fn conditional_copy(s3: &Client) -> Result<String> {
    put(s3, "copy/source", "new").await?;
    put(s3, "copy/destination", "old").await?;
    let copy = s3.copy_object().bucket(BUCKET).key("copy/destination");
    let copy = copy
        .copy_source(format!("{BUCKET}/copy/source"))
        .if_none_match("*");
    Ok(describe_refusal(&copy.send().await))
}

/// How many of several that may only create succeed.
async fn copy_race(s3: &Client) -> Result<String> {
    let key = unique_key("race");
    put(s3, "copy/source", "new").await?;
    let copies = (0..RACERS).map(|_| {
        let copy = s3.copy_object().bucket(BUCKET).key(&key);
        let copy = copy.copy_source(format!("{BUCKET}/copy/source"));
        copy.if_none_match("*").send()
    });
    let won = join_all(copies)
        .await
        .iter()
        .filter(|copy| copy.is_ok())
        .count();
    Ok(format!("{won} of {RACERS} succeed"))
}

async fn conditional_put(s3: &Client) -> Result<String> {
    put(s3, "put", "old").await?;
    let body = ByteStream::from_static(b"new");
    let put = s3.put_object().bucket(BUCKET).key("put").body(body);
    Ok(describe_refusal(&put.if_none_match("*").send().await))
}

async fn conditional_complete(s3: &Client) -> Result<String> {
    put(s3, "complete", "old").await?;
    let (upload, parts) = upload_one_part(s3, "complete").await?;
    let complete = s3
        .complete_multipart_upload()
        .bucket(BUCKET)
        .key("complete");
    let complete = complete.upload_id(&upload).multipart_upload(parts);
    let outcome = complete.if_none_match("*").send().await;
    if outcome.is_err() {
        let abort = s3.abort_multipart_upload().bucket(BUCKET).key("complete");
        drop(abort.upload_id(upload).send().await);
    }
    Ok(describe_refusal(&outcome))
}

/// An upload whose only part is copied from another object.
async fn upload_one_part(s3: &Client, key: &str) -> Result<(String, CompletedMultipartUpload)> {
    put(s3, "parts/source", "new").await?;
    let created = s3
        .create_multipart_upload()
        .bucket(BUCKET)
        .key(key)
        .customize()
        .mutate_request(state_empty_length)
        .send()
        .await?;
    let upload = created.upload_id.unwrap_or_default();
    let part = s3
        .upload_part_copy()
        .bucket(BUCKET)
        .key(key)
        .upload_id(&upload);
    let part = part
        .part_number(1)
        .copy_source(format!("{BUCKET}/parts/source"));
    let copied = part
        .customize()
        .mutate_request(state_empty_length)
        .send()
        .await?
        .copy_part_result;
    let etag = copied.and_then(|part| part.e_tag);
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(etag)
        .build();
    Ok((
        upload,
        CompletedMultipartUpload::builder().parts(part).build(),
    ))
}

async fn multipart_copy(s3: &Client) -> Result<String> {
    let key = unique_key("parts");
    let (upload, parts) = upload_one_part(s3, &key).await?;
    let complete = s3.complete_multipart_upload().bucket(BUCKET).key(&key);
    let complete = complete
        .upload_id(upload)
        .multipart_upload(parts)
        .send()
        .await?;
    let etag = complete.e_tag.unwrap_or_default();
    let is_empty = etag.trim_matches('"').is_empty();
    Ok(if is_empty {
        "empty, a HEAD has it"
    } else {
        "in the response"
    }
    .into())
}

async fn conditional_delete(s3: &Client) -> Result<String> {
    put(s3, "delete", "bytes").await?;
    let delete = s3.delete_object().bucket(BUCKET).key("delete");
    Ok(describe_refusal(&delete.if_match(WRONG_ETAG).send().await))
}

async fn conditional_source(s3: &Client) -> Result<String> {
    put(s3, "copy/source", "new").await?;
    let copy = s3.copy_object().bucket(BUCKET).key(unique_key("source"));
    let copy = copy.copy_source(format!("{BUCKET}/copy/source"));
    Ok(describe_refusal(
        &copy.copy_source_if_match(WRONG_ETAG).send().await,
    ))
}

async fn carried_properties(s3: &Client) -> Result<String> {
    let body = ByteStream::from_static(b"bytes");
    let put = s3.put_object().bucket(BUCKET).key("properties").body(body);
    put.content_type("image/webp")
        .metadata("owner", "7")
        .send()
        .await?;
    let copy = s3.copy_object().bucket(BUCKET).key("properties-copy");
    copy.copy_source(format!("{BUCKET}/properties"))
        .send()
        .await?;
    let head = s3
        .head_object()
        .bucket(BUCKET)
        .key("properties-copy")
        .send()
        .await?;
    let owner = head.metadata().and_then(|metadata| metadata.get("owner"));
    let is_whole = head.content_type() == Some("image/webp") && owner.is_some_and(|id| id == "7");
    Ok(yes_or_no(is_whole))
}

async fn carried_tags(s3: &Client) -> Result<String> {
    let body = ByteStream::from_static(b"bytes");
    let put = s3.put_object().bucket(BUCKET).key("tags").body(body);
    put.tagging("team=media").send().await?;
    let copy = s3.copy_object().bucket(BUCKET).key("tags-copy");
    copy.copy_source(format!("{BUCKET}/tags")).send().await?;
    let tags = s3
        .get_object_tagging()
        .bucket(BUCKET)
        .key("tags-copy")
        .send()
        .await;
    Ok(tags.map_or_else(
        |error| format!("not asked: {}", error.code().unwrap_or("no tags")),
        |tags| yes_or_no(tags.tag_set().len() == 1),
    ))
}

async fn delete_objects(s3: &Client) -> Result<String> {
    put(s3, "batch", "bytes").await?;
    let object = ObjectIdentifier::builder().key("batch").build()?;
    let batch = Delete::builder().objects(object).build()?;
    let deleted = s3
        .delete_objects()
        .bucket(BUCKET)
        .delete(batch)
        .send()
        .await;
    Ok(deleted.map_or_else(
        |error| format!("refused: {}", error.code().unwrap_or_default()),
        |deleted| yes_or_no(deleted.errors().is_empty()),
    ))
}

async fn versions(s3: &Client) -> Result<String> {
    let bucket = "compat-versions";
    drop(s3.create_bucket().bucket(bucket).send().await);
    let enabled = VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Enabled)
        .build();
    let enable = s3.put_bucket_versioning().bucket(bucket);
    if let Err(error) = enable.versioning_configuration(enabled).send().await {
        return Ok(format!("refused: {}", error.code().unwrap_or_default()));
    }
    let body = ByteStream::from_static(b"bytes");
    let put = s3
        .put_object()
        .bucket(bucket)
        .key("image")
        .body(body)
        .send()
        .await?;
    Ok(yes_or_no(put.version_id().is_some()))
}

/// A store that keeps its data between runs has the others.
fn unique_key(name: &str) -> String {
    format!("{name}/{:016x}", fastrand::u64(..))
}

/// Ceph asks for the length of an empty body, and the client states none.
fn state_empty_length(request: &mut HttpRequest) {
    request.headers_mut().insert("content-length", "0");
}

fn yes_or_no(is_so: bool) -> String {
    if is_so { "yes" } else { "no" }.into()
}
