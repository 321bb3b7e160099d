//! The page's settings.

use std::net::SocketAddr;

use bucket_brigade_common::settings::{
    SecretString, Setting, SettingsProblems, optional, parse_address, parse_bool, secret_setting,
    setting,
};

use super::thumbnail::url_origin;

/// Scheme, host and port: a signature holds for a host, and the bucket and key are its path.
fn parse_origin(text: &str) -> Result<Option<String>, String> {
    let is_origin = url_origin(text).is_some_and(|origin| origin == text);
    if text.is_empty() || is_origin {
        optional(text)
    } else {
        Err("is not http:// or https:// with a host and nothing after it".into())
    }
}

/// A token that can be guessed is none.
const MIN_TOKEN_LENGTH: usize = 16;

/// The settings as text, from flags or the environment.
#[derive(Debug, clap::Args)]
#[expect(
    clippy::struct_field_names,
    reason = "the flags of the feeder carry the page's name"
)]
#[command(next_help_heading = "The live page")]
pub struct DashboardArgs {
    /// Show the run in a browser on this address, for example 127.0.0.1:9101
    #[arg(long, env, value_name = "ADDRESS:PORT", default_value = "off", value_parser = setting(parse_address))]
    status_addr: Setting<Option<SocketAddr>>,
    /// A name that browsers may reach the page by, for example brigade.example.com [default: localhost and
    /// IP addresses alone]
    #[arg(long, env, value_name = "NAME", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    status_host: Setting<Option<String>>,
    /// Pause, resume and limit from the page, with this token of at least 16 characters
    /// [default: not from the page]
    #[arg(long, env, hide_env_values = true, value_name = "TOKEN")]
    status_token: Option<SecretString>,
    /// Show the newest moved images, through presigned URLs, to everyone who can open the page
    #[arg(long, env, value_name = "BOOL", default_value = "false", value_parser = setting(parse_bool))]
    status_thumbnails: Setting<bool>,
    /// Where browsers reach the destination bucket's store [default: where the feeder does]
    #[arg(long, env, value_name = "URL", default_value = "", hide_default_value = true, value_parser = secret_setting(parse_origin))]
    status_thumbnails_endpoint: Setting<Option<String>>,
}

#[derive(Debug, Clone)]
pub struct DashboardSettings {
    /// None while the page is off.
    pub address: Option<SocketAddr>,
    pub host: Option<String>,
    /// What the controls ask for; none for a page without controls.
    pub token: Option<SecretString>,
    pub thumbnails: bool,
    pub thumbnails_endpoint: Option<String>,
}

impl DashboardArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> DashboardSettings {
        let address = self.status_addr.take(problems);
        // Empty counts as unset: compose files pass unset variables so.
        let token = self
            .status_token
            .filter(|token| !token.expose_secret().trim().is_empty());
        if let Some(token) = &token {
            check_token(token.expose_secret(), problems);
        }
        DashboardSettings {
            address,
            host: self.status_host.take(problems),
            token,
            thumbnails: self.status_thumbnails.take(problems),
            thumbnails_endpoint: self.status_thumbnails_endpoint.take(problems),
        }
    }
}

/// The words hold nothing of it.
fn check_token(token: &str, problems: &mut SettingsProblems) {
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        problems.add(
            "STATUS_TOKEN",
            "holds other than letters, digits and signs of ASCII; an HTTP header carries it",
        );
    } else if token.len() < MIN_TOKEN_LENGTH {
        problems.add(
            "STATUS_TOKEN",
            format!("is shorter than {MIN_TOKEN_LENGTH} characters and could be guessed"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_origin() {
        for good in ["http://127.0.0.1:9110", "https://s3.example.com", ""] {
            assert!(parse_origin(good).is_ok(), "{good}");
        }
        for bad in [
            "s3.example.com",
            "ftp://a",
            "http://",
            "http://a/b",
            "http://a/",
            "http://u:p@a",
            "http://a b;c",
        ] {
            assert!(parse_origin(bad).is_err(), "{bad}");
        }
    }
}
