//! What a connection logs in with, read anew as often as it may have changed.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use thiserror::Error;
use tokio::task::spawn_blocking;

use super::iam_token::IamTokens;
use crate::settings::SecretString;

/// Why there is nothing to log in with.
#[derive(Debug, Error)]
#[error("{problem}")]
pub struct LoginError {
    pub(crate) problem: String,
    /// Whether it may be there in a moment.
    pub(crate) is_transient: bool,
}

/// Where the password is found.
#[derive(Clone)]
pub(crate) enum PasswordSource {
    /// In the options.
    Fixed,
    /// `PGPASSFILE`, looked up by what the URL or libpq's variables say.
    PassFile(Option<SecretString>),
    File(PathBuf),
    Iam(Arc<IamTokens>),
}

/// How to reach the database. Holds the password: never printed.
#[derive(Clone)]
pub struct DatabaseLogin {
    /// With the password as it was when the process started.
    pub(super) options: PgConnectOptions,
    password: PasswordSource,
}

impl DatabaseLogin {
    /// # Errors
    /// What is wrong with one of the settings, by its name.
    pub(crate) fn new(
        options: PgConnectOptions,
        password: PasswordSource,
    ) -> Result<Self, (&'static str, String)> {
        match &password {
            PasswordSource::Iam(_) if !is_encrypted(&options) => {
                let problem = "iam sends its token over TLS alone: add sslmode=verify-full, verify-ca or require (PGSSLMODE)";
                return Err(("DATABASE_AUTH", problem.into()));
            }
            PasswordSource::File(path) => {
                let read = parse_password(path, std::fs::read_to_string(path));
                read.map_err(|problem| (PASSWORD_FILE, problem))?;
            }
            _ => {}
        }
        Ok(Self { options, password })
    }

    pub(super) fn is_fixed(&self) -> bool {
        matches!(self.password, PasswordSource::Fixed)
    }

    pub(crate) fn is_iam(&self) -> bool {
        matches!(self.password, PasswordSource::Iam(_))
    }

    /// With the password of now.
    pub(crate) async fn read_options(&self) -> Result<PgConnectOptions, LoginError> {
        let options = self.options.clone();
        let refused = |problem| LoginError {
            problem,
            is_transient: false,
        };
        Ok(match &self.password {
            PasswordSource::Fixed => options,
            PasswordSource::PassFile(url) => {
                let url = url.clone();
                let parsed = spawn_blocking(move || parse_options(url.as_ref())).await;
                let parsed = parsed.unwrap_or_else(|error| Err(error.to_string()));
                parsed.map_err(refused)?
            }
            PasswordSource::File(path) => {
                let password = parse_password(path, tokio::fs::read_to_string(path).await);
                let name = |problem| refused(format!("{PASSWORD_FILE}: {problem}"));
                options.password(&password.map_err(name)?)
            }
            PasswordSource::Iam(tokens) => {
                let token = Box::pin(tokens.sign(&options)).await?;
                options.password(&token)
            }
        })
    }
}

impl From<PgConnectOptions> for DatabaseLogin {
    fn from(options: PgConnectOptions) -> Self {
        Self {
            options,
            password: PasswordSource::Fixed,
        }
    }
}

impl FromStr for DatabaseLogin {
    type Err = sqlx::Error;

    fn from_str(url: &str) -> Result<Self, sqlx::Error> {
        url.parse().map(PgConnectOptions::into)
    }
}

const PASSWORD_FILE: &str = "DATABASE_PASSWORD_FILE";

/// Without the line's end that editors add.
fn parse_password(path: &Path, text: std::io::Result<String>) -> Result<String, String> {
    let text = text.map_err(|error| format!("'{}' cannot be read: {error}", path.display()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("'{}' is empty", path.display())),
        several if several.contains(['\r', '\n']) => {
            Err(format!("'{}' has more than one line", path.display()))
        }
        password => Ok(password.to_owned()),
    }
}

fn is_encrypted(options: &PgConnectOptions) -> bool {
    let mode = options.get_ssl_mode();
    options.get_socket().is_none()
        && matches!(
            mode,
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull
        )
}

