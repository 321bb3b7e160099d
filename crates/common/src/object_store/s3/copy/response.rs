//! S3's response to a copy.

use std::borrow::Cow;
use std::fmt::Display;

use aws_smithy_xml::decode::{Document, ScopedDecoder, XmlDecodeError, try_data};

use crate::aws::{ErrorOrigin, RequestError, code_for_status, first_line};

/// The elements of a response that matter.
#[derive(Debug, Default)]
struct CopyResponse {
    is_error: bool,
    etag: Option<String>,
    code: Option<String>,
    message: Option<String>,
}

/// The copy's `ETag`, as S3 wrote it; none where it wrote none.
///
/// # Errors
/// The error in the body, whatever the status: S3 may send its 200 before it has copied. Without one, what
/// the status says.
pub(super) fn read(status: u16, body: &[u8]) -> Result<Option<String>, RequestError> {
    let is_success = (200..300).contains(&status);
    match parse(body) {
        Ok(response) if is_success && !response.is_error => Ok(response.etag),
        Ok(response) if is_success && response.code.is_none() => {
            Err(unreadable(status, "an error without a code"))
        }
        Ok(response) => Err(refusal(status, response)),
        Err(_) if is_success && body.is_empty() => Ok(None),
        Err(error) if is_success => Err(unreadable(status, error)),
        Err(_) => Err(read_refusal(status, b"")),
    }
}

/// What the body says, or else the status.
pub(super) fn read_refusal(status: u16, body: &[u8]) -> RequestError {
    refusal(status, parse(body).unwrap_or_default())
}

/// The copy may have been made.
fn unreadable(status: u16, problem: impl Display) -> RequestError {
    RequestError {
        origin: ErrorOrigin::Transport,
        code: "UnreadableAnswer".into(),
        message: problem.to_string(),
        status,
    }
}

fn refusal(status: u16, response: CopyResponse) -> RequestError {
    let code = response.code;
    let message = response.message.filter(|message| !message.is_empty());
    let message = match message {
        Some(message) => first_line(&message),
        None if status == 403 => String::new(),
        None => format!("S3 answered {status} without a message"),
    };
    RequestError {
        origin: ErrorOrigin::Service,
        code: code.unwrap_or_else(|| code_for_status(status).to_owned()),
        message,
        status,
    }
}

fn parse(body: &[u8]) -> Result<CopyResponse, XmlDecodeError> {
    let mut document = Document::try_from(body)?;
    let mut root = document.root_element()?;
    let mut response = CopyResponse {
        is_error: root.start_el().matches("Error"),
        ..CopyResponse::default()
    };
    while let Some(mut element) = root.next_tag() {
        match element.start_el().local() {
            "ETag" => response.etag = Some(text(&mut element)?),
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
    end.is_some_and(|end| end.ends_with(b"/") || end.ends_with(root.as_bytes()))
}

fn text(element: &mut ScopedDecoder<'_, '_>) -> Result<String, XmlDecodeError> {
    try_data(element).map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COPIED: &[u8] = br#"<?xml version="1.0" encoding="UTF-8"?>

<CopyObjectResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>&quot;9b2c&quot;</ETag></CopyObjectResult>"#;

    const SLOW: &[u8] =
        b"<Error><Code>SlowDown</Code><Message>Please reduce\nyour request rate.</Message></Error>";

    #[test]
    fn only_an_etag_is_told_as_one() {
        assert_eq!(read(200, COPIED).unwrap().as_deref(), Some("\"9b2c\""));
        assert_eq!(read(200, b"").unwrap(), None);
        assert_eq!(read(200, b"<CopyObjectResult/>").unwrap(), None);
    }

    #[test]
    fn an_error_is_one_whatever_the_status() {
        for status in [200, 503] {
            let answer = read(status, SLOW).unwrap_err();
            assert_eq!(answer.origin, ErrorOrigin::Service);
            assert_eq!((answer.code.as_str(), answer.status), ("SlowDown", status));
            assert_eq!(answer.message, "Please reduce");
        }
        // A 200 whose error has no code says nothing of the object: as the SDK reads it.
        let answer = read(200, b"<Error><Message>?</Message></Error>").unwrap_err();
        assert_eq!(answer.origin, ErrorOrigin::Transport);
        // A result under the status of an error is none.
        let answer = read(500, COPIED).unwrap_err();
        assert_eq!(answer.code, "InternalError");
    }

    #[test]
    fn without_a_body_the_status_speaks() {
        for (status, code) in [
            (503, "ServiceUnavailable"),
            (412, "PreconditionFailed"),
            (301, "PermanentRedirect"),
        ] {
            assert_eq!(read(status, b"").unwrap_err().code, code);
            assert_eq!(read(status, b"<html>not XML").unwrap_err().code, code);
        }
    }

    #[test]
    fn half_an_answer_proves_nothing() {
        for length in 1..COPIED.len() {
            let answer = read(200, &COPIED[..length]).unwrap_err();
            assert_eq!(
                answer.origin,
                ErrorOrigin::Transport,
                "{length} bytes: {answer:?}"
            );
        }
    }
}
