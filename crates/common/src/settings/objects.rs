//! The settings of the copies. They are the run's: the feeder writes them into the ledger.

use aws_sdk_s3::types::{ObjectCannedAcl, StorageClass};
use clap::Args;

use super::{Setting, SettingsProblems, must_be_one_of, optional, setting};
use crate::ledger::RunOptions;
use crate::object_store::s3::FROM_SOURCE;

#[derive(Debug, Args)]
#[command(
    next_help_heading = "The copies (the run's: consumers and commands find it in the ledger)"
)]
pub struct ObjectArgs {
    /// The canned ACL of the copies, for example public-read: S3 does not carry the source's over; source: public
    /// where the source is. The bucket must have ACLs enabled [default: private]
    #[arg(long, env, value_name = "ACL", default_value = "", hide_default_value = true, value_parser = setting(parse_acl))]
    copy_acl: Setting<Option<String>>,
    /// server: the store copies; stream: the bytes go through the consumer, which a copy between two stores needs;
    /// auto: as the store allows [default: auto]
    #[arg(long, env, value_name = "METHOD", default_value = "", hide_default_value = true, value_parser = setting(parse_method))]
    copy_method: Setting<Option<String>>,
    /// The encryption of the copies: AES256, aws:kms or aws:kms:dsse [default: the bucket's]
    #[arg(long, env, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = setting(|text: &str| parse_known(text, &["AES256", "aws:kms", "aws:kms:dsse"])))]
    sse: Setting<Option<String>>,
    /// With aws:kms: the key's id or ARN [default: the bucket's]
    #[arg(long, env, value_name = "KEY", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    sse_kms_key_id: Setting<Option<String>>,
    /// The storage class of the copies, which S3 does not carry over; source: the source's [default: STANDARD]
    #[arg(long, env, value_name = "CLASS", default_value = "", hide_default_value = true, value_parser = setting(parse_storage_class))]
    storage_class: Setting<Option<String>>,
    /// requester: pay for requests to buckets that ask for it
    #[arg(long, env, value_name = "requester", default_value = "", hide_default_value = true, value_parser = setting(|text: &str| parse_known(text, &["requester"])))]
    request_payer: Setting<Option<String>>,
    /// The account that must own the source bucket
    #[arg(long, env, value_name = "ACCOUNT", default_value = "", hide_default_value = true, value_parser = setting(parse_account))]
    expected_source_owner: Setting<Option<String>>,
    /// The account that must own the destination bucket
    #[arg(long, env, value_name = "ACCOUNT", default_value = "", hide_default_value = true, value_parser = setting(parse_account))]
    expected_destination_owner: Setting<Option<String>>,
}

impl ObjectArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> RunOptions {
        let options = RunOptions {
            copy_acl: self.copy_acl.take(problems),
            copy_method: self.copy_method.take(problems),
            expected_destination_owner: self.expected_destination_owner.take(problems),
            expected_source_owner: self.expected_source_owner.take(problems),
            request_payer: self.request_payer.take(problems),
            sse: self.sse.take(problems),
            sse_kms_key_id: self.sse_kms_key_id.take(problems),
            storage_class: self.storage_class.take(problems),
            ..RunOptions::default()
        };
        let is_kms = |sse: &String| sse.starts_with("aws:kms");
        if options.sse_kms_key_id.is_some() && !options.sse.as_ref().is_some_and(is_kms) {
            problems.add("SSE_KMS_KEY_ID", "needs SSE=aws:kms");
        }
        options
    }
}

fn parse_acl(text: &str) -> Result<Option<String>, String> {
    let known = [ObjectCannedAcl::values(), &[FROM_SOURCE]].concat();
    parse_known(text, &known)
}

/// The default is the same as none, as for the class: what is given must be as the ledger has it.
fn parse_method(text: &str) -> Result<Option<String>, String> {
    let method = parse_known(text, &["server", "stream", "auto"])?;
    Ok(method.filter(|method| method != "auto"))
}

fn parse_storage_class(text: &str) -> Result<Option<String>, String> {
    if matches!(text, "GLACIER" | "DEEP_ARCHIVE") {
        return Err("is an archive class: the application could not read the copies".into());
    }
    let known = [StorageClass::values(), &[FROM_SOURCE]].concat();
    let class = parse_known(text, &known)?;
    Ok(class.filter(|class| class != StorageClass::Standard.as_str()))
}

fn parse_account(text: &str) -> Result<Option<String>, String> {
    if !text.is_empty() && (text.len() != 12 || !text.bytes().all(|byte| byte.is_ascii_digit())) {
        return Err("is not the number of an account (12 digits)".into());
    }
    optional(text)
}

fn parse_known(text: &str, known: &[&str]) -> Result<Option<String>, String> {
    if !text.is_empty() && !known.contains(&text) {
        return Err(must_be_one_of(known));
    }
    optional(text)
}
