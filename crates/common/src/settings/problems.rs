//! Collecting what is wrong with the settings, each by its name.

use std::fmt;

use thiserror::Error;

use super::dotenv::misspelt_variable;

/// All that is wrong with the settings.
#[derive(Debug, Error, PartialEq, Eq)]
pub struct SettingsError(Vec<String>);

impl SettingsError {
    pub fn for_setting(name: &str, problem: impl fmt::Display) -> Self {
        Self(vec![format!("{name}: {problem}")])
    }
}

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the settings cannot be used:")?;
        self.0.iter().try_for_each(|problem| {
            write!(f, "\n  {problem}")?;
            let missing = problem.split_once(": is missing");
            match missing.and_then(|(setting, _)| misspelt_variable(setting)) {
                Some(name) => write!(f, "; is {name}, which is set, misspelt?"),
                None => Ok(()),
            }
        })
    }
}

#[derive(Debug, Default)]
pub struct SettingsProblems(Vec<String>);

impl SettingsProblems {
    pub fn add(&mut self, name: &str, problem: impl fmt::Display) {
        self.push(format!("{name}: {problem}"));
    }

    /// Whether something is wrong with this setting.
    pub fn names(&self, name: &str) -> bool {
        let mut known = self.0.iter().filter_map(|problem| problem.split_once(':'));
        known.any(|(other, _)| other == name)
    }

    /// Notes that a setting is missing, unless something else is wrong with it already.
    pub(super) fn require<T>(&mut self, name: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.names(name) {
            self.add(name, "is missing");
        }
        value
    }

    pub(super) fn push(&mut self, problem: String) {
        self.0.push(problem);
    }

    pub fn append(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// What was built of the settings, unless something is wrong with them.
    pub fn finish<T>(self, settings: Option<T>) -> Result<T, SettingsError> {
        match settings {
            Some(settings) if self.0.is_empty() => Ok(settings),
            _ => Err(SettingsError(self.0)),
        }
    }
}
