//! The buckets, and a handful of real objects.

use std::collections::BTreeMap;

use bucket_brigade_common::object_store::s3::{CUSTOMER_KEY, CopyMethod, ObjectHead, S3Bucket};
use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use tokio_util::sync::CancellationToken;

use super::check::PlanChecks;
use super::estimate::ObjectFacts;
use super::neighbours::check_neighbours;
use super::ownership::check_acls;
use super::probe::{ProbeRequest, check_method, probe_copy};
use super::table_inspector::TableInspector;
use super::{PlanStopped, SampleRow, unless_stopped};
use crate::context::CommandContext;

/// What the objects of the samples are.
#[derive(Default)]
struct SampledObjects {
    readable: usize,
    bytes: u64,
    missing: Vec<String>,
    /// Rows that have an object by the key that their path spells in another way.
    by_encoding: BTreeMap<&'static str, Vec<String>>,
    denied: Option<String>,
    /// Rows whose objects only a key of the customer's opens.
    with_customer_key: Vec<String>,
    archived: Vec<String>,
    tagged: usize,
    uses_kms: bool,
    /// The smallest of them, to be copied.
    smallest: Option<(i64, String)>,
}

pub(super) async fn check_objects(
    context: &CommandContext,
    inspector: Option<&TableInspector>,
    application: Option<&S3Bucket>,
    stop: &CancellationToken,
    samples: &mut [SampleRow],
    checks: &mut PlanChecks,
) -> Result<ObjectFacts, PlanStopped> {
    let opened = unless_stopped(stop, open_buckets(context, checks)).await?;
    let Some((source, destination)) = opened else {
        return Ok(ObjectFacts::default());
    };
    let run = &context.migration.run;
    let looking = check_sources(&source, &destination, &run.rule, samples, checks);
    let (sampled, mut objects) = unless_stopped(stop, looking).await?;
    let keys = samples.iter().map(|sample| &*sample.route.source_key);
    let acls = check_acls(&source, keys, run.options.copy_acl.as_deref(), checks);
    unless_stopped(stop, acls).await?;
    let neighbours = check_neighbours(run, inspector, &source, samples, checks);
    unless_stopped(stop, neighbours).await?;
    let request = context.method_request(&run.options);
    // Not to be stopped before the probes are removed.
    let opened = request.open(source, destination.clone()).await;
    let may_copy = request.stores.is_one_store() && run.options.copy_method.is_none();
    check_method(&opened, may_copy, checks);
    if let Ok(store) = opened {
        objects.requests = store.requests_per_copy();
        objects.is_streamed = store.method() == CopyMethod::Stream;
        if let Some((size_bytes, source_key)) = &sampled.smallest {
            let request = ProbeRequest {
                run,
                destination: &destination,
                application,
                source_key,
                size_bytes: *size_bytes,
            };
            probe_copy(&store, &request, &mut objects, checks).await;
        }
    }
    let taken = check_destinations(&destination, samples, checks);
    unless_stopped(stop, taken).await?;
    Ok(objects)
}

/// The buckets, where both can be used.
async fn open_buckets(
    context: &CommandContext,
    checks: &mut PlanChecks,
) -> Option<(S3Bucket, S3Bucket)> {
    let buckets = context.buckets(&context.migration.run.options).await;
    let buckets = buckets.map_err(|error| checks.fail_by("buckets", &error));
    let (source, destination) = buckets.ok()?;
    let mut is_open = true;
    for bucket in [&source, &destination] {
        if let Err(error) = bucket.check_access().await {
            checks.fail_by("buckets", &error);
            is_open = false;
        }
    }
    is_open.then_some((source, destination))
}

