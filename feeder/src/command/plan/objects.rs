//! The buckets, and a handful of real objects.

use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::operation::head_object::HeadObjectOutput;
use aws_sdk_s3::types::StorageClass;
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::preflight::{Need, check_bucket};
use bucket_brigade_common::s3::store_error;

use super::Sample;
use super::check::{Check, Verdict};
use super::probe::Probe;
use crate::command::context::Context;

/// What was learned of the objects.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Objects {
    /// The average size of those looked at, in bytes.
    pub(super) average_bytes: Option<u64>,
    /// How long a copy took.
    pub(super) copy: Option<Duration>,
    /// Whether source and destination are in different regions.
    pub(super) crosses_regions: bool,
    /// Whether a key of KMS is involved on either side.
    pub(super) uses_kms: bool,
}

/// What the objects of the samples are.
#[derive(Default)]
struct Looked {
    readable: usize,
    bytes: u64,
    missing: Vec<String>,
    denied: Option<String>,
    archived: Vec<String>,
    tagged: usize,
    uses_kms: bool,
    /// The smallest of them, to be copied.
    smallest: Option<(i64, String)>,
}

pub(super) async fn check(
    context: &Context,
    samples: &mut [Sample],
    checks: &mut Vec<Check>,
) -> Objects {
    let run = &context.migration.run;
    let (source, destination) = (&run.source_bucket, &run.destination_bucket);
    let before = checks.len();
    let (source_s3, s3) = match context.buckets().await {
        Ok((source, destination)) => (source.client().clone(), destination.client().clone()),
        Err(error) => {
            checks.push(Check::of_preflight("buckets", &error));
            return Objects::default();
        }
    };
    for (client, setting, bucket) in [
        (&source_s3, "SOURCE_BUCKET_NAME", source),
        (&s3, "DESTINATION_BUCKET_NAME", destination),
    ] {
        if let Err(error) = check_bucket(client, setting, bucket, Need::Use).await {
            checks.push(Check::of_preflight("buckets", &error));
        }
    }
    if checks.len() > before {
        return Objects::default();
    }
    let regions = [
        region(&source_s3, source).await,
        region(&s3, destination).await,
    ];
    checks.push(buckets(&regions, source, destination));
    let looked = look(&source_s3, source, samples).await;
    checks.extend(looked.checks(samples.len()));
    checks.extend(tags(&source_s3, source, &looked).await);
    let mut objects = looked.objects(&regions);
    if let Some((size, key)) = &looked.smallest {
        let probe = Probe {
            client: &s3,
            source,
            destination,
            prefix: run.rule.destination_key_prefix(),
        };
        let copied = probe.copy(key, *size, checks).await;
        objects.copy = copied.took;
        objects.uses_kms |= copied.uses_kms;
    }
    checks.extend(taken(&s3, destination, samples).await);
    objects
}

/// The region a bucket says it is in; none where it does not say.
async fn region(client: &Client, bucket: &str) -> Option<String> {
    let answer = client.head_bucket().bucket(bucket).send().await.ok()?;
    answer.bucket_region().map(ToOwned::to_owned)
}

fn buckets(regions: &[Option<String>; 2], source: &str, destination: &str) -> Check {
    match regions {
        [Some(from), Some(to)] if from != to => Check::warns(
            "buckets",
            format!("{source} is in {from}, {destination} in {to}: copies cross regions"),
            "set AWS_REGION to the destination's and SOURCE_REGION to the source's; transfer costs, and VPC endpoints do not carry it",
        ),
        [_, Some(to)] => Check::good("buckets", format!("{source} and {destination}, in {to}")),
        _ => Check::good("buckets", format!("{source} and {destination} are there")),
    }
}

async fn look(client: &Client, bucket: &str, samples: &mut [Sample]) -> Looked {
    let mut looked = Looked::default();
    for sample in samples {
        let key = &sample.route.source_key;
        let head = client.head_object().bucket(bucket).key(key).send().await;
        match head {
            Ok(head) => {
                sample.size_bytes = head.content_length();
                looked.add(key, &head);
            }
            Err(error) => match store_error(error) {
                StoreError::Denied { code, message } => {
                    looked.denied = Some(format!("{code}: {message}"));
                }
                StoreError::Permanent { .. } => looked.missing.push(sample.id.clone()),
                other => looked.denied = Some(other.to_string()),
            },
        }
    }
    looked
}

