//! What spans say, by OpenTelemetry's names where it has one.

/// The row's id, as text.
pub const ROW: &str = "bucket_brigade.row_id";
/// The path the row had when it was fed.
pub const OLD_PATH: &str = "bucket_brigade.old_path";
/// The path it is to have.
pub const NEW_PATH: &str = "bucket_brigade.new_path";
/// Where the object is.
pub const SOURCE_BUCKET: &str = "bucket_brigade.source_bucket";
/// Its key there.
pub const SOURCE_KEY: &str = "bucket_brigade.source_key";
/// Where its copy goes.
pub const DESTINATION_BUCKET: &str = "bucket_brigade.destination_bucket";
/// The copy's key there.
pub const DESTINATION_KEY: &str = "bucket_brigade.destination_key";
/// How often the message was received, this time included.
pub const RECEIVE_COUNT: &str = "bucket_brigade.receive_count";
/// How it ended.
pub const OUTCOME: &str = "bucket_brigade.outcome";
/// How many requests share a batch.
pub const BATCH_SIZE: &str = "bucket_brigade.batch_size";
/// The queue's id of the message.
pub const MESSAGE_ID: &str = "messaging.message.id";
/// Whose queue it is.
pub const MESSAGING_SYSTEM: &str = "messaging.system";
/// The value of [`MESSAGING_SYSTEM`].
pub const SQS: &str = "aws_sqs";
/// A short code of what went wrong.
pub const ERROR: &str = "error.type";
