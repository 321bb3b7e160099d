//! What is checked of each input: `src/message.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bucket_brigade_fuzz::message::check(input));