async fn check_sources(
    source: &S3Bucket,
    destination: &S3Bucket,
    rule: &PathRule,
    samples: &mut [SampleRow],
    checks: &mut PlanChecks,
) -> (SampledObjects, ObjectFacts) {
    let regions = [read_region(source).await, read_region(destination).await];
    check_regions(&regions, source.name(), destination.name(), checks);
    let sampled = read_sampled_objects(source, rule, samples).await;
    sampled.check(samples.len(), checks);
    check_tags(source, &sampled, checks).await;
    let objects = sampled.object_facts(&regions);
    (sampled, objects)
}

/// The region a bucket says it is in; none where it does not say.
async fn read_region(bucket: &S3Bucket) -> Option<String> {
    let request = bucket.client().head_bucket().bucket(bucket.name());
    let output = request.send().await.ok()?;
    output.bucket_region().map(ToOwned::to_owned)
}

fn check_regions(
    regions: &[Option<String>; 2],
    source: &str,
    destination: &str,
    checks: &mut PlanChecks,
) {
    match regions {
        [Some(from), Some(to)] if from != to => checks.warn(
            "buckets",
            format!("{source} is in {from}, {destination} in {to}: copies cross regions"),
            "set AWS_REGION to the destination's and SOURCE_REGION to the source's; transfer costs, and VPC endpoints do not carry it",
        ),
        [_, Some(to)] => checks.ok("buckets", format!("{source} and {destination}, in {to}")),
        _ => checks.ok("buckets", format!("{source} and {destination} are there")),
    }
}

async fn read_sampled_objects(
    bucket: &S3Bucket,
    rule: &PathRule,
    samples: &mut [SampleRow],
) -> SampledObjects {
    let mut sampled = SampledObjects::default();
    for sample in samples {
        let key = &sample.route.source_key;
        match bucket.head(key).await {
            Ok(Some(head)) => {
                sample.size_bytes = head.size_bytes();
                sampled.add_object(key, &head);
            }
            Ok(None) => match find_encoding(bucket, rule, &sample.route).await {
                Some(encoding) => {
                    let ids = sampled.by_encoding.entry(encoding.name()).or_default();
                    ids.push(sample.id.clone());
                }
                None => sampled.missing.push(sample.id.clone()),
            },
            Err(error) if error.code() == CUSTOMER_KEY => {
                sampled.with_customer_key.push(sample.id.clone());
            }
            Err(error) => sampled.denied = Some(error.to_string()),
        }
    }
    sampled
}

/// By which encoding the path would name an object that is there.
async fn find_encoding(
    bucket: &S3Bucket,
    rule: &PathRule,
    route: &MoveRoute,
) -> Option<PathEncoding> {
    for encoding in PathEncoding::ALL {
        let other = rule.clone().with_encoding(encoding);
        let other = other
            .route_for(&route.old_path)
            .map(|other| other.source_key);
        let Some(key) = other.ok().filter(|key| *key != route.source_key) else {
            continue;
        };
        if let Ok(Some(_)) = bucket.head(&key).await {
            return Some(encoding);
        }
    }
    None
}

impl SampledObjects {
    fn add_object(&mut self, key: &str, head: &ObjectHead) {
        let size = head.size_bytes().unwrap_or(0);
        self.readable += 1;
        self.bytes += u64::try_from(size).unwrap_or(0);
        self.tagged += usize::from(head.tag_count().unwrap_or(0) > 0);
        self.uses_kms |= head.kms_key().is_some();
        let class = head.storage_class().unwrap_or_default();
        if matches!(class, "GLACIER" | "DEEP_ARCHIVE") && !head.is_restored() {
            self.archived.push(key.to_owned());
        } else if self
            .smallest
            .as_ref()
            .is_none_or(|(least, _)| size < *least)
        {
            self.smallest = Some((size, key.to_owned()));
        }
    }

    fn object_facts(&self, regions: &[Option<String>; 2]) -> ObjectFacts {
        let count = u64::try_from(self.readable).unwrap_or(0);
        ObjectFacts {
            average_bytes: self.bytes.checked_div(count),
            crosses_regions: matches!(regions, [Some(from), Some(to)] if from != to),
            uses_kms: self.uses_kms,
            ..ObjectFacts::default()
        }
    }