impl Looked {
    fn add(&mut self, key: &str, head: &HeadObjectOutput) {
        let size = head.content_length().unwrap_or(0);
        self.readable += 1;
        self.bytes += u64::try_from(size).unwrap_or(0);
        self.tagged += usize::from(head.tag_count().unwrap_or(0) > 0);
        self.uses_kms |= head.ssekms_key_id().is_some();
        let class = head.storage_class().map_or("", StorageClass::as_str);
        if matches!(class, "GLACIER" | "DEEP_ARCHIVE") && head.restore().is_none() {
            self.archived.push(key.to_owned());
        } else if self
            .smallest
            .as_ref()
            .is_none_or(|(least, _)| size < *least)
        {
            self.smallest = Some((size, key.to_owned()));
        }
    }

    fn objects(&self, regions: &[Option<String>; 2]) -> Objects {
        let count = u64::try_from(self.readable).unwrap_or(0);
        Objects {
            average_bytes: self.bytes.checked_div(count),
            copy: None,
            crosses_regions: matches!(regions, [Some(from), Some(to)] if from != to),
            uses_kms: self.uses_kms,
        }
    }

    fn checks(&self, all: usize) -> Vec<Check> {
        let mut checks = Vec::new();
        if let Some(why) = &self.denied {
            checks.push(Check::fails(
                "sources",
                format!("an object cannot be read: {why}"),
                "s3:GetObject on the source, and kms:Decrypt on its key: deploy/policies/consumer.json",
            ));
        }
        if !self.missing.is_empty() {
            let finding = format!(
                "{} of {all} rows have no object (ids: {})",
                self.missing.len(),
                self.missing.join(", ")
            );
            checks.push(if self.readable == 0 {
                let mend = "check SOURCE_BUCKET_NAME and SOURCE_KEY_PREFIX: no row that was looked at has an object";
                Check::fails("sources", finding, mend)
            } else {
                let mend = "such rows are recorded as failed, NoSuchKey";
                Check::warns("sources", finding, mend)
            });
        }
        if !self.archived.is_empty() {
            checks.push(Check::warns(
                "sources",
                format!("archived: {}", self.archived.join(", ")),
                "restore them first; they are recorded as failed, InvalidObjectState",
            ));
        }
        if self.readable > 0 {
            let finding = format!("{} of {all} objects can be read", self.readable);
            checks.push(Check::good("sources", finding));
        }
        checks
    }
}

/// Tags travel with a copy, which asks for a right of its own, even of an object that has none.
async fn tags(client: &Client, bucket: &str, looked: &Looked) -> Option<Check> {
    let (_, key) = looked.smallest.as_ref()?;
    let answer = client.get_object_tagging().bucket(bucket).key(key).send();
    Some(match answer.await {
        Ok(_) => Check::good(
            "tags",
            format!("can be read; {} objects have some", looked.tagged),
        ),
        Err(error) => Check::fails(
            "tags",
            format!("cannot be read: {}", store_error(error)),
            "s3:GetObjectTagging on the source: deploy/policies/consumer.json",
        ),
    })
}

/// Whether something stands where the copies go.
async fn taken(client: &Client, bucket: &str, samples: &[Sample]) -> Option<Check> {
    let mut taken = Vec::new();
    for sample in samples {
        let key = &sample.route.destination_key;
        let head = client.head_object().bucket(bucket).key(key).send().await;
        if head.is_ok() {
            taken.push(sample.id.clone());
        }
    }
    (!taken.is_empty()).then(|| Check {
        about: "destinations",
        verdict: Verdict::Warns,
        finding: format!(
            "where {} of {} rows go, an object stands already: {}",
            taken.len(),
            samples.len(),
            taken.join(", ")
        ),
        mend: Some(
            "an identical copy is recognised; anything else is never overwritten, and the row is recorded as failed"
                .into(),
        ),
    })
}
