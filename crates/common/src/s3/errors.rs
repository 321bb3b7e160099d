//! S3's errors, sorted by what to do about them. The only place that knows S3's codes.

use crate::aws::{ErrorOrigin, RequestError};
use crate::object_store::StoreError;

/// Codes that ask for fewer requests.
const THROTTLING_CODES: [&str; 8] = [
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "KMS.ThrottlingException",
];

/// Codes of a moment's trouble that do not come with a 5xx status.
const TRANSIENT_CODES: [&str; 5] = [
    "InternalError",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "NoSuchUpload",
];

/// Codes that every object would meet.
const SYSTEMIC_CODES: [&str; 18] = [
    "NoSuchBucket",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidToken",
    "TokenRefreshRequired",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "TemporaryRedirect",
    // A HEAD under an expired token: a 400 without a body, hence without a code of S3's.
    "BadRequest",
    "IllegalLocationConstraintException",
    "AccountProblem",
    "AllAccessDisabled",
    "NotSignedUp",
];

/// Sorts an SDK error.
pub fn store_error(error: impl Into<RequestError>) -> StoreError {
    let RequestError {
        origin,
        code,
        message,
        status,
    } = error.into();
    let code_is = |codes: &[&str]| codes.contains(&code.as_str());
    match origin {
        ErrorOrigin::Local => StoreError::Systemic { code, message },
        ErrorOrigin::Transport => StoreError::Transient { code, message },
        ErrorOrigin::Service if code_is(&THROTTLING_CODES) || matches!(status, 429 | 503) => {
            StoreError::Throttled { code }
        }
        ErrorOrigin::Service if code == "PreconditionFailed" => StoreError::DestinationExists,
        ErrorOrigin::Service if is_too_large(&code, &message) => StoreError::TooLarge,
        ErrorOrigin::Service if code_is(&SYSTEMIC_CODES) => StoreError::Systemic { code, message },
        ErrorOrigin::Service if code_is(&TRANSIENT_CODES) || (status >= 500 && status != 501) => {
            StoreError::Transient { code, message }
        }
        ErrorOrigin::Service if code == "InvalidObjectState" => {
            StoreError::Permanent { code, message }
        }
        ErrorOrigin::Service
            if status == 403 || code == "AccessDenied" || code.starts_with("KMS.") =>
        {
            StoreError::Denied { code, message }
        }
        ErrorOrigin::Service => StoreError::Permanent { code, message },
    }
}

/// S3 has no code of its own for it: `InvalidRequest`, "The specified copy source is larger than
/// the maximum allowable size for a copy source".
fn is_too_large(code: &str, message: &str) -> bool {
    code == "EntityTooLarge"
        || (code == "InvalidRequest" && message.contains("maximum allowable size"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(status: u16, code: &str) -> StoreError {
        store_error(RequestError {
            origin: ErrorOrigin::Service,
            code: code.into(),
            message: String::new(),
            status,
        })
    }

    #[test]
    fn codes_decide_before_the_status_does() {
        // A 200 may carry any of these in its body.
        assert!(matches!(
            sort(200, "SlowDown"),
            StoreError::Throttled { .. }
        ));
        assert!(matches!(
            sort(200, "InternalError"),
            StoreError::Transient { .. }
        ));
        assert!(matches!(
            sort(400, "KMS.ThrottlingException"),
            StoreError::Throttled { .. }
        ));
        assert!(matches!(
            sort(409, "ConditionalRequestConflict"),
            StoreError::Transient { .. }
        ));
        assert!(matches!(
            sort(412, "PreconditionFailed"),
            StoreError::DestinationExists
        ));
        assert!(matches!(
            sort(404, "NoSuchKey"),
            StoreError::Permanent { .. }
        ));
        assert!(matches!(
            sort(404, "NoSuchBucket"),
            StoreError::Systemic { .. }
        ));
        assert!(matches!(
            sort(403, "InvalidObjectState"),
            StoreError::Permanent { .. }
        ));
        assert!(matches!(
            sort(403, "AccessDenied"),
            StoreError::Denied { .. }
        ));
        assert!(matches!(
            sort(403, "InvalidAccessKeyId"),
            StoreError::Systemic { .. }
        ));
        assert!(matches!(
            sort(400, "KMS.DisabledException"),
            StoreError::Denied { .. }
        ));
        assert!(matches!(
            sort(400, "ExpiredToken"),
            StoreError::Systemic { .. }
        ));
        assert!(matches!(
            sort(502, "BadGateway"),
            StoreError::Transient { .. }
        ));
        assert!(matches!(
            sort(501, "NotImplemented"),
            StoreError::Permanent { .. }
        ));
        assert!(matches!(
            sort(503, "Anything"),
            StoreError::Throttled { .. }
        ));
    }

    #[test]
    fn the_size_limit_is_known_by_its_message() {
        let answer = |message: &str| RequestError {
            origin: ErrorOrigin::Service,
            code: "InvalidRequest".into(),
            message: message.into(),
            status: 400,
        };
        let s3 = "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120";
        assert!(matches!(store_error(answer(s3)), StoreError::TooLarge));
        assert!(matches!(
            store_error(answer("other")),
            StoreError::Permanent { .. }
        ));
    }
}
