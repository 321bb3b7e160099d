//! `script/bench`: see the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    bucket_brigade_bench::main()
}
