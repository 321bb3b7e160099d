//! What keeps the work back besides an operator's orders: a query of theirs, and the time of day. The query holds the
//! whole fleet, by way of the feeder's heartbeat; the hours hold the feeding alone.

use bucket_brigade_common::ledger::move_ledger::StatementError;
use bucket_brigade_common::ledger::{DatabasePool, evaluate_condition, local_time};
use bucket_brigade_common::preflight::{PreflightError, retry_transient};

use super::FeedWindow;

const THROTTLE_QUERY: &str = "THROTTLE_QUERY";

/// How much of a query is shown.
const MAX_EXCERPT_CHARS: usize = 80;

/// The operator's query and hours.
#[derive(Debug, Clone, Default)]
pub(super) struct HoldConditions {
    pub(super) query: Option<String>,
    pub(super) window: Option<FeedWindow>,
}

/// Why nothing starts, in the fleet and in the feeder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Holds {
    pub(super) fleet: Option<String>,
    pub(super) feeding: Option<String>,
}

impl HoldConditions {
    /// Whether the database understands them, before anything is fed.
    pub(super) async fn check(&self, pool: &DatabasePool) -> Result<(), PreflightError> {
        if let Some(query) = &self.query {
            let value = ask(THROTTLE_QUERY, async || {
                evaluate_condition(pool, query).await
            })
            .await?;
            parse_condition(value.as_deref())
                .map_err(|problem| PreflightError::invalid(THROTTLE_QUERY, problem))?;
        }
        if let Some(window) = &self.window {
            let zone = &window.time_zone;
            ask("FEED_WINDOW", async || local_time(pool, zone).await).await?;
        }
        Ok(())
    }

    pub(super) async fn read(&self, pool: &DatabasePool) -> Result<Holds, StatementError> {
        let fleet = match &self.query {
            Some(query) => read_query(pool, query).await?,
            None => None,
        };
        let feeding = match &self.window {
            Some(window) => read_window(pool, window).await?,
            None => None,
        };
        Ok(Holds { fleet, feeding })
    }
}

/// A query that fails says nothing of the database's load: it holds, and shows why. One that took too long does so
/// rightly.
async fn read_query(pool: &DatabasePool, query: &str) -> Result<Option<String>, StatementError> {
    let value = match evaluate_condition(pool, query).await {
        Err(StatementError::Rejected { code, message }) => {
            return Ok(Some(format!("{THROTTLE_QUERY} fails: {message} ({code})")));
        }
        value => value?,
    };
    match parse_condition(value.as_deref()) {
        Ok(false) => Ok(None),
        Ok(true) => {
            let value = value.unwrap_or_default();
            Ok(Some(format!(
                "{THROTTLE_QUERY} is {value}: {}",
                excerpt(query)
            )))
        }
        Err(problem) => Ok(Some(format!("{THROTTLE_QUERY}: {problem}"))),
    }
}

async fn read_window(
    pool: &DatabasePool,
    window: &FeedWindow,
) -> Result<Option<String>, StatementError> {
    let now = local_time(pool, &window.time_zone).await?;
    let (hours, minutes) = (now.minutes / 60, now.minutes % 60);
    Ok((!window.contains(now))
        .then(|| format!("it is {hours:02}:{minutes:02}, outside FEED_WINDOW ({window})")))
}

/// True, or a number above zero, holds; null does not.
fn parse_condition(value: Option<&str>) -> Result<bool, String> {
    match value {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(text) => match text.parse::<f64>() {
            Ok(number) => Ok(number > 0.0),
            Err(_) => Err(format!(
                "'{text}' is neither true, false, null nor a number"
            )),
        },
    }
}

fn excerpt(query: &str) -> String {
    let words: Vec<&str> = query.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(MAX_EXCERPT_CHARS) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}

/// What the database refuses is the setting's fault.
async fn ask<T>(
    setting: &'static str,
    question: impl AsyncFn() -> Result<T, StatementError>,
) -> Result<T, PreflightError> {
    retry_transient(async || {
        question().await.map_err(|error| match error {
            StatementError::Rejected { code, message } => {
                let problem = format!("the database refuses it: {message} ({code})");
                PreflightError::invalid(setting, problem)
            }
            error => PreflightError::unreachable("DATABASE_URL", error.to_string()),
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_holds_is_true_or_above_zero() {
        for holds in ["true", "1", "0.5", "1e3", "Infinity"] {
            assert_eq!(parse_condition(Some(holds)), Ok(true), "{holds}");
        }
        for none in [None, Some("false"), Some("0"), Some("-3"), Some("NaN")] {
            assert_eq!(parse_condition(none), Ok(false), "{none:?}");
        }
        assert!(parse_condition(Some("maybe")).is_err());
    }

    #[test]
    fn a_long_query_is_cut() {
        assert_eq!(excerpt("select\n  1"), "select 1");
        assert_eq!(excerpt(&"ä".repeat(99)), format!("{} …", "ä".repeat(80)));
    }
}
