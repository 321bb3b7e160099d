//! Requests whose bodies, or whose responses' bodies, are an object's bytes.

use std::borrow::Cow;
use std::time::Duration;

use aws_sdk_s3::primitives::SdkBody;
use aws_sigv4::http_request::SignableBody;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use tokio::time::timeout;

use super::{CopyClient, lost, read_body, response};
use crate::aws::RequestError;
use crate::permissions::{DeniedResources, describe_denial};

/// Names in lower case.
pub(in crate::object_store::s3) type RequestHeaders = Vec<(Cow<'static, str>, String)>;

/// An upload, or a part of one.
pub(in crate::object_store::s3) struct PutRequest<'a> {
    pub key: &'a str,
    /// With its `?`, where there is one.
    pub query: &'a str,
    pub headers: RequestHeaders,
    pub body: SdkBody,
    pub size: u64,
    /// When it is given up.
    pub limit: Duration,
}

impl CopyClient {
    /// An object's headers; its body is still to arrive.
    ///
    /// # Errors
    /// What S3 answered, what became of the request, or why it was not sent.
    pub(in crate::object_store::s3) async fn get_object(
        &self,
        key: &str,
        headers: RequestHeaders,
    ) -> Result<HttpResponse, RequestError> {
        let request = self.build_transfer("GET", key, "", headers);
        let body = SignableBody::Bytes(&[]);
        self.transfer("GetObject", request, body, self.timeout)
            .await
    }

    /// # Errors
    /// As for [`get_object`](Self::get_object).
    pub(in crate::object_store::s3) async fn put_object(
        &self,
        put: PutRequest<'_>,
    ) -> Result<HttpResponse, RequestError> {
        let request = self.build_transfer("PUT", put.key, put.query, put.headers);
        let request = request.and_then(|mut request| {
            let length = put.size.to_string();
            request.headers_mut().try_insert("content-length", length)?;
            *request.body_mut() = put.body;
            Ok(request)
        });
        // What proves the bytes is not the signature.
        let body = SignableBody::UnsignedPayload;
        self.transfer("PutObject", request, body, put.limit).await
    }

    fn build_transfer(
        &self,
        method: &'static str,
        key: &str,
        query: &str,
        headers: RequestHeaders,
    ) -> Result<HttpRequest, BoxError> {
        let mut request = self.new_request(method, key, query)?;
        for (name, value) in headers {
            request.headers_mut().try_append(name, value)?;
        }
        Ok(request)
    }

    async fn transfer(
        &self,
        operation: &str,
        request: Result<HttpRequest, BoxError>,
        body: SignableBody<'static>,
        limit: Duration,
    ) -> Result<HttpResponse, RequestError> {
        let transfer = async {
            let (response, identity) = self.send_signed(request, body).await?;
            if response.status().is_success() {
                return Ok(response);
            }
            let (status, date, body) = read_body(response).await?;
            let mut error = response::read_refusal(status, &body);
            if error.code == "AccessDenied" || error.message.is_empty() {
                let resources = DeniedResources::default();
                error.message = describe_denial(operation, &resources, &error.message);
            }
            self.signer.learn(&error.code, &identity, date);
            Err(error)
        };
        let timed_out = |_| Err(lost("Timeout", format!("{operation} has timed out")));
        timeout(limit, transfer).await.unwrap_or_else(timed_out)
    }
}
