//! Whether the images of a sample have their companions.

use std::collections::BTreeMap;

use bucket_brigade_common::object_store::s3::S3Bucket;
use bucket_brigade_common::path_rule::PathRule;

use super::SampleRow;
use super::check::PlanChecks;

/// Of one pattern.
#[derive(Default)]
struct CompanionCount<'a> {
    is_required: bool,
    found: usize,
    /// Rows whose image has none.
    without: Vec<&'a str>,
}

/// Images that are not there count for nothing.
pub(super) async fn check_companions(
    source: &S3Bucket,
    rule: &PathRule,
    samples: &[SampleRow],
    checks: &mut PlanChecks,
) {
    let mut counts: BTreeMap<&str, CompanionCount<'_>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.size_bytes.is_some()) {
        for companion in rule.companions_of(&sample.route) {
            let count = counts.entry(companion.pattern).or_default();
            count.is_required = companion.is_required;
            match source.head(&companion.route.source_key).await {
                Ok(Some(_)) => count.found += 1,
                Ok(None) => count.without.push(&sample.id),
                Err(error) => return checks.fail_by("companions", &error),
            }
        }
    }
    for (pattern, count) in counts {
        count.check(pattern, checks);
    }
}

impl CompanionCount<'_> {
    fn check(&self, pattern: &str, checks: &mut PlanChecks) {
        let found = self.found;
        let (all, ids) = (found + self.without.len(), self.without.join(", "));
        let finding = format!("{found} of {all} images have '{pattern}'");
        if self.without.is_empty() || (!self.is_required && found > 0) {
            return checks.ok("companions", finding);
        }
        let finding = format!("{finding} (without: {ids})");
        match (self.is_required, found) {
            (true, 0) => checks.fail(
                "companions",
                finding,
                "check COMPANIONS: an image without it does not move",
            ),
            (true, _) => {
                let mend = "such rows are recorded as failed, CompanionMissing";
                checks.warn("companions", finding, mend);
            }
            (false, _) => checks.warn("companions", finding, "check COMPANIONS"),
        }
    }
}
