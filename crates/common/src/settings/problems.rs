//! Collecting what is wrong with the settings, each by its name.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// All that is wrong with the settings.
#[derive(Debug, Error, PartialEq, Eq)]
pub struct SettingsError(Vec<String>);

impl SettingsError {
    /// A single problem with one setting.
    pub fn for_setting(name: &str, problem: impl fmt::Display) -> Self {
        Self(vec![format!("{name}: {problem}")])
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used:")?;
        self.0
            .iter()
            .try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// Collects problems while settings are parsed, so that all are told at once.
#[derive(Debug, Default)]
pub struct SettingsProblems(Vec<String>);

impl SettingsProblems {
    /// Notes what is wrong with a setting.
    pub fn add(&mut self, name: &str, problem: impl fmt::Display) {
        self.0.push(format!("{name}: {problem}"));
    }

    /// A setting that must be there. Empty counts as missing: compose files pass unset variables so.
    pub fn require_value(&mut self, name: &str, value: Option<String>) -> String {
        non_blank(value).unwrap_or_else(|| {
            self.add(name, "is missing");
            String::new()
        })
    }

    /// A setting with a default, read by `parse`. The default also stands in for what cannot be read,
    /// so that parsing goes on to the next problem.
    pub fn parse_value<T>(
        &mut self,
        name: &str,
        value: Option<String>,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> T {
        let Some(text) = non_blank(value) else {
            return default;
        };
        match parse(text.trim()) {
            Ok(value) => value,
            Err(problem) => {
                self.add(name, format!("'{text}' {problem}"));
                default
            }
        }
    }

    /// Ends the collection.
    ///
    /// # Errors
    /// [`SettingsError`] with everything that was noted.
    pub fn into_result(self) -> Result<(), SettingsError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(SettingsError(self.0))
        }
    }
}

fn non_blank(value: Option<String>) -> Option<String> {
    value.filter(|text| !text.trim().is_empty())
}

/// Reads a yes or no.
pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

/// Reads a whole number within bounds.
pub fn integer_between<T>(least: T, most: T) -> impl FnOnce(&str) -> Result<T, String>
where
    T: FromStr + PartialOrd + fmt::Display,
{
    move |text| match text.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        _ => Err(format!("is not a whole number from {least} to {most}")),
    }
}

/// Reads a duration such as `30s`, `500ms` or `2m` within bounds; a bare number means seconds.
pub fn duration_between(
    least: Duration,
    most: Duration,
) -> impl FnOnce(&str) -> Result<Duration, String> {
    move |text| {
        let bare = text.parse().map(Duration::from_secs);
        let parsed = bare.or_else(|_| humantime::parse_duration(text));
        match parsed {
            Ok(duration) if duration >= least && duration <= most => Ok(duration),
            _ => Err(format!(
                "is not a duration from {} to {} (written like 30s, 500ms, 2m)",
                humantime::format_duration(least),
                humantime::format_duration(most)
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_together() {
        let mut problems = SettingsProblems::default();
        problems.require_value("QUEUE_URL", None);
        problems.require_value("OLD_PREFIX", Some("  ".into()));
        let size =
            problems.parse_value("PAGE_SIZE", Some("many".into()), 7, integer_between(1, 10));
        assert_eq!(size, 7);
        let text = problems.into_result().unwrap_err().to_string();
        assert_eq!(
            text,
            "the settings cannot be used:\n  QUEUE_URL: is missing\n  OLD_PREFIX: is missing\n  \
             PAGE_SIZE: 'many' is not a whole number from 1 to 10"
        );
    }

    #[test]
    fn durations_have_units_and_bounds() {
        let read = |text| duration_between(Duration::from_secs(1), Duration::from_mins(1))(text);
        assert_eq!(read("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(read("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read("1m"), Ok(Duration::from_mins(1)));
        for bad in ["2m", "0s", "fast", "-1s", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn flags_read_as_people_write_them() {
        assert_eq!(parse_bool("TRUE"), Ok(true));
        assert_eq!(parse_bool("0"), Ok(false));
        assert!(parse_bool("maybe").is_err());
    }
}
