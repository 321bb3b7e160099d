//! What must hold of any message, any settings and any path rule, each as a function over arbitrary
//! bytes that panics when it does not. `fuzz_targets/` hands them to libFuzzer, `tests/corpus.rs`
//! gives them the stored corpus.
#![expect(clippy::panic, reason = "a panic is how libFuzzer learns of a failure")]

pub mod message;
pub mod path_rule;
pub mod settings;
