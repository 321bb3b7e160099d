//! What an outage is about, and what to do.

use bucket_brigade_common::object_store::StoreError;

/// Of conditional writes where nothing stands in their way.
const BASELESS_REFUSALS: [&str; 2] = ["DestinationVanished", "ConditionalRequestConflict"];

pub(super) const CHECK_NETWORK: &str = "check S3's status and the network";

/// An outage's reason, with what to do about it.
pub(super) fn outage_reason(error: &StoreError) -> String {
    let advice = match error {
        error if error.code().contains("QuotaExceeded") => return error.to_string(),
        StoreError::Denied { .. } => {
            "check the consumer's policy: s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both"
        }
        StoreError::Systemic { code, .. } if code == "NoSuchBucket" => {
            "check SOURCE_BUCKET_NAME and DESTINATION_BUCKET_NAME"
        }
        StoreError::Systemic { code, .. } if code == "RequestTimeTooSkewed" => {
            "correct this machine's clock"
        }
        StoreError::Systemic { code, .. }
            if code.contains("Redirect") || code.contains("Moved") =>
        {
            "check AWS_REGION, the buckets' regions, and AWS_ENDPOINT_URL_S3"
        }
        StoreError::Systemic { .. } => {
            "check the credentials and AWS_REGION; keys in a profile file are read once: restart where they were changed"
        }
        error if error.is_foreign() => {
            "is it the store that responds? check AWS_ENDPOINT_URL_S3, proxies and load balancers"
        }
        error if BASELESS_REFUSALS.contains(&error.code()) => {
            "check the store, and proxies before it: it refuses every conditional write (If-None-Match)"
        }
        StoreError::Suspect { .. } => "check STORAGE_CLASS and what the store supports",
        _ => CHECK_NETWORK,
    };
    format!("{error}; {advice}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_is_about_the_cause() {
        let systemic = |code: &str| StoreError::Systemic {
            code: code.into(),
            message: String::new(),
        };
        for (error, advice) in [
            (systemic("RequestTimeTooSkewed"), "clock"),
            (systemic("ExpiredToken"), "credentials"),
            (systemic("NoSuchBucket"), "SOURCE_BUCKET_NAME"),
            (systemic("PermanentRedirect"), "AWS_REGION, the buckets'"),
            (
                StoreError::transient("ConditionalRequestConflict", ""),
                "If-None-Match",
            ),
            (StoreError::transient("InternalError", ""), "network"),
        ] {
            let reason = outage_reason(&error);
            assert!(reason.contains(advice), "{reason}");
        }
    }
}
