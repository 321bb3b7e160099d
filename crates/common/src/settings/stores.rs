//! Where S3 is, when not where the queue is; and where source and destination are two stores.

use clap::Args;

use super::{Setting, SettingsProblems, optional, parse_bool, secret_setting, setting};
use crate::object_store::objects::BucketSide;

#[derive(Debug, Args)]
#[command(next_help_heading = "The stores")]
pub struct StoreArgs {
    /// The profile of the requests to S3, where it is not that of the queue [default: AWS_PROFILE]
    #[arg(long, env, value_name = "PROFILE", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    s3_profile: Setting<Option<String>>,
    /// The source bucket's region, when it is not the destination's [default: AWS_REGION]
    #[arg(long, env, value_name = "REGION", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    source_region: Setting<Option<String>>,
    /// The store that the source bucket is in [default: AWS_ENDPOINT_URL_S3, or S3 itself]
    #[arg(long, env, value_name = "URL", default_value = "", hide_default_value = true, value_parser = secret_setting(parse_endpoint))]
    source_endpoint: Setting<Option<String>>,
    /// The profile that its requests are signed with [default: S3_PROFILE]
    #[arg(long, env, value_name = "PROFILE", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    source_profile: Setting<Option<String>>,
    /// The store that the destination bucket is in [default: AWS_ENDPOINT_URL_S3, or S3 itself]
    #[arg(long, env, value_name = "URL", default_value = "", hide_default_value = true, value_parser = secret_setting(parse_endpoint))]
    destination_endpoint: Setting<Option<String>>,
    /// The profile that its requests are signed with [default: S3_PROFILE]
    #[arg(long, env, value_name = "PROFILE", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    destination_profile: Setting<Option<String>>,
    /// Work with a store that supports no conditional write: an object that the application writes between
    /// the look and the copy would be overwritten
    #[arg(long, env, value_name = "BOOL", default_value = "false", value_parser = setting(parse_bool))]
    accept_unconditional: Setting<bool>,
    /// Address buckets as a path (local stand-ins and some S3-compatible stores)
    #[arg(long, env, value_name = "BOOL", default_value = "false", value_parser = setting(parse_bool))]
    s3_force_path_style: Setting<bool>,
}

/// How one of the two buckets is reached.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BucketStore {
    pub endpoint: Option<String>,
    pub profile: Option<StoreProfile>,
    pub region: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreProfile {
    pub name: String,
    /// The setting that names it.
    pub(crate) setting: &'static str,
}

#[derive(Debug, Clone, Default)]
pub struct StoreSettings {
    pub source: BucketStore,
    pub destination: BucketStore,
    /// Whether a HEAD before the copy is guard enough.
    pub accept_unconditional: bool,
    pub force_path_style: bool,
}

impl StoreSettings {
    pub fn at(&self, side: BucketSide) -> &BucketStore {
        match side {
            BucketSide::Source => &self.source,
            BucketSide::Destination => &self.destination,
        }
    }

    /// For copies from the destination to the source.
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination.clone(),
            destination: self.source.clone(),
            ..self.clone()
        }
    }
}

impl StoreArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> StoreSettings {
        check_sdk_endpoints(problems);
        let mut profile = |given: Setting<_>, setting| {
            let name = given.take(problems)?;
            Some(StoreProfile { name, setting })
        };
        let common = profile(self.s3_profile, "S3_PROFILE");
        let source_profile = profile(self.source_profile, "SOURCE_PROFILE");
        let destination_profile = profile(self.destination_profile, "DESTINATION_PROFILE");
        StoreSettings {
            source: BucketStore {
                endpoint: self.source_endpoint.take(problems),
                profile: source_profile.or_else(|| common.clone()),
                region: self.source_region.take(problems),
            },
            destination: BucketStore {
                endpoint: self.destination_endpoint.take(problems),
                profile: destination_profile.or(common),
                region: None,
            },
            accept_unconditional: self.accept_unconditional.take(problems),
            force_path_style: self.s3_force_path_style.take(problems),
        }
    }
}

/// What the SDK reads by itself.
fn check_sdk_endpoints(problems: &mut SettingsProblems) {
    for name in [
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ENDPOINT_URL_SQS",
    ] {
        let endpoint = std::env::var(name).unwrap_or_default();
        if let Err(problem) = parse_endpoint(&endpoint) {
            problems.add(name, problem);
        }
    }
}

/// It is written to logs: one that may hold credentials is refused, and not repeated.
fn parse_endpoint(text: &str) -> Result<Option<String>, String> {
    let is_url = text.starts_with("https://") || text.starts_with("http://");
    if !text.is_empty() && (!is_url || text.contains(['@', '?', '#'])) {
        return Err("is not the URL of a store (https://host, without user and query)".into());
    }
    optional(text.trim_end_matches('/'))
}
