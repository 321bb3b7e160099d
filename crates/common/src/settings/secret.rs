//! A setting that must not be seen again.

use std::fmt;

/// Text that no `Debug` output shows.
#[derive(Clone)]
pub struct SecretString(String);

impl SecretString {
    /// The text, for whom it is meant.
    pub fn expose_secret(&self) -> &str {
        &self.0
    }
}

impl From<String> for SecretString {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for SecretString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}