/// libpq's variables and `PGPASSFILE` are read by sqlx itself; at least a host must be named, so that a
/// database that happens to listen on localhost is not migrated by mistake.
pub(crate) fn parse_options(url: Option<&SecretString>) -> Result<PgConnectOptions, String> {
    let url = url.map(SecretString::expose_secret);
    let options: PgConnectOptions = match url.filter(|url| !url.trim().is_empty()) {
        Some(url) if has_stray_password(url) => {
            return Err(format!(
                "cannot be read: user or password hold a #, / or ? ({PERCENT_ENCODE})"
            ));
        }
        Some(url) if hosts_of(url).contains(',') => return Err(SEVERAL_HOSTS.into()),
        // sqlx would pass over it, and connect to another server.
        Some(url) if url.contains("?service=") || url.contains("&service=") => {
            return Err("names a service, and no service file is read".into());
        }
        Some(url) if unread_ssl_parameter(url).is_some() => {
            return Err("has an ssl parameter that is not read: write sslmode=require, verify-ca or verify-full, and sslrootcert".into());
        }
        Some(url) if url.starts_with("postgres://") || url.starts_with("postgresql://") => {
            let url = with_host(url);
            url.parse().map_err(|error| describe_url_error(&error))?
        }
        Some(_) => return Err("is not a postgres:// URL".into()),
        None if std::env::var("PGHOST").is_ok_and(|hosts| hosts.contains(',')) => {
            return Err(format!("is missing, and PGHOST {SEVERAL_HOSTS}"));
        }
        None if std::env::var_os("PGHOST").is_some() => PgConnectOptions::new(),
        None => return Err("is missing (or PGHOST and libpq's other variables)".into()),
    };
    Ok(without_brackets(options).application_name("bucket-brigade"))
}

/// Those that sqlx reads, and those of libpq's that weaken nothing where it passes over them.
const SSL_PARAMETERS: [&str; 13] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "sslcompression",
    "sslnegotiation",
    "sslsni",
    "ssl_max_protocol_version",
];

/// A misspelt one, or another library's, which sqlx would pass over, and perhaps connect in plain text.
fn unread_ssl_parameter(url: &str) -> Option<&str> {
    let (_, query) = url.split_once('?')?;
    let mut names = query.split('&').filter_map(|one| one.split('=').next());
    names.find(|name| {
        let bare = name.to_lowercase().replace(['_', '-'], "");
        (bare.starts_with("ssl") || bare.starts_with("tls")) && !SSL_PARAMETERS.contains(name)
    })
}

const SEVERAL_HOSTS: &str =
    "names several hosts: name one, or an address that leads to the primary";

fn hosts_of(url: &str) -> &str {
    let authority = url.split(['/', '?']).nth(2).unwrap_or_default();
    authority.rsplit('@').next().unwrap_or_default()
}

/// Beside `host=/a/directory` libpq takes a user without a host, a URL does not.
fn with_host(url: &str) -> Cow<'_, str> {
    let names_host = url.contains("?host=") || url.contains("&host=");
    if names_host && hosts_of(url).is_empty() {
        return url.replacen("@/", "@localhost/", 1).into();
    }
    url.into()
}

/// An IPv6 address is in brackets in a URL, and is looked up as a name there.
fn without_brackets(options: PgConnectOptions) -> PgConnectOptions {
    let host = options.get_host().strip_prefix('[');
    match host.and_then(|host| host.strip_suffix(']')) {
        Some(address) => options.clone().host(address),
        None => options,
    }
}

pub(crate) const SSL_MODE_PROBLEM: &str =
    "must be one of disable, allow, prefer, require, verify-ca, verify-full";

/// Why the URL cannot be read, in words that hold nothing of it: a password that is not
/// percent-encoded ends up in any of its parts.
fn describe_url_error(error: &sqlx::Error) -> String {
    let reason = match error {
        sqlx::Error::Configuration(cause) => cause.to_string(),
        _ => "error".to_owned(),
    };
    if reason.contains("ssl_mode") {
        return format!("its sslmode {SSL_MODE_PROBLEM}");
    }
    format!("cannot be read: {reason} ({PERCENT_ENCODE})")
}

const PERCENT_ENCODE: &str = "percent-encode what is special in the password";

