//! What a consumer can be asked: its health and its figures.

use bucket_brigade_common::http_endpoints::{ProcessStatus, register_gauge};
use prometheus_client::registry::Registry;

use crate::context::ConsumerContext;
use crate::runs::Runs;

#[derive(Clone)]
pub struct ConsumerStatus {
    pub context: ConsumerContext,
    pub runs: Runs,
}

impl ProcessStatus for ConsumerStatus {
    /// An error of some of several runs is theirs: an orchestrator that restarted the process would not correct it,
    /// and hold up the others.
    fn unhealthy_reason(&self) -> Option<String> {
        if let Some(outage) = self.context.health.outage() {
            return Some(outage);
        }
        match self.runs.obstacles() {
            (errors, true) if !errors.is_empty() => Some(errors.join("; ")),
            _ => self.standstill_reason(),
        }
    }

    fn notes(&self) -> Vec<String> {
        self.runs.obstacles().0
    }

    fn register_metrics(&self, registry: &mut Registry) {
        let counters = &self.context.counters;
        for (name, help, counter) in [
            ("moved", "Rows moved by this consumer", &counters.moved),
            (
                "settled",
                "Messages whose row needed no move",
                &counters.settled,
            ),
            (
                "failures",
                "Failures recorded, repeats included",
                &counters.failed,
            ),
            (
                "poison",
                "Messages that were not understood, repeats included",
                &counters.poison,
            ),
            (
                "throttled",
                "Requests that S3 throttled",
                &counters.throttled,
            ),
            (
                "other_run",
                "Messages of another run that were given back",
                &counters.other_run,
            ),
        ] {
            registry.register(format!("bucket_brigade_{name}"), help, counter.clone());
        }
        for (name, help, histogram) in [
            ("copy", "Time of each copy that was made", &counters.copies),
            (
                "commit",
                "Time of each batch of rows that the database committed",
                &counters.commits,
            ),
            (
                "message_age",
                "Age of each message when it was received, repeats included",
                &counters.ages,
            ),
        ] {
            registry.register(
                format!("bucket_brigade_{name}_seconds"),
                help,
                histogram.clone(),
            );
        }
        let in_hand = u64::try_from(self.context.leases.held_count()).unwrap_or(u64::MAX);
        let name = "bucket_brigade_messages_in_hand";
        register_gauge(registry, name, "Messages in hand", in_hand);
    }
}

impl ConsumerStatus {
    /// Why nothing moves although nothing is down: none while something ends, or the throttle holds it back.
    fn standstill_reason(&self) -> Option<String> {
        let limit = self.context.standstill_limit;
        let (in_hand, standstill) = self.runs.standstill(limit)?;
        let seconds = standstill.as_secs();
        Some(format!(
            "none of {in_hand} messages in hand has ended for {seconds} s, longer than COPY_TIMEOUT and the database's time limits allow"
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_standstill_is_no_health() {
        let status = ConsumerStatus {
            context: ConsumerContext::for_tests(),
            runs: Runs::new(4),
        };
        let limit = status.context.standstill_limit;
        let (first, second) = (status.runs.begin(1), status.runs.begin(1));
        advance(limit / 2).await;
        drop(first);
        advance(limit / 2 + Duration::from_secs(1)).await;
        assert_eq!(status.unhealthy_reason(), None);
        advance(limit / 2).await;
        assert!(status.unhealthy_reason().unwrap().contains("1 messages"));
        // Another run moves on.
        drop(status.runs.begin(2));
        assert!(status.unhealthy_reason().is_some());
        drop(second);
        assert_eq!(status.unhealthy_reason(), None);
        advance(limit * 2).await;
        assert_eq!(status.unhealthy_reason(), None);
    }

    #[test]
    fn trouble_of_one_run_of_several_is_no_illness_of_the_process() {
        let status = ConsumerStatus {
            context: ConsumerContext::for_tests(),
            runs: Runs::new(4),
        };
        let _in_hand = [status.runs.begin(1), status.runs.begin(2)];
        assert!(status.runs.set_load_error(2, "no bucket"));
        assert!(!status.runs.set_load_error(2, "no bucket"), "logged once");
        assert_eq!(status.unhealthy_reason(), None);
        assert_eq!(status.notes(), ["run 2: no bucket"]);
        status.runs.set_load_error(1, "no table");
        let reason = status.unhealthy_reason().unwrap();
        assert_eq!(reason, "run 1: no table; run 2: no bucket");
    }
}
