//! The settings of the copies.

use aws_sdk_s3::types::{ObjectCannedAcl, ServerSideEncryption};
use clap::Args;

use super::{Setting, SettingsProblems, optional, setting};
use crate::object_store::s3::CopyAttributes;

#[derive(Debug, Args)]
#[command(next_help_heading = "The copies")]
pub struct ObjectArgs {
    /// The canned ACL of the copies, for example public-read: S3 does not carry the source's over. The bucket
    /// must have ACLs enabled [default: private]
    #[arg(long, env, value_name = "ACL", default_value = "", hide_default_value = true, value_parser = setting(parse_acl))]
    copy_acl: Setting<Option<ObjectCannedAcl>>,
    /// The encryption of the copies: AES256, aws:kms or aws:kms:dsse [default: the bucket's]
    #[arg(long, env, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = setting(parse_encryption))]
    sse: Setting<Option<ServerSideEncryption>>,
    /// With aws:kms: the key's id or ARN [default: the bucket's]
    #[arg(long, env, value_name = "KEY", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    sse_kms_key_id: Setting<Option<String>>,
}

impl ObjectArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> CopyAttributes {
        let attributes = CopyAttributes {
            storage_class: None,
            acl: self.copy_acl.take(problems),
            encryption: self.sse.take(problems),
            kms_key_id: self.sse_kms_key_id.take(problems),
        };
        let is_kms = |sse: &ServerSideEncryption| sse.as_str().starts_with("aws:kms");
        if attributes.kms_key_id.is_some() && !attributes.encryption.as_ref().is_some_and(is_kms) {
            problems.add("SSE_KMS_KEY_ID", "needs SSE=aws:kms");
        }
        attributes
    }
}

fn parse_acl(text: &str) -> Result<Option<ObjectCannedAcl>, String> {
    parse_known(text, ObjectCannedAcl::try_parse, ObjectCannedAcl::values())
}

fn parse_encryption(text: &str) -> Result<Option<ServerSideEncryption>, String> {
    let known = ["AES256", "aws:kms", "aws:kms:dsse"];
    parse_known(text, ServerSideEncryption::try_parse, &known)
}

fn parse_known<T, E>(
    text: &str,
    parse: impl Fn(&str) -> Result<T, E>,
    known: &[&str],
) -> Result<Option<T>, String> {
    match optional(text)? {
        None => Ok(None),
        Some(text) if known.contains(&&*text) => Ok(parse(&text).ok()),
        Some(_) => Err(format!("is none of {}", known.join(", "))),
    }
}