/// Whether a part of the password stands for the host, the database or an option, which errors show.
fn has_stray_password(url: &str) -> bool {
    let (location, options) = url.split_once('?').unwrap_or((url, ""));
    let database = location.splitn(4, '/').nth(3).unwrap_or_default();
    let option = options.split_once('@').map(|(before, _)| before);
    url.contains('#') || database.contains('@') || option.is_some_and(|text| !text.contains('='))
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_ipv6_address_is_read_with_and_without_brackets() {
        let url = SecretString::from("postgres://app@[::1]:5432/app".to_owned());
        let options = parse_options(Some(&url)).unwrap();
        assert_eq!((options.get_host(), options.get_port()), ("::1", 5432));
        for host in ["[::1]", "::1"] {
            let options = without_brackets(PgConnectOptions::new().host(host));
            assert_eq!(options.get_host(), "::1");
        }
    }

    #[test]
    fn a_socket_is_named_without_a_host() {
        for url in [
            "postgres://u:p@/app?host=/run/db",
            "postgres:///app?user=u&host=/run/db",
        ] {
            let options = parse_options(Some(&SecretString::from(url.to_owned()))).unwrap();
            let socket = options.get_socket().map(PathBuf::as_path);
            assert_eq!(socket, Some(Path::new("/run/db")), "{url}");
            assert_eq!(
                (options.get_username(), options.get_database()),
                ("u", Some("app"))
            );
        }
    }

    #[test]
    fn a_url_that_leads_elsewhere_than_it_says_is_refused() {
        for (url, problem) in [
            ("postgres://u:p,q@h1:1,h2:2/app", SEVERAL_HOSTS),
            ("postgres://u@h1,h2/app", SEVERAL_HOSTS),
            (
                "postgres://u@h/app?sslmode=require&service=prod",
                "a service",
            ),
            ("postgres://u@h/app?sslmod=require", "sslmode=require"),
            ("postgres://u@h/app?a=b&ssl=true", "sslmode=require"),
            ("postgres://u@h/app?SSLMODE=require", "sslmode=require"),
        ] {
            let error = parse_options(Some(&SecretString::from(url.to_owned()))).unwrap_err();
            assert!(error.contains(problem), "{url}: {error}");
        }
        let read = "postgres://u@h/app?sslmode=require&ssl-key=k&sslsni=1&sslnegotiation=direct";
        assert_eq!(unread_ssl_parameter(read), None);
        let url = SecretString::from("postgres://u:p,q@h:1/app".to_owned());
        assert_eq!(parse_options(Some(&url)).unwrap().get_host(), "h");
    }

    #[test]
    fn a_password_is_one_line() {
        let parse = |text: &str| parse_password(Path::new("secret"), Ok(text.into()));
        assert_eq!(parse("p w\r\n"), Ok("p w".into()));
        assert_eq!(parse("p\n\n"), Ok("p".into()));
        let problem = Err("'secret' has more than one line".to_owned());
        assert_eq!(parse("p\nw\n"), problem);
        assert_eq!(parse("\np"), problem);
    }

    /// A pipe without a writer: like a file on a server that does not respond.
    #[tokio::test]
    async fn a_password_file_that_hangs_holds_nothing_else_up() {
        let name = format!("bucket-brigade-password-{:016x}", fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        assert!(
            Command::new("mkfifo")
                .arg(&path)
                .status()
                .unwrap()
                .success()
        );
        let (went_on, pipe) = (Arc::new(AtomicBool::new(false)), path.clone());
        let seen = Arc::clone(&went_on);
        let writer = std::thread::spawn(move || {
            for _ in 0..500 {
                if seen.load(Ordering::Relaxed) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            let has_gone_on = seen.load(Ordering::Relaxed);
            std::fs::write(pipe, "secret\n").unwrap();
            has_gone_on
        });
        let login = DatabaseLogin {
            options: PgConnectOptions::new(),
            password: PasswordSource::File(path.clone()),
        };
        let reading = tokio::spawn(async move { login.read_options().await.is_ok() });
        tokio::task::yield_now().await;
        went_on.store(true, Ordering::Relaxed);
        assert!(reading.await.unwrap() && writer.join().unwrap());
        std::fs::remove_file(path).unwrap();
    }
}
