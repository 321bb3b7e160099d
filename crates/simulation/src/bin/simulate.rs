//! `script/chaos --simulate N` and `script/chaos --model`.

use std::process::ExitCode;

fn main() -> ExitCode {
    bucket_brigade_simulation::command::main()
}
