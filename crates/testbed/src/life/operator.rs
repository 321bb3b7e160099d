//! The operator: runs a command of the feeder, and writes down what came of it.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::process::Command;

use super::scene::Scene;
use super::transcript::laid_out;
use crate::process::binary_path;

/// How a command ended.
pub(super) struct Told {
    pub(super) code: i32,
    /// What it answered with `--json`; null otherwise.
    pub(super) json: Value,
    /// What it printed to standard output.
    pub(super) answer: String,
    /// What it printed to standard error.
    pub(super) log: String,
}

impl Told {
    /// A number of its answer.
    pub(super) fn number(&self, name: &str) -> Result<usize> {
        let number = self.json[name].as_u64();
        let number = number.with_context(|| format!("there is no number {name}: {}", self.json))?;
        Ok(usize::try_from(number)?)
    }

    /// A list of its answer.
    pub(super) fn list(&self, name: &str) -> Result<&Vec<Value>> {
        let list = self.json[name].as_array();
        list.with_context(|| format!("there is no list {name}: {}", self.json))
    }
}

impl Scene {
    /// Runs a command for its answer to people.
    pub(super) async fn see(&mut self, arguments: &[&str], code: i32) -> Result<Told> {
        let told = self.run(arguments).await?;
        let printed = format!("{}{}", told.answer, told.log);
        self.write_down(arguments, &printed, told.code);
        expected(&told, arguments, &[code])?;
        Ok(told)
    }

    /// Runs a command for its answer to machines.
    pub(super) async fn ask(&mut self, arguments: &[&str], codes: &[i32]) -> Result<Told> {
        let arguments = [arguments, &["--json"]].concat();
        let mut told = self.run(&arguments).await?;
        told.json = serde_json::from_str(&told.answer).unwrap_or_default();
        let printed = match &told.json {
            Value::Null => format!("{}{}", told.answer, told.log),
            json => format!("{}{}", laid_out(json), told.log),
        };
        self.write_down(&arguments, &printed, told.code);
        expected(&told, &arguments, codes)?;
        Ok(told)
    }

    pub(super) fn write_down(&mut self, arguments: &[&str], printed: &str, code: i32) {
        let command = format!("feeder {}", words(arguments));
        self.transcript.command(command.trim_end(), printed, code);
    }

    pub(super) async fn run(&self, arguments: &[&str]) -> Result<Told> {
        let mut command = Command::new(binary_path("feeder")?);
        command.args(arguments).env_clear().current_dir("/");
        command.envs(self.operators_environment());
        command.stdin(Stdio::null()).kill_on_drop(true);
        let output = command.output().await?;
        Ok(Told {
            code: output.status.code().unwrap_or(-1),
            json: Value::Null,
            answer: String::from_utf8_lossy(&output.stdout).into_owned(),
            log: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    pub(super) fn operators_environment(&self) -> Vec<(String, String)> {
        let mut environment = self.stage.variables("operator");
        // The answer is what is shown; what goes wrong is told in any case.
        environment.push(("RUST_LOG".into(), "warn".into()));
        environment
    }
}

fn expected(told: &Told, arguments: &[&str], codes: &[i32]) -> Result<()> {
    ensure!(
        codes.contains(&told.code),
        "feeder {} ended with {}: {}{}",
        words(arguments),
        told.code,
        told.log,
        told.answer.chars().take(2000).collect::<String>()
    );
    Ok(())
}

/// The words as they would be typed, a long list of ids cut.
fn words(arguments: &[&str]) -> String {
    let quoted = |word: &&str| {
        let quote = if word.contains(' ') { "'" } else { "" };
        format!("{quote}{word}{quote}")
    };
    let words: Vec<String> = arguments.iter().map(quoted).collect();
    let is_id = |word: &String| word.bytes().all(|byte| byte.is_ascii_digit());
    match words.iter().position(|word| word == "--ids") {
        Some(at) => {
            let (ids, rest): (Vec<String>, Vec<String>) =
                words[at + 1..].iter().cloned().partition(is_id);
            let shown = ids.iter().take(3).cloned().collect::<Vec<_>>().join(" ");
            let more = ids.len().saturating_sub(3);
            let (before, rest) = (words[..=at].join(" "), rest.join(" "));
            format!("{before} {shown} … {more} more ids … {rest}")
        }
        None => words.join(" "),
    }
}
