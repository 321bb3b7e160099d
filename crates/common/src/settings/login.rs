//! How to log in to the database.

use std::sync::Arc;

use clap::Args;
use sqlx::postgres::PgSslMode;

use super::{SecretString, Setting, SettingsProblems, choice, optional, setting};
use crate::database::{DatabaseLogin, PasswordSource, SSL_MODE_PROBLEM, parse_options};

#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "their settings are named so")]
pub struct LoginArgs {
    /// Postgres, with user, password and sslmode in the URL. Without it libpq's own variables are read:
    /// PGHOST, PGUSER, PGPASSWORD, PGPASSFILE, PGDATABASE, PGSSLMODE, …
    #[arg(long, env, hide_env_values = true, value_name = "URL")]
    database_url: Option<SecretString>,
    /// A file with the password alone, in place of the URL's; read anew, so that it may change meanwhile
    #[arg(long, env, value_name = "FILE", default_value = "", hide_default_value = true, value_parser = setting(optional))]
    database_password_file: Setting<Option<String>>,
    /// password, or iam: a token of RDS for each connection, signed with the process's AWS credentials. Needs
    /// sslmode=require or above, and the right rds-db:connect
    #[arg(long, env, value_name = "password|iam", default_value = "password", value_parser = setting(choice(&[("password", false), ("iam", true)])))]
    database_auth: Setting<bool>,
}

impl LoginArgs {
    pub fn parse(self, problems: &mut SettingsProblems) -> Option<DatabaseLogin> {
        check_ssl_mode(problems);
        check_port(problems);
        let file = self.database_password_file.take(problems);
        let is_iam = self.database_auth.take(problems);
        let has_pass_file = std::env::var_os("PGPASSFILE").is_some();
        let password = match file {
            Some(_) if is_iam => {
                problems.add(
                    "DATABASE_PASSWORD_FILE",
                    "is given beside DATABASE_AUTH=iam",
                );
                return None;
            }
            Some(path) => PasswordSource::File(path.into()),
            None if is_iam => PasswordSource::Iam(Arc::default()),
            None if has_pass_file => PasswordSource::PassFile(self.database_url.clone()),
            None => PasswordSource::Fixed,
        };
        let options = parse_options(self.database_url.as_ref());
        let login = options.map_err(|problem| ("DATABASE_URL", problem));
        let login = login.and_then(|options| DatabaseLogin::new(options, password));
        login
            .map_err(|(name, problem)| problems.add(name, problem))
            .ok()
    }
}

/// sqlx takes the default for a port that it cannot read: another server's, perhaps.
fn check_port(problems: &mut SettingsProblems) {
    let port = std::env::var("PGPORT").unwrap_or_default();
    if !port.is_empty() && port.parse::<u16>().is_err() {
        problems.add(
            "PGPORT",
            format!("'{port}' is no port (of several hosts one can be named)"),
        );
    }
}

/// sqlx takes a mode it cannot read for `prefer`, which needs no TLS at all.
fn check_ssl_mode(problems: &mut SettingsProblems) {
    let mode = std::env::var("PGSSLMODE").unwrap_or_default();
    if !mode.trim().is_empty() && mode.trim().parse::<PgSslMode>().is_err() {
        problems.add("PGSSLMODE", format!("'{mode}' {SSL_MODE_PROBLEM}"));
    }
}
