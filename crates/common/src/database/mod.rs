//! How the database is reached: the address, a password that may change, and the pools that take it on.

mod iam_token;
mod login;
mod pool;

pub use login::DatabaseLogin;
pub use pool::{DatabasePool, create_pool};

pub(crate) use login::{LoginError, PasswordSource, SSL_MODE_PROBLEM, parse_options};
