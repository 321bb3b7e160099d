//! Settings: environment first, every one also a flag, parsed once into typed structs. Everything
//! that is wrong is told together.

mod database;
mod migration;
mod problems;
mod secret;

pub use database::{DatabaseArgs, DatabaseLimits};
pub use migration::{MigrationArgs, MigrationSettings};
pub use problems::{Problems, SettingsError, flag, positive, whole};
pub use secret::Secret;
