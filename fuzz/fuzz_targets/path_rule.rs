//! What is checked of each input: `src/path_rule.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| bucket_brigade_fuzz::path_rule::check(input));
