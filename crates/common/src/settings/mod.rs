//! Settings: environment first, every one also a flag. Names, defaults and values are clap's; everything
//! that is wrong is reported together.

mod database;
mod dotenv;
mod login;
mod migration;
mod objects;
mod problems;
mod secret;
mod setting;
mod stores;
mod values;

pub use database::{DatabaseArgs, DatabaseLimits};
pub use dotenv::read_dotenv;
pub use login::LoginArgs;
pub use migration::{MigrationArgs, MigrationSettings};
pub use objects::ObjectArgs;
pub use problems::{SettingsError, SettingsProblems};
pub use secret::SecretString;
pub use setting::{Setting, SettingParser, secret_setting, setting};
pub use stores::{BucketStore, StoreArgs, StoreSettings};
pub(crate) use values::must_be_one_of;
pub use values::{
    choice, duration_between, integer_between, optional, or_off, parse_address, parse_bool,
    parse_percent, required,
};
