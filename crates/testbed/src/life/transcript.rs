//! What an operator typed and saw, and what was checked of it.

use std::fmt::Write as _;

use serde_json::Value;

use crate::run::print_status;

/// Longer outputs are cut in the middle.
const LINES: usize = 40;
const FIRST_LINES: usize = 12;
const LAST_LINES: usize = 8;

/// Longer lines, texts and lists are cut at their end.
const LINE_CHARACTERS: usize = 180;
const TEXT_CHARACTERS: usize = 100;
const ITEMS: usize = 3;

/// What is told when a life ends too soon.
const TAIL: usize = 6000;

/// The transcript of a life.
#[derive(Debug, Default)]
pub(super) struct Transcript {
    text: String,
    /// Things checked since the last command.
    held: Vec<String>,
    /// Things checked in all.
    pub(super) checks: u64,
}

/// What stands at a transcript's head.
pub(super) struct Heading<'a> {
    pub(super) images: u32,
    pub(super) consumers: u32,
    pub(super) seed: u64,
    pub(super) commit: &'a str,
}

impl Transcript {
    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str, what: &str) {
        self.settle();
        print_status(&format!("· {title}"));
        let _ = write!(self.text, "\n## {title}\n\n{what}\n");
    }

    /// Says something between two commands.
    pub(super) fn say(&mut self, what: &str) {
        self.settle();
        let _ = write!(self.text, "\n{what}\n");
    }

    /// A command, what it printed, and how it ended.
    pub(super) fn command(&mut self, command: &str, printed: &str, code: i32) {
        self.settle();
        let printed = cut(printed);
        let _ = write!(
            self.text,
            "\n```console\n$ {}\n{printed}```\n\nExit code {code}.\n",
            shortened(command, LINE_CHARACTERS)
        );
    }

    /// Something that was checked, and held.
    pub(super) fn holds(&mut self, what: String) {
        self.checks += 1;
        self.held.push(what);
    }

    fn settle(&mut self) {
        if self.held.is_empty() {
            return;
        }
        self.text.push_str("\nChecked:\n\n");
        for what in self.held.drain(..) {
            let _ = writeln!(self.text, "- {what}");
        }
    }

    /// The last of it.
    pub(super) fn tail(&mut self) -> String {
        self.settle();
        let start = self.text.len().saturating_sub(TAIL);
        let start = self.text.ceil_char_boundary(start);
        self.text[start..].to_owned()
    }

    /// All of it.
    pub(super) fn markdown(mut self, heading: &Heading<'_>, figures: &str) -> String {
        self.settle();
        let Heading {
            images,
            consumers,
            seed,
            commit,
        } = heading;
        format!(
            "# A whole life\n\n\
             Every command of an operator on one migration of {images} images, {consumers} consumers, and an application that reads, \
             replaces and deletes images all the while: what was typed, what was printed, and what was checked \
             by the rows, the objects and the requests themselves. Nothing here is written by hand:\n\n    \
             script/life --images {images} --consumers {consumers} --seed {seed} --transcript docs/whole-life.md\n\n\
             wrote it, from commit {commit}, on the testbed's Postgres and its S3 and SQS. \
             `script/test` lives the same life with 1,000 images. Long outputs are cut, which `…` shows. \
             Answers with `--json` are laid out, one field a line.\n\
             {}\n## The figures\n\n```text\n{}\n```\n",
            self.text,
            figures.trim_matches('\n')
        )
    }
}

/// An answer's lines, the middle left out where there are many.
fn cut(printed: &str) -> String {
    let lines: Vec<String> = printed
        .trim_end()
        .lines()
        .map(|line| shortened(line, LINE_CHARACTERS))
        .collect();
    let mut kept = lines.clone();
    if lines.len() > LINES {
        kept = lines[..FIRST_LINES].to_vec();
        let left_out = lines.len() - FIRST_LINES - LAST_LINES;
        kept.push(format!("… {left_out} lines …"));
        kept.extend_from_slice(&lines[lines.len() - LAST_LINES..]);
    }
    kept.retain(|line| !line.contains("```"));
    kept.iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "{line}");
        text
    })
}

fn shortened(text: &str, most: usize) -> String {
    // What a terminal would not show either.
    let mut shown: String = text
        .chars()
        .map(|one| if one.is_control() { '\u{fffd}' } else { one })
        .collect();
    if let Some((at, _)) = shown.char_indices().nth(most) {
        shown.truncate(at);
        shown.push('…');
    }
    shown
}

/// A JSON answer, one field a line, long texts and lists cut.
pub(super) fn laid_out(answer: &Value) -> String {
    let Value::Object(fields) = answer else {
        return format!("{}\n", brief(answer));
    };
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("  \"{name}\": {}", brief(value)))
        .collect();
    format!("{{\n{}\n}}\n", fields.join(",\n"))
}

fn brief(value: &Value) -> String {
    match value {
        Value::String(text) => Value::from(shortened(text, TEXT_CHARACTERS)).to_string(),
        Value::Array(items) => {
            let mut shown: Vec<String> = items.iter().take(ITEMS).map(brief).collect();
            if items.len() > ITEMS {
                shown.push(format!("… {} more", items.len() - ITEMS));
            }
            match &shown[..] {
                [] | [_] => format!("[{}]", shown.join(", ")),
                _ => format!("[\n    {}\n  ]", shown.join(",\n    ")),
            }
        }
        Value::Object(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| format!("\"{name}\": {}", brief(value)))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn long_outputs_are_cut_in_the_middle() {
        let many: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        let shown = cut(&many.join("\n"));
        assert_eq!(shown.lines().count(), FIRST_LINES + 1 + LAST_LINES);
        assert!(
            shown.contains("… 80 lines …") && shown.ends_with("99\n"),
            "{shown}"
        );
        assert_eq!(cut("a\n\nb\n"), "a\n\nb\n");
    }

    #[test]
    fn answers_are_laid_out_a_field_a_line() {
        let answer = json!({"run": 1, "ids": [1, 2, 3, 4, 5], "of": {"a": null}});
        let shown = laid_out(&answer);
        assert!(shown.contains("\"run\": 1"), "{shown}");
        assert!(shown.contains("… 2 more"), "{shown}");
        assert!(shown.contains("\"of\": {\"a\": null}"), "{shown}");
    }

    #[test]
    fn what_was_checked_stands_below_its_command() {
        let mut transcript = Transcript::default();
        transcript.command("feeder status", "all is well\n", 0);
        transcript.holds("it is".into());
        transcript.command("feeder report", "", 0);
        let told = transcript.tail();
        assert!(
            told.contains(
                "$ feeder status\nall is well\n```\n\nExit code 0.\n\nChecked:\n\n- it is\n"
            ),
            "{told}"
        );
        assert_eq!(transcript.checks, 1);
    }
}
