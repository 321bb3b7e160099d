//! Signature Version 4 as a server checks it, written from its description and not with the crate that
//! signs. Source: AWS General Reference, "Create a signed AWS API request".

use sha2::{Digest, Sha256};

use super::recording_server::Request;
use crate::object_store::s3::fixture::SECRET;

/// Whether the signature is right for the request, and covers all of it that a copy depends on.
pub(crate) fn is_signed(request: &Request) -> bool {
    let header = |name: &str| request.headers.get(name).map_or("", String::as_str);
    let authorization = header("authorization");
    let part = |name: &str| {
        let start = authorization.find(name).unwrap() + name.len();
        authorization[start..].split(", ").next().unwrap()
    };
    let (_, scope) = part("Credential=").split_once('/').unwrap();
    let names: Vec<&str> = part("SignedHeaders=").split(';').collect();
    let must = |name: &&String| name.starts_with("x-amz-") || name.starts_with("if-");
    if !request
        .headers
        .keys()
        .filter(must)
        .all(|name| names.contains(&name.as_str()) || name == "x-amz-user-agent")
    {
        return false;
    }
    let digest = hex(&Sha256::digest(canonical(request, &names)));
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{digest}",
        header("x-amz-date")
    );
    hex(&hmac(&signing_key(scope), &text)) == part("Signature=")
}

fn canonical(request: &Request, names: &[&str]) -> String {
    let (_, rest) = request.uri.split_once("://").unwrap();
    let (host, path_and_query) = rest.split_once('/').unwrap();
    let (path, query) = path_and_query
        .split_once('?')
        .unwrap_or((path_and_query, ""));
    let value = |name: &str| match name {
        "host" => host.to_owned(),
        _ => request.headers[name].trim().to_owned(),
    };
    let lines: Vec<String> = names
        .iter()
        .map(|name| format!("{name}:{}\n", value(name)))
        .collect();
    let headers = lines.concat();
    let hash = request.headers.get("x-amz-content-sha256").cloned();
    let hash = hash.unwrap_or_else(|| hex(&Sha256::digest(&request.body)));
    let method = &request.method;
    format!(
        "{method}\n/{path}\n{query}\n{headers}\n{}\n{hash}",
        names.join(";")
    )
}

fn signing_key(scope: &str) -> Vec<u8> {
    let first = format!("AWS4{SECRET}").into_bytes();
    scope.split('/').fold(first, |key, part| hmac(&key, part))
}

/// RFC 2104, for keys of at most a block.
fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let padded = |pad: u8| {
        let mut block = [pad; 64];
        block
            .iter_mut()
            .zip(key)
            .for_each(|(byte, key)| *byte ^= key);
        Sha256::new().chain_update(block)
    };
    let inner = padded(0x36).chain_update(text).finalize();
    padded(0x5c).chain_update(inner).finalize().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}
