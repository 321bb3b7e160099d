//! The limit of open files: each copy in flight has a connection, and containers start with a soft limit of 1024.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// What is open besides the copies: the database, the queue, the metrics, the logs.
const OTHER_FILES: u64 = 64;

/// Raises the soft limit to the hard one, and warns where even that may be too low.
pub fn raise_limit(max_concurrency: usize) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
    let limit = getrlimit(Resource::Nofile).current;
    let needed = needed_files(max_concurrency);
    if let Some(limit) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            "the limit of {limit} open files is too low for MAX_CONCURRENCY={max_concurrency}: raise it to {needed} (ulimit -n), or copies will fail"
        );
    }
}

/// A copy that is sent again has a second connection.
fn needed_files(max_concurrency: usize) -> u64 {
    let copies = u64::try_from(max_concurrency).unwrap_or(u64::MAX);
    copies.saturating_mul(2).saturating_add(OTHER_FILES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        let hard = getrlimit(Resource::Nofile).maximum;
        let low = Rlimit {
            current: Some(256),
            maximum: hard,
        };
        setrlimit(Resource::Nofile, low).unwrap();
        raise_limit(4096);
        assert_eq!(getrlimit(Resource::Nofile).current, hard);
        assert_eq!(needed_files(4096), 8256);
    }
}
