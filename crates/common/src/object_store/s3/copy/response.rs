//! S3's answers in XML.

use std::borrow::Cow;

use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};

use crate::aws::exchange::unreadable;
use crate::aws::{RequestError, describe_status};

/// The elements of an answer that matter, as S3 wrote them.
#[derive(Debug, Default)]
pub(in crate::object_store::s3) struct XmlResponse {
    is_error: bool,
    pub etag: Option<String>,
    pub upload_id: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// # Errors
/// The error in the body, whatever the status: S3 may send its 200 before it has copied. Without one, what
/// the status says.
pub(super) fn read(status: u16, body: &[u8]) -> Result<XmlResponse, RequestError> {
    let is_success = (200..300).contains(&status);
    match parse(body) {
        Ok(response) if is_success && !response.is_error => Ok(response),
        Ok(response) if is_success && response.code.is_none() => {
            Err(unreadable("an error without a code".into()))
        }
        Err(_) if is_success && body.is_empty() => Ok(XmlResponse::default()),
        Err(error) if is_success => Err(unreadable(error.to_string())),
        Ok(_) | Err(_) => Err(read_refusal(status, body, None)),
    }
}

/// What the body says, or else the status.
pub(super) fn read_refusal(status: u16, body: &[u8], region: Option<&str>) -> RequestError {
    let response = parse(body).unwrap_or_default();
    if status == 503 && !body.is_empty() && response.code.is_none() {
        // A proxy's that has no store behind it: to be slower would not help.
        return unreadable(describe_status(status, None));
    }
    // A redirect's message does not say where the bucket is.
    let is_redirected = matches!(status, 301 | 307) && region.is_some();
    let message = response.message.as_deref().filter(|_| !is_redirected);
    RequestError::refused(status, response.code, message, region)
}

fn parse(body: &[u8]) -> Result<XmlResponse, XmlDecodeError> {
    let mut document = Document::try_from(body)?;
    let mut root = document.root_element()?;
    let mut response = XmlResponse {
        is_error: root.start_el().local() == "Error",
        ..XmlResponse::default()
    };
    while let Some(mut element) = root.next_tag() {
        match element.start_el().local() {
            "ETag" => response.etag = Some(text(&mut element)?),
            "UploadId" => response.upload_id = Some(text(&mut element)?),
            "Code" => response.code = Some(text(&mut element)?),
            "Message" => response.message = Some(text(&mut element)?),
            _ => {}
        }
    }
    // The decoder takes the end of the body for the end of every element, and half an ETag for one.
    if !is_whole(body, root.start_el().local()) {
        return Err(XmlDecodeError::custom("the answer is cut short"));
    }
    Ok(response)
}

/// Whether the body ends where its root element does.
fn is_whole(body: &[u8], root: &str) -> bool {
    let end = body.trim_ascii_end().strip_suffix(b">");
    let end = end.map(<[u8]>::trim_ascii_end);
    end.is_some_and(|end| end.ends_with(b"/") || end.ends_with(root.as_bytes()))
}

fn text(element: &mut ScopedDecoder<'_, '_>) -> Result<String, XmlDecodeError> {
    try_data(element).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aws::ErrorOrigin;
    use crate::object_store::s3::confirm_copy;

    const COPIED: &[u8] = br#"<?xml version="1.0" encoding="UTF-8"?>

<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;9b2c&quot;</ETag></CopyObjectResult>"#;

    #[test]
    fn only_an_etag_is_told_as_one() {
        let etag = |body| read(200, body).unwrap().etag;
        assert_eq!(etag(COPIED).as_deref(), Some("\"9b2c\""));
        assert_eq!(etag(b""), None);
        assert_eq!(etag(b"<CopyObjectResult/>"), None);
    }

    #[test]
    fn names_may_have_a_prefix_and_messages_more_lines() {
        let copied = b"<s3:CopyObjectResult xmlns:s3=\"a\"><s3:ETag>W/&#34;9b2c&#34;</s3:ETag></s3:CopyObjectResult >";
        let etag = read(200, copied).unwrap().etag.unwrap();
        assert_eq!(confirm_copy(Some(&etag)).unwrap().etag, "9b2c");
        let slow = b"<s3:Error xmlns:s3=\"a\"><s3:Code>SlowDown</s3:Code><s3:Message>Please reduce\nyour request rate.</s3:Message></s3:Error>";
        let error = read(200, slow).unwrap_err();
        assert_eq!(error.origin, ErrorOrigin::Service);
        assert_eq!(
            (&*error.code, &*error.message),
            ("SlowDown", "Please reduce")
        );
    }

    #[test]
    fn a_proxy_without_a_store_asks_for_no_slower_pace() {
        let page = b"<html>503 Service Temporarily Unavailable</html>";
        let origin = |body: &[u8]| read(503, body).unwrap_err().origin;
        assert_eq!(origin(page), ErrorOrigin::Transport);
        assert_eq!(origin(b"no healthy upstream"), ErrorOrigin::Transport);
        assert_eq!(origin(b""), ErrorOrigin::Service);
        let slow = b"<Error><Code>SlowDown</Code></Error>";
        assert_eq!(origin(slow), ErrorOrigin::Service);
    }

    #[test]
    fn half_an_answer_proves_nothing() {
        for length in 1..COPIED.len() {
            let error = read(200, &COPIED[..length]).unwrap_err();
            assert_eq!(
                error.origin,
                ErrorOrigin::Transport,
                "{length} bytes: {error:?}"
            );
        }
    }
}
