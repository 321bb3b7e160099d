//! Text of others on a terminal: what would control it, or hide what stands there, is written out.

use std::ffi::OsStr;
use std::fmt::{self, Display};
use std::io::IsTerminal;

/// Whether it is a terminal that colors and a moving cursor mean something to.
pub fn takes_escapes(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && is_capable(std::env::var_os("TERM").as_deref())
}

fn is_capable(term: Option<&OsStr>) -> bool {
    term.is_none_or(|term| term != "dumb")
}

/// Paths, ids, keys and messages as text on one line.
pub fn printable(text: &str) -> impl Display + '_ {
    Escaped(text, controls_terminal)
}

/// A whole output, whose own line breaks stay.
pub fn printable_lines(text: &str) -> impl Display + '_ {
    Escaped(text, |character| {
        character != '\n' && controls_terminal(character)
    })
}

/// A count with its noun, and where need be its verb.
pub fn counted(count: impl Copy + Display + PartialEq + From<u8>, one: &str, many: &str) -> String {
    let noun = if count == 1.into() { one } else { many };
    format!("{count} {noun}")
}

struct Escaped<'a>(&'a str, fn(char) -> bool);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0;
        while let Some(at) = rest.find(self.1) {
            let (plain, from) = rest.split_at(at);
            f.write_str(plain)?;
            let mut characters = from.chars();
            if let Some(character) = characters.next() {
                write!(f, "{}", character.escape_default())?;
            }
            rest = characters.as_str();
        }
        f.write_str(rest)
    }
}

/// Control characters of ASCII and of Latin-1 (C1), line and paragraph separators, and what turns the
/// direction of text.
fn controls_terminal(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dumb_terminal_has_lines_alone() {
        assert!(!is_capable(Some("dumb".as_ref())));
        assert!(is_capable(Some("xterm".as_ref())) && is_capable(None));
    }

    #[test]
    fn what_controls_a_terminal_is_written_out() {
        let path = "a\x1b]0;t\x07\u{9b}2J\n\r\t\x7f\u{202e}gnp.é日\\";
        let shown = r"a\u{1b}]0;t\u{7}\u{9b}2J\n\r\t\u{7f}\u{202e}gnp.é日\";
        assert_eq!(printable(path).to_string(), shown);
        assert_eq!(printable_lines("a\nb\x1b").to_string(), "a\nb\\u{1b}");
        assert_eq!(printable("").to_string(), "");
    }
}
