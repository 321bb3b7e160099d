//! How the application's paths spell keys: its own reading of URLs, apart from that of the programs.

use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeySpelling {
    Literal,
    Url,
    Form,
}

impl KeySpelling {
    /// The value of `PATH_ENCODING`.
    pub fn setting(self) -> &'static str {
        match self {
            Self::Literal => "none",
            Self::Url => "url",
            Self::Form => "form",
        }
    }

    /// The key that is meant by what follows the prefix in a path.
    pub(super) fn key(self, rest: &str) -> String {
        let end = rest.find(['?', '#']).unwrap_or(rest.len());
        let spaced = match self {
            Self::Form => rest[..end].replace('+', " "),
            Self::Literal | Self::Url => rest[..end].to_owned(),
        };
        percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
    }

    /// One of several ways to spell a key, by number.
    pub(crate) fn spell(self, key: &str, number: usize) -> String {
        let escaped = || utf8_percent_encode(key, NON_ALPHANUMERIC).to_string();
        match (self, number % 4) {
            (Self::Literal, _) => key.to_owned(),
            (Self::Form, 0) => escaped().replace("%20", "+"),
            (_, 1) => format!("{}?v={number}", escaped()),
            (_, 2) => format!("{}#top", with_small_escapes(&escaped())),
            _ => escaped(),
        }
    }
}

fn with_small_escapes(escaped: &str) -> String {
    let mut parts = escaped.split('%');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        let (digits, rest) = part.split_at(2.min(part.len()));
        format!("{text}%{}{rest}", digits.to_lowercase())
    })
}
