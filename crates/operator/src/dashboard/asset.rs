//! The page, its script and its style, as they are in the binary, and what a browser may do with them.

use axum::Router;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderValue, Request};
use axum::middleware::{Next, from_fn};
use axum::routing::get;

const HTML: &str = "text/html; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SVG: &str = "image/svg+xml";

const UPLOT: &str = include_str!("../../page/uplot/uPlot.iife.min.js");
const UPLOT_CSS: &str = include_str!("../../page/uplot/uPlot.min.css");

const ASSETS: [(&str, &str, &str); 7] = [
    ("/", HTML, include_str!("../../page/page.html")),
    ("/page.css", CSS, include_str!("../../page/page.css")),
    ("/page.js", JS, include_str!("../../page/page.js")),
    ("/charts.js", JS, include_str!("../../page/charts.js")),
    ("/icon.svg", SVG, include_str!("../../page/icon.svg")),
    ("/uplot.js", JS, UPLOT),
    ("/uplot.css", CSS, UPLOT_CSS),
];

/// A route for each. Asked for anew each time: another version of the binary has another script.
pub(super) fn asset_routes() -> Router {
    ASSETS
        .into_iter()
        .fold(Router::new(), |router, (path, kind, content)| {
            let headers = [(CONTENT_TYPE, kind), (CACHE_CONTROL, "no-cache")];
            router.route(path, get(move || async move { (headers, content) }))
        })
}

/// Everything comes from the page's own origin, but images from that of the thumbnails as well.
pub(super) fn content_security_policy(images: Option<&str>) -> String {
    let images = images.unwrap_or_default();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
         img-src 'self' {images}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
}

/// The router, with headers on each answer that keep a browser to the policy.
pub(super) fn with_security_headers(router: Router, policy: &str) -> Router {
    let policy = HeaderValue::from_str(policy);
    let policy = policy.unwrap_or(HeaderValue::from_static("default-src 'self'"));
    router.layer(from_fn(move |request: Request<_>, next: Next| {
        let policy = policy.clone();
        async move {
            let mut response = next.run(request).await;
            let fixed = |text| HeaderValue::from_static(text);
            let headers: [(HeaderName, HeaderValue); 4] = [
                (CONTENT_SECURITY_POLICY, policy),
                (X_CONTENT_TYPE_OPTIONS, fixed("nosniff")),
                (X_FRAME_OPTIONS, fixed("DENY")),
                (REFERRER_POLICY, fixed("no-referrer")),
            ];
            response.headers_mut().extend(headers);
            response
        }
    }))
}
