//! Who may pause, resume and limit: requests with the token as `Authorization: Bearer TOKEN`. No form of another site can
//! set that header, and no browser adds it by itself.

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use bucket_brigade_common::settings::SecretString;
use subtle::ConstantTimeEq;

pub(super) async fn require_token(
    State(token): State<SecretString>,
    request: Request,
    next: Next,
) -> Response {
    if has_valid_token(request.headers(), &token) {
        return next.run(request).await;
    }
    let words = "this needs the STATUS_TOKEN\n";
    let headers = [(WWW_AUTHENTICATE, "Bearer")];
    (StatusCode::UNAUTHORIZED, headers, words).into_response()
}

const SCHEME: &[u8] = b"Bearer ";

/// The time it takes reveals nothing but the length.
fn has_valid_token(headers: &HeaderMap, token: &SecretString) -> bool {
    let given = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(SCHEME.len()))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(SCHEME));
    given.is_some_and(|(_, given)| given.ct_eq(token.expose_secret().as_bytes()).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_is_the_token() {
        let token = SecretString::from("0123456789abcdef".to_owned());
        let is_given = |value: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, value.parse().unwrap())]);
            has_valid_token(&headers, &token)
        };
        assert!(is_given("Bearer 0123456789abcdef"));
        assert!(is_given("bearer 0123456789abcdef"));
        for wrong in [
            "Bearer 0123456789abcdee",
            "Bearer 0123456789abcde",
            "Bearer 0123456789abcdef0",
            "Bearer ",
            "bearer0123456789abcdef",
            "0123456789abcdef",
            "",
        ] {
            assert!(!is_given(wrong), "{wrong}");
        }
        assert!(!super::has_valid_token(&HeaderMap::new(), &token));
    }
}
