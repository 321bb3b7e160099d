//! One setting. clap knows its name, its default and its text; what is wrong with the text is kept, so
//! that it is reported with all other problems, and only by what uses the setting.

use std::ffi::OsStr;

use clap::builder::TypedValueParser;
use clap::error::ErrorKind;
use clap::{Arg, Command};

use super::problems::SettingsProblems;

/// The value of a flag or environment variable, or what is wrong with it.
#[derive(Debug, Clone)]
pub struct Setting<T> {
    value: T,
    problem: Option<String>,
}

impl<T> Setting<T> {
    /// The value. Its default stands in for what cannot be read, so that parsing goes on to the next
    /// problem.
    pub fn take(self, problems: &mut SettingsProblems) -> T {
        if let Some(problem) = self.problem {
            problems.push(problem);
        }
        self.value
    }
}

#[derive(Clone)]
pub struct SettingParser<F> {
    read: F,
    is_secret: bool,
}

/// A setting that `read` understands. Empty counts as unset: compose files pass unset variables so.
pub fn setting<T, F: Fn(&str) -> Result<T, String>>(read: F) -> SettingParser<F> {
    let is_secret = false;
    SettingParser { read, is_secret }
}

/// The same for one whose text no message may hold.
pub fn secret_setting<T, F: Fn(&str) -> Result<T, String>>(read: F) -> SettingParser<F> {
    let is_secret = true;
    SettingParser { read, is_secret }
}

impl<T, F> TypedValueParser for SettingParser<F>
where
    T: Default + Clone + Send + Sync + 'static,
    F: Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
{
    type Value = Setting<T>;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        text: &OsStr,
    ) -> Result<Setting<T>, clap::Error> {
        let Some(text) = text.to_str() else {
            return Err(clap::Error::new(ErrorKind::InvalidUtf8).with_cmd(command));
        };
        let default = arg.and_then(default_text).unwrap_or_default();
        let text = match text.trim() {
            "" => default,
            text => text,
        };
        let (value, problem) = match (self.read)(text) {
            Ok(value) => (value, None),
            Err(problem) => {
                let default = (self.read)(default).unwrap_or_default();
                (default, Some(self.describe(arg, text, &problem)))
            }
        };
        Ok(Setting { value, problem })
    }
}

impl<F> SettingParser<F> {
    fn describe(&self, arg: Option<&Arg>, text: &str, problem: &str) -> String {
        let name = arg.map(setting_name).unwrap_or_default();
        if self.is_secret || text.is_empty() {
            format!("{name}: {problem}")
        } else {
            format!("{name}: '{text}' {problem}")
        }
    }
}

fn default_text(arg: &Arg) -> Option<&str> {
    arg.get_default_values().first()?.to_str()
}

/// The environment variable, or the flag of a setting that has none.
fn setting_name(arg: &Arg) -> String {
    match arg.get_env() {
        Some(variable) => variable.to_string_lossy().into_owned(),
        None => format!("--{}", arg.get_long().unwrap_or_default()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::settings::{integer_between, required};

    #[derive(Debug, Parser)]
    struct Args {
        #[arg(long, env = "THE_QUEUE", default_value = "", value_parser = setting(required))]
        queue: Setting<String>,
        #[arg(long, env = "THE_SIZE", default_value = "7", value_parser = setting(integer_between(1_u32, 10)))]
        size: Setting<u32>,
        #[arg(long, default_value = "1", value_parser = secret_setting(integer_between(1_u32, 10)))]
        pin: Setting<u32>,
    }

    /// The three values, or what is wrong with them.
    fn parse(flags: &[&str]) -> Result<(String, u32, u32), String> {
        let flags = std::iter::once(&"program").chain(flags);
        let args = Args::try_parse_from(flags).unwrap();
        let mut problems = SettingsProblems::default();
        let values = (
            args.queue.take(&mut problems),
            args.size.take(&mut problems),
            args.pin.take(&mut problems),
        );
        problems
            .finish(Some(values))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn problems_are_reported_together_and_by_name() {
        let error = parse(&["--size", "many", "--pin", "4711"]).unwrap_err();
        assert_eq!(
            error,
            "the settings cannot be used:\n  THE_QUEUE: is missing\n  \
             THE_SIZE: 'many' is not a whole number from 1 to 10\n  \
             --pin: is not a whole number from 1 to 10"
        );
    }

    #[test]
    fn empty_counts_as_unset() {
        let values = parse(&["--queue= here ", "--size=", "--pin= "]);
        assert_eq!(values, Ok(("here".into(), 7, 1)));
        let error = parse(&["--queue= "]).unwrap_err();
        assert_eq!(
            error,
            "the settings cannot be used:\n  THE_QUEUE: is missing"
        );
    }
}
