//! The operator's word: the bucket's name, given as a flag or typed.

use std::fmt::Display;

use bucket_brigade_common::settings::SettingsError;
use tokio_util::sync::CancellationToken;

use crate::consent::{ConsentReply, ask};
use crate::output::OutputFormat;

/// Whether objects may be removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RemovalConsent {
    Given,
    /// Not given: the command only prints what it would do.
    Withheld,
    /// Ctrl-C instead of a reply.
    Interrupted,
}

/// Checks a name given as a flag, before anything is done.
///
/// # Errors
/// It is another name.
pub(super) fn check_bucket_name(given: Option<&str>, bucket: &str) -> Result<(), SettingsError> {
    match given {
        Some(name) if name != bucket => Err(SettingsError::for_setting(
            "--confirm",
            format!("'{name}' is not the bucket that objects would be removed from ('{bucket}')"),
        )),
        _ => Ok(()),
    }
}

/// Asks for the name on a terminal.
///
/// # Errors
/// Another name was typed, or the terminal cannot be used.
pub(super) async fn prompt_for_consent(
    format: OutputFormat,
    preview: &impl Display,
    bucket: &str,
    stop: &CancellationToken,
) -> anyhow::Result<RemovalConsent> {
    let question = format!("{preview}\nType the bucket's name to remove them: ");
    match ask(format, &question, stop).await? {
        ConsentReply::Unattended => Ok(RemovalConsent::Withheld),
        ConsentReply::Interrupted => Ok(RemovalConsent::Interrupted),
        ConsentReply::Typed(name) => {
            check_bucket_name(Some(&name), bucket)?;
            Ok(RemovalConsent::Given)
        }
    }
}
