//! Settings: environment first, every one also a flag, parsed once into typed structs. Everything
//! that is wrong is told together.

mod database;
mod migration;
mod problems;
mod secret;

pub use database::{DatabaseArgs, DatabaseLimits};
pub use migration::{MigrationArgs, MigrationSettings};
pub use problems::{
    SettingsError, SettingsProblems, duration_between, integer_between, parse_bool,
};
pub use secret::SecretString;
