//! What people read and copy: the help, and the sample of the settings.

use std::process::Command;

use bucket_brigade_feeder::settings::Args;
use clap::{CommandFactory, Parser};

/// When this fails after a wanted change: `cargo run --bin feeder -- --help > feeder/tests/help.txt`.
#[test]
fn the_help_is_the_one_that_was_read_before_it_was_released() {
    let output = Command::new(env!("CARGO_BIN_EXE_feeder"))
        .arg("--help")
        .env_clear()
        .output()
        .unwrap();
    assert!(output.status.success());
    let expected = include_str!("help.txt");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
}

#[test]
fn the_sample_of_the_settings_can_be_used_as_it_is() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/env.sample");
    let command = Args::command();
    let flags = dotenvy::from_path_iter(path).unwrap().map(|pair| {
        let (name, value) = pair.unwrap();
        let is_set_by = |arg: &&clap::Arg| arg.get_env().is_some_and(|env| env == name.as_str());
        match command.get_arguments().find(is_set_by) {
            Some(arg) => Some(format!("--{}={value}", arg.get_long().unwrap())),
            // The AWS SDK's own settings are no flags of ours.
            None if name.starts_with("AWS_") => None,
            None => panic!("{name} is no setting"),
        }
    });
    let args =
        Args::try_parse_from(std::iter::once("feeder".to_owned()).chain(flags.flatten())).unwrap();
    args.parse_settings().unwrap();
}

#[test]
fn the_sample_names_every_setting() {
    let sample = include_str!("../env.sample");
    for name in Args::command()
        .get_arguments()
        .filter_map(clap::Arg::get_env)
    {
        let name = name.to_str().unwrap();
        assert!(sample.contains(&format!("{name}=")), "{name} is missing");
    }
}
