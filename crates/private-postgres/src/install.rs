//! What of Postgres is installed, and whom it may run as.

use std::cmp::Reverse;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

/// The unprivileged user that runs Postgres, which refuses to run as root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The user to run the server as when we are root; none when we are not.
pub(super) async fn unprivileged_owner() -> Result<Option<Owner>> {
    if ask("id", &["-u"]).await.as_deref() != Some("0") {
        return Ok(None);
    }
    for user in ["postgres", "nobody"] {
        let ids = [
            ask("id", &["-u", user]).await,
            ask("id", &["-g", user]).await,
        ];
        if let [Some(Ok(uid)), Some(Ok(gid))] = ids.map(|id| id.map(|id| id.parse())) {
            return Ok(Some(Owner { uid, gid }));
        }
    }
    bail!("Postgres refuses to run as root, and there is no user postgres or nobody to run it as")
}

/// The directory that holds `initdb`, `pg_ctl` and `postgres`.
pub(super) async fn find_binaries() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let configured = ask("pg_config", &["--bindir"]).await.map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(configured)
        .chain(debian_directories())
        // A distribution may link single programs onto the PATH: follow to where all of them are.
        .filter_map(|directory| Some(directory.join("pg_ctl").canonicalize().ok()?.parent()?.to_owned()))
        .find(|directory| ["initdb", "postgres"].iter().all(|name| directory.join(name).exists()))
        .context("no Postgres server is installed (no initdb, pg_ctl and postgres together); run script/setup")
}

/// `/usr/lib/postgresql/*/bin`, the newest version first.
fn debian_directories() -> Vec<PathBuf> {
    let entries = std::fs::read_dir("/usr/lib/postgresql");
    let entries = entries.into_iter().flatten().flatten();
    let mut directories: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    directories.sort_by_key(|path| Reverse(version(path)));
    directories
        .into_iter()
        .map(|path| path.join("bin"))
        .collect()
}

/// What a program prints, without the line's end; none when it fails or is missing.
async fn ask(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program)
        .args(arguments)
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(Duration::from_secs(5), output)
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
