//! What a consumer can be asked: its health and its figures.

use bucket_brigade_common::http_endpoints::{ProcessStatus, register_counter, register_gauge};
use prometheus_client::registry::Registry;

use crate::context::ConsumerContext;

impl ProcessStatus for ConsumerContext {
    fn unhealthy_reason(&self) -> Option<String> {
        self.health.outage().or_else(|| self.standstill_reason())
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let counts = self.counters.counts();
        for (name, help, value) in [
            (
                "bucket_brigade_moved",
                "Rows moved by this consumer",
                counts.moved,
            ),
            (
                "bucket_brigade_settled",
                "Messages whose row needed no move",
                counts.settled,
            ),
            (
                "bucket_brigade_failures",
                "Failures recorded, repeats included",
                counts.failed,
            ),
            (
                "bucket_brigade_poison",
                "Messages that were not understood, repeats included",
                counts.poison,
            ),
            (
                "bucket_brigade_throttled",
                "Requests that S3 throttled",
                counts.throttled,
            ),
            (
                "bucket_brigade_other_run",
                "Messages of another run that were given back",
                counts.other_run,
            ),
        ] {
            register_counter(registry, name, help, value);
        }
        let in_hand = u64::try_from(self.leases.held_count()).unwrap_or(u64::MAX);
        let name = "bucket_brigade_messages_in_hand";
        register_gauge(registry, name, "Messages in hand", in_hand);
        self.register_histograms(registry);
    }
}

impl ConsumerContext {
    /// Why nothing moves although nothing is down: none while something ends, or the throttle holds it back.
    fn standstill_reason(&self) -> Option<String> {
        let standstill = self.leases.standstill();
        if standstill <= self.standstill_limit || self.throttle.held().is_some() {
            return None;
        }
        let in_hand = self.leases.held_count();
        let seconds = standstill.as_secs();
        Some(format!(
            "none of {in_hand} messages in hand has ended for {seconds} s, longer than COPY_TIMEOUT and the database's time limits allow"
        ))
    }

    fn register_histograms(&self, registry: &mut Registry) {
        for (name, help, histogram) in [
            (
                "bucket_brigade_copy_seconds",
                "Time of each copy that was made",
                &self.counters.copies,
            ),
            (
                "bucket_brigade_commit_seconds",
                "Time of each batch of rows that the database committed",
                &self.counters.commits,
            ),
            (
                "bucket_brigade_message_age_seconds",
                "Age of each message when it was received, repeats included",
                &self.counters.ages,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_standstill_is_no_health() {
        let context = ConsumerContext::for_tests();
        let first = context.leases.start_lease("1".into());
        let second = context.leases.start_lease("2".into());
        advance(context.standstill_limit / 2).await;
        first.end().await;
        advance(context.standstill_limit / 2 + Duration::from_secs(1)).await;
        assert_eq!(context.unhealthy_reason(), None);
        advance(context.standstill_limit / 2).await;
        assert!(context.unhealthy_reason().unwrap().contains("1 messages"));
        second.end().await;
        assert_eq!(context.unhealthy_reason(), None);
        advance(context.standstill_limit * 2).await;
        assert_eq!(context.unhealthy_reason(), None);
    }
}
