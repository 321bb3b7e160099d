//! The tools that only copy, given the same objects on the same stub.

use std::fmt::Write;
use std::ops::Range;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::images::{self, DESTINATION_BUCKET, SOURCE_BUCKET};
use crate::rig::BenchRig;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerTool {
    S5cmd,
    Rclone,
}

impl PeerTool {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::S5cmd => "s5cmd",
            Self::Rclone => "rclone",
        }
    }

    pub(super) fn find_program(self) -> Option<PathBuf> {
        let path = std::env::var_os("PATH")?;
        std::env::split_paths(&path)
            .map(|directory| directory.join(self.name()))
            .find(|file| file.is_file())
    }

    pub(super) fn copy_command(
        self,
        program: PathBuf,
        rig: &BenchRig,
        rows: &Range<u64>,
        in_flight: usize,
    ) -> Result<Command> {
        let mut command = rig.program_command(program);
        match self {
            Self::S5cmd => {
                let file = rig.file_path("s5cmd.txt");
                std::fs::write(&file, s5cmd_lines(rows))?;
                command.args(["--endpoint-url", &rig.s3_endpoint()]);
                command.args(["--numworkers", &in_flight.to_string(), "run"]);
                command.arg(file);
            }
            Self::Rclone => {
                add_rclone(&mut command, rig, ["copy", "one", "one"], in_flight);
            }
        }
        Ok(command)
    }

    /// Copies all images from one remote to another, which rclone takes for another store.
    pub(super) fn stream_command(program: PathBuf, rig: &BenchRig, in_flight: usize) -> Command {
        let mut command = rig.program_command(program);
        add_rclone(&mut command, rig, ["copy", "one", "other"], in_flight);
        command
    }

    /// Compares all images with their copies.
    pub(super) fn check_command(program: PathBuf, rig: &BenchRig, in_flight: usize) -> Command {
        let mut command = rig.program_command(program);
        add_rclone(&mut command, rig, ["check", "one", "one"], in_flight);
        command
    }
}

fn add_rclone(
    command: &mut Command,
    rig: &BenchRig,
    [action, from, to]: [&str; 3],
    in_flight: usize,
) {
    for remote in [from, to] {
        let values = [
            ("TYPE", "s3".to_owned()),
            ("PROVIDER", "Other".to_owned()),
            ("ENDPOINT", rig.s3_endpoint()),
            ("ENV_AUTH", "true".to_owned()),
        ];
        for (name, value) in values {
            let remote = remote.to_uppercase();
            command.env(format!("RCLONE_CONFIG_{remote}_{name}"), value);
        }
    }
    command.env("RCLONE_CONFIG", rig.file_path("rclone.conf"));
    command.args([action, &format!("{from}:{SOURCE_BUCKET}/image")]);
    command.arg(format!("{to}:{DESTINATION_BUCKET}/avatar"));
    let in_flight = in_flight.to_string();
    command.args(["--transfers", &in_flight, "--checkers", &in_flight]);
    command.arg("--s3-no-check-bucket");
}

fn s5cmd_lines(rows: &Range<u64>) -> String {
    let mut text = String::new();
    for id in rows.clone() {
        let (from, to) = (images::old_path(id), images::new_path(id));
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "cp --metadata-directive COPY s3://{SOURCE_BUCKET}/{from} s3://{DESTINATION_BUCKET}/{to}"
        );
    }
    text
}
