//! Conditions on writes that S3 evaluates and the backend ignores: a copy over one object only, and the
//! removal of many, each only while it is the one that was meant.

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response};

use super::backend::{BackendCall, CloudBackend};
use super::operation::{BucketKey, CloudOperation};
use super::response::{self, CloudResponse};

/// Whether the object at the operation's place is not the one that `If-Match` names.
pub(super) fn fails_if_match(
    backend: &CloudBackend,
    operation: &CloudOperation,
    headers: &HeaderMap,
) -> bool {
    let wanted = headers
        .get("if-match")
        .and_then(|value| value.to_str().ok());
    wanted.is_some_and(|wanted| {
        backend.object_etag(&operation.target).as_deref() != Some(unquote_etag(wanted))
    })
}

/// Performs a `DeleteObjects` without the entries whose ETag is another object's, and answers these as S3 does.
pub(super) async fn delete_objects(
    backend: &CloudBackend,
    operation: &CloudOperation,
    call: BackendCall,
) -> CloudResponse {
    let (mut parts, body) = call.request.into_parts();
    let body = response::collect_body(body).await;
    let document = String::from_utf8_lossy(&body).into_owned();
    let sifted = ConditionalEntries::split(&document, |key| {
        backend.object_etag(&BucketKey {
            bucket: operation.target.bucket.clone(),
            key: key.to_owned(),
        })
    });
    if sifted.kept == 0 {
        return response::s3_response(&format!(
            "<DeleteResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">{}</DeleteResult>",
            sifted.errors
        ));
    }
    remove_body_headers(&mut parts.headers);
    let request = Request::from_parts(parts, Body::from(sifted.kept_document));
    let peer = call.peer;
    let given = backend.dispatch_call(BackendCall { peer, request }).await;
    add_errors(given, &sifted.errors).await
}

/// What is said of a body that is not sent on.
fn remove_body_headers(headers: &mut HeaderMap) {
    let of_the_body = |name: &str| {
        name == "content-length" || name == "content-md5" || name.starts_with("x-amz-checksum-")
    };
    let names = headers.keys().filter(|name| of_the_body(name.as_str()));
    for name in names.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// A request's entries, by what becomes of them.
struct ConditionalEntries {
    /// The document without those that are refused.
    kept_document: String,
    kept: usize,
    /// What is answered of those that are.
    errors: String,
}

impl ConditionalEntries {
    fn split(document: &str, etag_of: impl Fn(&str) -> Option<String>) -> Self {
        let (mut rest, mut errors, mut kept) = (String::new(), String::new(), 0);
        let mut left = document;
        while let Some(start) = left.find("<Object>") {
            let end = left
                .find("</Object>")
                .map_or(left.len(), |end| end + "</Object>".len());
            let entry = &left[start..end];
            rest.push_str(&left[..start]);
            left = &left[end..];
            if let Some(error) = entry_error(entry, &etag_of) {
                errors.push_str(&error);
            } else {
                kept += 1;
                rest.push_str(entry);
            }
        }
        rest.push_str(left);
        Self {
            kept_document: rest,
            kept,
            errors,
        }
    }
}

fn entry_error(entry: &str, etag_of: &impl Fn(&str) -> Option<String>) -> Option<String> {
    let wanted = unescape_xml(xml_element(entry, "ETag")?);
    let key = xml_element(entry, "Key").unwrap_or_default();
    let found = etag_of(&unescape_xml(key));
    let code = match found {
        Some(etag) if etag == unquote_etag(&wanted) => return None,
        Some(_) => "PreconditionFailed",
        None => "NoSuchKey",
    };
    Some(format!(
        "<Error><Key>{key}</Key><Code>{code}</Code><Message>the condition does not hold</Message></Error>"
    ))
}

async fn add_errors(given: CloudResponse, errors: &str) -> CloudResponse {
    let (mut parts, body) = given.into_parts();
    let body = response::collect_body(body).await;
    let document = String::from_utf8_lossy(&body);
    let document = document.replace("</DeleteResult>", &format!("{errors}</DeleteResult>"));
    parts.headers.remove("content-length");
    Response::from_parts(parts, Body::from(document))
}

fn xml_element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let length = text[start..].find(&format!("</{name}>"))?;
    Some(&text[start..start + length])
}

fn unescape_xml(text: &str) -> String {
    let pairs = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&apos;", "'"),
        ("&#39;", "'"),
    ];
    let text = pairs
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    // The last, so that nothing is unescaped twice.
    text.replace("&amp;", "&")
}

fn unquote_etag(etag: &str) -> &str {
    etag.trim_matches('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_split_by_their_etags() {
        let document = "<Delete><Object><Key>a&amp;b</Key><ETag>&quot;1&quot;</ETag></Object>\
            <Object><Key>c</Key><ETag>\"2\"</ETag></Object><Object><Key>d</Key></Object>\
            <Object><Key>e</Key><ETag>3</ETag></Object><Quiet>false</Quiet></Delete>";
        let sifted = ConditionalEntries::split(document, |key| match key {
            "a&b" => Some("1".into()),
            "c" => Some("another".into()),
            _ => None,
        });
        assert_eq!(sifted.kept, 2);
        assert!(
            sifted.kept_document.contains("a&amp;b")
                && sifted.kept_document.contains("<Key>d</Key>")
        );
        assert!(
            !sifted.kept_document.contains("<Key>c</Key>")
                && sifted.kept_document.ends_with("</Delete>")
        );
        assert!(
            sifted
                .errors
                .contains("<Key>c</Key><Code>PreconditionFailed")
        );
        assert!(sifted.errors.contains("<Key>e</Key><Code>NoSuchKey"));
    }
}
