//! Counts of the requests received, by caller and operation.

use std::collections::BTreeMap;

use super::operation::{CloudOperation, CloudService};

/// The requests received so far. A caller is the access key id a request was signed with.
#[derive(Debug, Clone, Default)]
pub struct CloudRequestCounts {
    counts: BTreeMap<(CloudService, String, String), u64>,
}

impl CloudRequestCounts {
    pub(super) fn count_request(&mut self, operation: &CloudOperation) {
        let key = (
            operation.service,
            operation.caller.clone(),
            operation.name.clone(),
        );
        *self.counts.entry(key).or_default() += 1;
    }

    /// Requests of `operation`, such as `CopyObject`, by all callers.
    pub fn count_operation(&self, operation: &str) -> u64 {
        self.sum_counts(|_, _, name| name == operation)
    }

    pub fn count_operation_by(&self, caller: &str, operation: &str) -> u64 {
        self.sum_counts(|_, by, name| by == caller && name == operation)
    }

    /// All SQS requests by all callers.
    pub fn total_sqs(&self) -> u64 {
        self.sum_counts(|service, _, _| service == CloudService::Sqs)
    }

    pub fn total_sqs_by(&self, callers: &[&str]) -> u64 {
        self.sum_counts(|service, by, _| service == CloudService::Sqs && callers.contains(&by))
    }

    /// The counts by operation.
    pub fn snapshot(&self) -> BTreeMap<String, u64> {
        self.sum_by_operation(|_| true)
    }

    /// The counts of `caller` by operation.
    pub fn snapshot_by(&self, caller: &str) -> BTreeMap<String, u64> {
        self.sum_by_operation(|by| by == caller)
    }

    fn sum_by_operation(&self, wanted: impl Fn(&str) -> bool) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::new();
        for ((_, caller, name), count) in &self.counts {
            if wanted(caller) {
                *counts.entry(name.clone()).or_default() += count;
            }
        }
        counts
    }

    fn sum_counts(&self, wanted: impl Fn(CloudService, &str, &str) -> bool) -> u64 {
        let chosen = self
            .counts
            .iter()
            .filter(|((service, by, name), _)| wanted(*service, by, name));
        chosen.map(|(_, count)| count).sum()
    }
}
