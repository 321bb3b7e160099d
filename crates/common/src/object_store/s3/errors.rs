//! S3's errors, sorted by what to do about them. The only place that knows S3's codes.

use super::CUSTOMER_KEY;
use crate::aws::exchange::{NOT_CONNECTED, UNREADABLE};
use crate::aws::signer::REFUSED_CREDENTIALS;
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

/// Ours, for an object that a response leaves out.
pub(super) const NOT_MENTIONED: &str = "NoAnswer";

/// Codes that every object would meet, beside those of credentials.
const SYSTEMIC_CODES: [&str; 11] = [
    "NoSuchBucket",
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

/// Codes that can only be about the one object, and that no further try changes.
const PERMANENT_CODES: [&str; 7] = [
    "NoSuchKey",
    "NoSuchVersion",
    // Archived: the first to a GET, the second to a copy.
    "InvalidObjectState",
    "ObjectNotInActiveTierError",
    "KeyTooLongError",
    "MetadataTooLarge",
    "XMinioInvalidObjectName",
];

/// Sorts an SDK error. What is not listed may be about the object or about the store: a setting that the store does not
/// know is answered like a broken object.
pub(super) fn store_error(error: impl Into<RequestError>) -> StoreError {
    let error = error.into();
    let RequestError { code, message, .. } = error;
    match error.origin {
        ErrorOrigin::Local | ErrorOrigin::Credentials => StoreError::Systemic { code, message },
        // The next try would bring the same headers.
        ErrorOrigin::Transport if code == UNREADABLE => StoreError::Suspect { code, message },
        ErrorOrigin::Transport => StoreError::Transient { code, message },
        ErrorOrigin::Service => service_error(error.status, code, message),
    }
}

impl StoreError {
    /// Whether S3 has not said what became of the request: it may be carried out later still.
    pub fn is_unanswered(&self) -> bool {
        let is_over = |code: &str| {
            [NOT_MENTIONED, NOT_CONNECTED].contains(&code)
                || TRANSIENT_CODES.contains(&code)
                || is_quota(code)
        };
        matches!(self, Self::Transient { code, .. } if !is_over(code))
    }

    /// Whether the request may have been carried out, or may be later.
    pub fn is_uncertain(&self) -> bool {
        match self {
            Self::Throttled { .. } => true,
            Self::Transient { code, .. } => code != NOT_CONNECTED && !is_quota(code),
            _ => false,
        }
    }
}

fn service_error(status: u16, code: String, message: String) -> StoreError {
    let is_one_of = |codes: &[&str]| codes.contains(&code.as_str());
    if is_one_of(&THROTTLING_CODES) || matches!(status, 429 | 503) {
        StoreError::Throttled { code, message }
    } else if code == "PreconditionFailed" {
        StoreError::DestinationExists
    } else if is_too_large(&code, &message) {
        StoreError::TooLarge
    } else if needs_customer_key(&code, &message) {
        let message = "the object is encrypted with a key of the customer's (SSE-C)";
        StoreError::permanent(CUSTOMER_KEY, message)
    } else if is_quota(&code) {
        StoreError::transient(
            &code,
            "a quota of the bucket or its owner is used up: raise it",
        )
    } else if is_one_of(&SYSTEMIC_CODES) || is_one_of(&REFUSED_CREDENTIALS) {
        StoreError::Systemic { code, message }
    } else if is_one_of(&TRANSIENT_CODES) || (status >= 500 && status != 501) {
        StoreError::Transient { code, message }
    } else if is_one_of(&PERMANENT_CODES) {
        StoreError::Permanent { code, message }
    } else if status == 403 || code == "AccessDenied" || code.starts_with("KMS.") {
        StoreError::Denied { code, message }
    } else {
        StoreError::Suspect { code, message }
    }
}

fn is_quota(code: &str) -> bool {
    code.contains("QuotaExceeded")
}

/// S3 has no code of its own for it: `InvalidRequest`, "The specified copy source is larger than
/// the maximum allowable size for a copy source".
fn is_too_large(code: &str, message: &str) -> bool {
    code == "EntityTooLarge"
        || (code == "InvalidRequest" && message.contains("maximum allowable size"))
}

/// Of an object that each request must bring the key of along; S3 has no code of its own for that either.
fn needs_customer_key(code: &str, message: &str) -> bool {
    code == "InvalidRequest" && message.contains("form of Server Side Encryption")
        // Of Ceph, to a GET.
        || code == "InvalidArgument" && message.contains("Customer provided keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sort(status: u16, code: &str) -> StoreError {
        let code = (!code.is_empty()).then(|| code.to_owned());
        store_error(RequestError::refused(status, code, None, None))
    }

    #[test]
    fn codes_decide_before_the_status_does() {
        let sorted = [
            // A 200 may carry any code in its body.
            ("Throttled", 200, "SlowDown"),
            ("Throttled", 400, "KMS.ThrottlingException"),
            ("Throttled", 503, "SlowDownRead"),
            ("Transient", 200, "InternalError"),
            ("Transient", 409, "ConditionalRequestConflict"),
            ("Transient", 502, "BadGateway"),
            ("Transient", 507, "XMinioStorageFull"),
            ("Transient", 403, "QuotaExceeded"),
            ("DestinationExists", 412, "PreconditionFailed"),
            ("Permanent", 404, "NoSuchKey"),
            ("Systemic", 403, "UserSuspended"),
            ("Permanent", 403, "InvalidObjectState"),
            ("Permanent", 400, "KeyTooLongError"),
            ("Denied", 403, "AccessDenied"),
            ("Denied", 403, "NobodyKnows"),
            ("Denied", 400, "KMS.DisabledException"),
            ("Systemic", 404, "NoSuchBucket"),
            ("Systemic", 403, "InvalidAccessKeyId"),
            ("Systemic", 400, "ExpiredToken"),
        ];
        for (kind, status, code) in sorted {
            let error = format!("{:?}", sort(status, code));
            assert!(error.starts_with(kind), "{status} {code}: {error}");
        }
    }

    #[test]
    fn what_is_not_listed_is_held_against_no_object() {
        for (status, code) in [
            (400, "InvalidStorageClass"),
            (400, "XAmzContentSHA256Mismatch"),
            (400, "InvalidRequest"),
            (404, "NobodyKnows"),
            // Ours where there is no code: S3 has one in its answer to all but a HEAD, a proxy has none.
            (404, "NotFound"),
            (411, "MissingContentLength"),
            (501, "NotImplemented"),
            // An entry of a batch has no status.
            (0, "NobodyKnows"),
        ] {
            let error = sort(status, code);
            assert!(matches!(error, StoreError::Suspect { .. }), "{error:?}");
        }
    }

    #[test]
    fn a_request_that_s3_has_not_answered_may_be_under_way() {
        for (is_unanswered, status, code) in [
            (true, 502, ""),
            (true, 504, ""),
            (false, 500, "InternalError"),
            (false, 503, "SlowDown"),
            (false, 403, "AccessDenied"),
            (false, 403, "QuotaExceeded"),
        ] {
            let error = sort(status, code);
            assert_eq!(error.is_unanswered(), is_unanswered, "{code}");
            // A 5xx says nothing of what was done before it.
            assert_eq!(error.is_uncertain(), status >= 500, "{code}");
        }
        assert!(StoreError::transient(crate::object_store::TIMED_OUT, "").is_unanswered());
        let unsent = StoreError::transient(NOT_CONNECTED, "");
        assert!(!unsent.is_unanswered() && !unsent.is_uncertain());
    }

    #[test]
    fn size_limit_and_customer_keys_are_known_by_their_message() {
        let answer = |message: &str| RequestError {
            origin: ErrorOrigin::Service,
            code: "InvalidRequest".into(),
            message: message.into(),
            status: 400,
        };
        let s3 = "The specified copy source is larger than the maximum allowable size for a copy source: 5368709120";
        assert!(matches!(store_error(answer(s3)), StoreError::TooLarge));
        let s3 = "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.";
        let error = store_error(answer(s3));
        assert!(matches!(&error, StoreError::Permanent { .. }), "{error:?}");
        assert_eq!(error.code(), CUSTOMER_KEY);
        let ceph = "Requests specifying Server Side Encryption with Customer provided keys must provide a valid encryption algorithm.";
        let of_ceph = RequestError {
            code: "InvalidArgument".into(),
            ..answer(ceph)
        };
        assert_eq!(store_error(of_ceph).code(), CUSTOMER_KEY);
        assert!(matches!(
            store_error(answer("other")),
            StoreError::Suspect { .. }
        ));
    }
}
