//! Which names the page answers to. A browser that is led to this address by another site's name (DNS
//! rebinding) sends that name, and lets that site read what it gets.

use std::net::IpAddr;
use std::sync::Arc;

use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};

/// Refuses requests for other names than localhost, IP addresses and `name`.
pub(super) fn with_checked_host(router: Router, name: Option<String>) -> Router {
    let name: Option<Arc<str>> = name.map(Into::into);
    router.layer(from_fn(move |request: Request, next: Next| {
        let is_own = is_own_host(&request, name.as_deref());
        async move {
            if is_own {
                next.run(request).await
            } else {
                refusal()
            }
        }
    }))
}

fn refusal() -> Response {
    let why = "this page is served to localhost, IP addresses and STATUS_HOST alone\n";
    (StatusCode::MISDIRECTED_REQUEST, why).into_response()
}

fn is_own_host(request: &Request, name: Option<&str>) -> bool {
    let header = request.headers().get(HOST).map(|host| host.to_str());
    // A request that names no host is no browser's.
    let Some(header) = header else { return true };
    let Ok(Ok(authority)) = header.map(str::parse::<Authority>) else {
        return false;
    };
    let host = authority.host().trim_end_matches('.');
    let address = host.trim_start_matches('[').trim_end_matches(']');
    address.parse::<IpAddr>().is_ok()
        || host.eq_ignore_ascii_case("localhost")
        || name.is_some_and(|name| host.eq_ignore_ascii_case(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    fn is_served(host: &str) -> bool {
        let request = Request::builder().header(HOST, host);
        let request = request.body(Body::empty()).unwrap();
        is_own_host(&request, Some("Brigade.example.com"))
    }

    #[test]
    fn only_own_names_and_addresses_are_served() {
        for host in [
            "localhost",
            "LOCALHOST:9101",
            "127.0.0.1:9101",
            "[::1]:9101",
            "10.1.2.3",
            "brigade.example.com",
            "brigade.example.com.:80",
        ] {
            assert!(is_served(host), "{host}");
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:9101",
            "brigade.example.com.evil",
            "",
            "a b",
        ] {
            assert!(!is_served(host), "{host}");
        }
    }
}
