//! Faults of S3 and SQS.

use std::time::Duration;

use crate::cloud::{Cloud, Fault, FaultEffect, FaultHandle};

/// The share of the consumers' S3 requests that is struck.
const S3_FAULT_SHARE: f64 = 0.05;
/// The share of the feeder's and the consumers' SQS requests that is struck.
const SQS_FAULT_SHARE: f64 = 0.02;
/// How much longer than the client waits an answer takes that is a timeout.
const TIMEOUT_EXCESS: Duration = Duration::from_secs(1);
const SLOW_COPY_DURATION: Duration = Duration::from_secs(6);

/// Longer than any time limit.
const SILENT_DURATION: Duration = Duration::from_mins(10);
/// What feeder and consumers ask while they work.
const SILENT_OPERATIONS: [(&str, &[&str]); 2] = [
    ("feeder", &["SendMessageBatch", "GetQueueAttributes"]),
    (
        "consumer",
        &[
            "CopyObject",
            "HeadObject",
            "GetObject",
            "PutObject",
            "ReceiveMessage",
            "DeleteMessageBatch",
            "ChangeMessageVisibilityBatch",
        ],
    ),
];

/// The faults in force; they end when this is dropped.
pub(super) struct CloudFaults {
    handles: Vec<FaultHandle>,
    /// Hits of those that have ended.
    past_hits: u64,
}

impl CloudFaults {
    pub(super) fn new() -> Self {
        Self {
            handles: Vec::new(),
            past_hits: 0,
        }
    }

    pub(super) fn stop(&mut self) {
        self.past_hits = self.hits();
        self.handles.clear();
    }

    pub(super) fn hits(&self) -> u64 {
        let present: u64 = self.handles.iter().map(FaultHandle::hits).sum();
        self.past_hits + present
    }

    /// Strikes the consumers' S3 requests. `patience` is how long they wait for an answer.
    pub(super) fn inject_s3_faults(&mut self, cloud: &Cloud, patience: Duration) {
        let too_late = patience + TIMEOUT_EXCESS;
        let errors = [
            FaultEffect::error(503, "SlowDown"),
            FaultEffect::error(500, "InternalError"),
            FaultEffect::Reset,
            FaultEffect::ResetAfterEffect,
            FaultEffect::Delay(too_late),
            FaultEffect::DelayedResponse(too_late),
        ];
        let body = |code: &str| FaultEffect::OkWithError { code: code.into() };
        let of_copies = [
            body("InternalError"),
            body("SlowDown"),
            FaultEffect::EmptyOk,
        ];
        let of_writes = [
            FaultEffect::error_after(500, "InternalError"),
            FaultEffect::error_after(503, "SlowDown"),
        ];
        let truncated = [FaultEffect::TruncatedBody];
        let mut inject = |operation, others: &[&[FaultEffect]]| {
            let effects = [&errors[..], &others.concat()].concat();
            self.inject_effects(cloud, "consumer", operation, S3_FAULT_SHARE, &effects);
        };
        inject("CopyObject", &[&of_copies, &of_writes, &truncated]);
        for operation in ["PutObject", "UploadPart", "CompleteMultipartUpload"] {
            inject(operation, &[&of_writes]);
        }
        for operation in ["GetObject", "GetObjectTagging"] {
            inject(operation, &[&truncated]);
        }
        for operation in ["HeadObject", "HeadBucket", "DeleteObject"] {
            inject(operation, &[]);
        }
    }

    /// Slow copies, by the store or through the consumers, for every caller.
    pub(super) fn inject_slow_copies(&mut self, cloud: &Cloud, share: f64) {
        for operation in ["CopyObject", "PutObject"] {
            let slow = Fault::new(operation, FaultEffect::Slow(SLOW_COPY_DURATION));
            let slow = slow.caller("consumer").with_header("if-none-match");
            self.handles
                .push(cloud.inject_fault(slow.probability(share)));
        }
    }

    /// Lets the requests of feeder and consumers wait, until their callers give up.
    pub(super) fn inject_silence(&mut self, cloud: &Cloud) {
        let silence = FaultEffect::Delay(SILENT_DURATION);
        for (caller, operations) in SILENT_OPERATIONS {
            for operation in operations {
                let fault = Fault::new(*operation, silence.clone()).caller(caller);
                self.handles.push(cloud.inject_fault(fault));
            }
        }
    }

    /// Strikes the SQS requests of feeder and consumers.
    pub(super) fn inject_sqs_faults(&mut self, cloud: &Cloud) {
        let errors = [
            FaultEffect::error(500, "InternalFailure"),
            FaultEffect::error(400, "ThrottlingException"),
            FaultEffect::Reset,
            FaultEffect::ResetAfterEffect,
            FaultEffect::error_after(500, "InternalFailure"),
        ];
        let some = |code: &str, sender_fault| FaultEffect::FailSomeEntries {
            code: code.to_owned(),
            sender_fault,
        };
        let ours = some("InternalError", false);
        // A message of the feeder's is always one that SQS accepts, so its entries fail by SQS's fault alone.
        let sends = [&errors[..], std::slice::from_ref(&ours)].concat();
        let handles = [&errors[..], &[ours, some("ReceiptHandleIsInvalid", true)]].concat();
        self.inject_effects(cloud, "feeder", "SendMessageBatch", SQS_FAULT_SHARE, &sends);
        self.inject_effects(
            cloud,
            "feeder",
            "GetQueueAttributes",
            SQS_FAULT_SHARE,
            &errors,
        );
        self.inject_effects(
            cloud,
            "consumer",
            "ReceiveMessage",
            SQS_FAULT_SHARE,
            &errors,
        );
        self.inject_effects(
            cloud,
            "consumer",
            "GetQueueAttributes",
            SQS_FAULT_SHARE,
            &errors,
        );
        for operation in ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"] {
            self.inject_effects(cloud, "consumer", operation, SQS_FAULT_SHARE, &handles);
        }
    }

    /// Each effect strikes an equal part of the share.
    fn inject_effects(
        &mut self,
        cloud: &Cloud,
        caller: &str,
        operation: &str,
        share: f64,
        effects: &[FaultEffect],
    ) {
        let mut left = effects.len();
        let mut share_left = share;
        for effect in effects {
            // Each fault draws after the one before, which has already taken its share.
            let part = share_left / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            let probability = part / (1.0 - (share - share_left));
            let fault = Fault::new(operation, effect.clone());
            let fault = fault.caller(caller).probability(probability);
            self.handles.push(cloud.inject_fault(fault));
            share_left -= part;
            left -= 1;
        }
    }
}
