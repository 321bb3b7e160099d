//! The buckets, and a handful of real objects.

use std::collections::BTreeMap;

use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::s3::{
    CUSTOMER_KEY, CopyMethod, NO_TAG_SET_CODES, NO_TAGS_CODES, ObjectHead, S3Bucket,
};
use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::path_rule::{MoveRoute, PathRule};
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::printable::counted;

use super::SampleRow;
use super::check::PlanChecks;
use super::companions::check_companions;
use super::estimate::ObjectFacts;
use super::neighbours::check_neighbours;
use super::ownership::check_acls;
use super::probe::{ProbeRequest, check_method, probe_copy};
use super::table_inspector::TableInspector;
use crate::context::CommandContext;

/// The buckets, and what the objects of the samples are.
pub(super) struct SampledObjects {
    source: S3Bucket,
    destination: S3Bucket,
    regions: [Option<String>; 2],
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

/// None where the buckets cannot be used.
pub(super) async fn sample_objects(
    context: &CommandContext,
    inspector: Option<&TableInspector>,
    samples: &mut [SampleRow],
    checks: &mut PlanChecks,
) -> Option<SampledObjects> {
    let run = &context.migration.run;
    let (source, destination) = open_buckets(context, checks).await?;
    let mut sampled = SampledObjects::new(source, destination).await;
    sampled.check_regions(checks);
    sampled.read(&run.rule, samples).await;
    sampled.check(samples.len(), checks);
    sampled.check_tags(checks).await;
    check_companions(&sampled.source, &run.rule, samples, checks).await;
    let keys = samples.iter().map(|sample| &*sample.route.source_key);
    check_acls(
        &sampled.source,
        keys,
        run.options.copy_acl.as_deref(),
        checks,
    )
    .await;
    check_neighbours(run, inspector, &sampled.source, samples, checks).await;
    check_destinations(&sampled.destination, samples, checks).await;
    Some(sampled)
}

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
            match error {
                PreflightError::AccessDenied { .. } => checks.fail_by("buckets", &error),
                _ => checks.fail(
                    "buckets",
                    error.to_string(),
                    "check the name, AWS_REGION, the endpoint, and S3_FORCE_PATH_STYLE for a store of your own",
                ),
            }
            is_open = false;
        }
    }
    is_open.then_some((source, destination))
}

/// The region a bucket says it is in; none where it does not say.
async fn read_region(bucket: &S3Bucket) -> Option<String> {
    let request = bucket.client().head_bucket().bucket(bucket.name());
    let output = request.send().await.ok()?;
    output.bucket_region().map(ToOwned::to_owned)
}

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
    async fn new(source: S3Bucket, destination: S3Bucket) -> Self {
        Self {
            regions: [read_region(&source).await, read_region(&destination).await],
            source,
            destination,
            readable: 0,
            bytes: 0,
            missing: Vec::new(),
            by_encoding: BTreeMap::new(),
            denied: None,
            with_customer_key: Vec::new(),
            archived: Vec::new(),
            tagged: 0,
            uses_kms: false,
            smallest: None,
        }
    }

    /// One real copy of the smallest.
    pub(super) async fn probe(
        self,
        context: &CommandContext,
        application: Option<&S3Bucket>,
        checks: &mut PlanChecks,
    ) -> ObjectFacts {
        let mut objects = self.object_facts();
        let run = &context.migration.run;
        let request = context.method_request(&run.options);
        let may_copy = request.stores.is_one_store() && run.options.copy_method.is_none();
        let opened = request.open(self.source, self.destination.clone()).await;
        check_method(&opened, may_copy, checks);
        let Ok(store) = opened else { return objects };
        objects.requests = store.requests_per_copy();
        objects.is_streamed = store.method() == CopyMethod::Stream;
        if let Some((size_bytes, source_key)) = &self.smallest {
            let request = ProbeRequest {
                run,
                destination: &self.destination,
                application,
                source_key,
                size_bytes: *size_bytes,
            };
            probe_copy(&store, &request, &mut objects, checks).await;
        }
        objects
    }

    fn check_regions(&self, checks: &mut PlanChecks) {
        let (source, destination) = (self.source.name(), self.destination.name());
        match &self.regions {
            [Some(from), Some(to)] if from != to => checks.warn(
                "buckets",
                format!("{source} is in {from}, {destination} in {to}: copies cross regions"),
                "set AWS_REGION to the destination's and SOURCE_REGION to the source's; transfer costs, and VPC endpoints do not carry it",
            ),
            [_, Some(to)] => checks.ok("buckets", format!("{source} and {destination}, in {to}")),
            _ => checks.ok("buckets", format!("{source} and {destination} are there")),
        }
    }

    async fn read(&mut self, rule: &PathRule, samples: &mut [SampleRow]) {
        for sample in samples {
            let (key, id) = (&sample.route.source_key, || sample.id.clone());
            match self.source.head(key).await {
                Ok(Some(head)) => {
                    sample.size_bytes = Some(head.size_bytes);
                    self.add_object(key, &head);
                }
                Ok(None) => {
                    sample.is_missing = true;
                    match find_encoding(&self.source, rule, &sample.route).await {
                        Some(encoding) => {
                            let ids = self.by_encoding.entry(encoding.name()).or_default();
                            ids.push(id());
                        }
                        None => self.missing.push(id()),
                    }
                }
                Err(error) if error.code() == CUSTOMER_KEY => self.with_customer_key.push(id()),
                Err(error) => self.denied = Some(error.to_string()),
            }
        }
    }

    fn add_object(&mut self, key: &str, head: &ObjectHead) {
        self.readable += 1;
        let size = head.size_bytes;
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

    fn object_facts(&self) -> ObjectFacts {
        let count = u64::try_from(self.readable).unwrap_or(0);
        ObjectFacts {
            average_bytes: self.bytes.checked_div(count),
            crosses_regions: matches!(&self.regions, [Some(from), Some(to)] if from != to),
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
                let mend =
                    "check SOURCE_BUCKET_NAME and SOURCE_KEY_PREFIX: no sampled row has an object";
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

    /// Tags travel with a copy, which asks for a right of its own, even of an object that has none.
    async fn check_tags(&self, checks: &mut PlanChecks) {
        let Some((_, key)) = &self.smallest else {
            return;
        };
        let request = self.source.client().get_object_tagging();
        let request = request.bucket(self.source.name()).key(key);
        let read = request.send().await;
        match read.map_err(|error| self.source.refused(key, error)) {
            Ok(_) => {
                let tagged = counted(self.tagged, "object has", "objects have");
                let finding = format!("can be read; {tagged} some");
                checks.ok("tags", finding);
            }
            Err(error) if NO_TAGS_CODES.contains(&error.code()) => {
                checks.ok("tags", "the store knows none");
            }
            Err(error @ StoreError::Denied { .. }) => checks.fail(
                "tags",
                format!("cannot be read: {error}"),
                "s3:GetObjectTagging on the source: deploy/policies/consumer.json",
            ),
            Err(error) if NO_TAG_SET_CODES.contains(&error.code()) => {
                checks.ok("tags", "can be read; the smallest object has none");
            }
            Err(error) => checks.warn(
                "tags",
                format!("cannot be read: {error}"),
                "look whether copies carry them: the store answers as none should",
            ),
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
