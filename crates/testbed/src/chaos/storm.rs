//! Faults of S3 and SQS.

use std::time::Duration;

use crate::cloud::{Cloud, Effect, Fault, FaultHandle};

/// The share of the consumers' S3 requests that is struck.
const OF_S3: f64 = 0.05;
/// The share of the feeder's and the consumers' SQS requests that is struck.
const OF_SQS: f64 = 0.02;
/// How much longer than the client waits an answer takes that is a timeout.
const TOO_LATE: Duration = Duration::from_secs(1);
/// How long a slow copy takes.
const SLOW: Duration = Duration::from_secs(6);

/// The faults in force; they end when this is dropped.
pub(super) struct Storm {
    handles: Vec<FaultHandle>,
    /// Hits of those that have ended.
    past_hits: u64,
}

impl Storm {
    pub(super) fn new() -> Self {
        Self {
            handles: Vec::new(),
            past_hits: 0,
        }
    }

    /// Ends them all.
    pub(super) fn end(&mut self) {
        self.past_hits = self.hits();
        self.handles.clear();
    }

    /// How many requests were struck.
    pub(super) fn hits(&self) -> u64 {
        let present: u64 = self.handles.iter().map(FaultHandle::hits).sum();
        self.past_hits + present
    }

    /// Strikes the consumers' S3 requests. `patience` is how long they wait for an answer.
    pub(super) fn strike_s3(&mut self, cloud: &Cloud, patience: Duration) {
        let too_late = patience + TOO_LATE;
        let errors = [
            Effect::error(503, "SlowDown"),
            Effect::error(500, "InternalError"),
            Effect::Reset,
            Effect::ResetAfterEffect,
            Effect::Delay(too_late),
            Effect::LateAnswer(too_late),
        ];
        let body = |code: &str| Effect::OkWithError { code: code.into() };
        let of_copies = [
            body("InternalError"),
            body("SlowDown"),
            Effect::EmptyOk,
            Effect::TruncatedBody,
            Effect::error_after(500, "InternalError"),
            Effect::error_after(503, "SlowDown"),
        ];
        self.strike(
            cloud,
            "consumer",
            "CopyObject",
            OF_S3,
            &[&errors[..], &of_copies].concat(),
        );
        let of_reads = [&errors[..], &[Effect::TruncatedBody]].concat();
        self.strike(cloud, "consumer", "GetObject", OF_S3, &of_reads);
        for operation in ["HeadObject", "HeadBucket", "PutObject", "DeleteObject"] {
            self.strike(cloud, "consumer", operation, OF_S3, &errors);
        }
    }

    /// Copies take their time, whoever waits for them.
    pub(super) fn slow_copies(&mut self, cloud: &Cloud, share: f64) {
        self.strike(
            cloud,
            "consumer",
            "CopyObject",
            share,
            &[Effect::Slow(SLOW)],
        );
    }

    /// Strikes the SQS requests of feeder and consumers.
    pub(super) fn strike_sqs(&mut self, cloud: &Cloud) {
        let errors = [
            Effect::error(500, "InternalFailure"),
            Effect::error(400, "ThrottlingException"),
            Effect::Reset,
            Effect::ResetAfterEffect,
            Effect::error_after(500, "InternalFailure"),
        ];
        let some = |code: &str, sender_fault| Effect::FailSomeEntries {
            code: code.to_owned(),
            sender_fault,
        };
        let ours = some("InternalError", false);
        // A message of the feeder's is always one that SQS accepts, so its entries fail by SQS's fault alone.
        let sends = [&errors[..], std::slice::from_ref(&ours)].concat();
        let handles = [&errors[..], &[ours, some("ReceiptHandleIsInvalid", true)]].concat();
        self.strike(cloud, "feeder", "SendMessageBatch", OF_SQS, &sends);
        self.strike(cloud, "feeder", "GetQueueAttributes", OF_SQS, &errors);
        self.strike(cloud, "consumer", "ReceiveMessage", OF_SQS, &errors);
        self.strike(cloud, "consumer", "GetQueueAttributes", OF_SQS, &errors);
        for operation in ["DeleteMessageBatch", "ChangeMessageVisibilityBatch"] {
            self.strike(cloud, "consumer", operation, OF_SQS, &handles);
        }
    }

    /// Each effect strikes an equal part of the share.
    fn strike(
        &mut self,
        cloud: &Cloud,
        caller: &str,
        operation: &str,
        share: f64,
        effects: &[Effect],
    ) {
        let mut left = effects.len();
        let mut share_left = share;
        for effect in effects {
            // The dice are thrown one after the other: those before have struck their part already.
            let part = share_left / f64::from(u32::try_from(left).unwrap_or(u32::MAX));
            let probability = part / (1.0 - (share - share_left));
            let fault = Fault::new(operation, effect.clone());
            let fault = fault.caller(caller).probability(probability);
            self.handles.push(cloud.inject(fault));
            share_left -= part;
            left -= 1;
        }
    }
}