    fn check(&self, all: usize, checks: &mut PlanChecks) {
        if let Some(why) = &self.denied {
            checks.fail(
                "sources",
                format!("an object cannot be read: {why}"),
                "s3:GetObject on the source, and kms:Decrypt on its key: deploy/policies/consumer.json",
            );
        }
        if !self.with_customer_key.is_empty() {
            let ids = self.with_customer_key.join(", ");
            checks.warn(
                "sources",
                format!("objects are encrypted with a key of the customer's, SSE-C (ids: {ids})"),
                "such rows are recorded as failed: S3 copies their objects only with that key, which is in no setting",
            );
        }
        self.check_encodings(all, checks);
        if !self.missing.is_empty() {
            let (count, ids) = (self.missing.len(), self.missing.join(", "));
            let finding = format!("{count} of {all} rows have no object (ids: {ids})");
            if self.readable == 0 && self.by_encoding.is_empty() {
                let mend = "check SOURCE_BUCKET_NAME and SOURCE_KEY_PREFIX: no row that was sampled at has an object";
                checks.fail("sources", finding, mend);
            } else {
                let mend = "such rows are recorded as failed, NoSuchKey";
                checks.warn("sources", finding, mend);
            }
        }
        if !self.archived.is_empty() {
            checks.warn(
                "sources",
                format!("archived: {}", self.archived.join(", ")),
                "restore them first; they are recorded as failed, InvalidObjectState",
            );
        }
        if self.readable > 0 {
            let finding = format!("{} of {all} objects can be read", self.readable);
            checks.ok("sources", finding);
        }
    }

    fn check_encodings(&self, all: usize, checks: &mut PlanChecks) {
        for (encoding, ids) in &self.by_encoding {
            let (count, ids) = (ids.len(), ids.join(", "));
            let finding = format!(
                "{count} of {all} rows have no object by the key that their path spells, but one by PATH_ENCODING={encoding} (ids: {ids})"
            );
            let mend = format!(
                "set PATH_ENCODING={encoding}; such rows are recorded as failed, NoSuchKey, otherwise"
            );
            if self.readable == 0 {
                checks.fail("sources", finding, mend);
            } else {
                checks.warn("sources", finding, mend);
            }
        }
    }
}

/// Tags travel with a copy, which asks for a right of its own, even of an object that has none.
async fn check_tags(bucket: &S3Bucket, sampled: &SampledObjects, checks: &mut PlanChecks) {
    let Some((_, key)) = &sampled.smallest else {
        return;
    };
    let request = bucket.client().get_object_tagging().bucket(bucket.name());
    let read = request.key(key).send().await;
    match read.map_err(|error| bucket.refused(key, error)) {
        Ok(_) => {
            let finding = format!("can be read; {} objects have some", sampled.tagged);
            checks.ok("tags", finding);
        }
        Err(error) if error.code() == "NotImplemented" => checks.ok("tags", "the store knows none"),
        Err(error) => checks.fail(
            "tags",
            format!("cannot be read: {error}"),
            "s3:GetObjectTagging on the source: deploy/policies/consumer.json",
        ),
    }
}

/// Whether something stands where the copies go.
async fn check_destinations(bucket: &S3Bucket, samples: &[SampleRow], checks: &mut PlanChecks) {
    let mut taken = Vec::new();
    for sample in samples {
        let key = &sample.route.destination_key;
        if let Ok(Some(_)) = bucket.head(key).await {
            taken.push(&*sample.id);
        }
    }
    if !taken.is_empty() {
        let (count, all, ids) = (taken.len(), samples.len(), taken.join(", "));
        checks.warn(
            "destinations",
            format!("where {count} of {all} rows go, an object stands already: {ids}"),
            "an identical copy is recognised; anything else is never overwritten, and the row is recorded as failed",
        );
    }
}
