//! What people read and copy: the help of both programs, and the samples of their settings.

use std::error::Error;

use bucket_brigade_consumer::settings::Args as ConsumerArgs;
use bucket_brigade_feeder::settings::Args as FeederArgs;
use clap::{CommandFactory, Parser};

const FEEDER_SAMPLE: &str = include_str!("../../feeder/env.sample");
const CONSUMER_SAMPLE: &str = include_str!("../../consumer/env.sample");

/// When this fails after a wanted change: `cargo run --bin feeder -- --help > fuzz/tests/help-feeder.txt`,
/// and the same for the consumer.
#[test]
fn the_help_is_the_one_that_was_read_before_it_was_released() {
    assert_eq!(help_of::<FeederArgs>(), include_str!("help-feeder.txt"));
    assert_eq!(help_of::<ConsumerArgs>(), include_str!("help-consumer.txt"));
}

#[test]
fn the_samples_of_the_settings_can_be_used_as_they_are() {
    let args = parse_sample::<FeederArgs>(FEEDER_SAMPLE).unwrap();
    args.parse_settings().unwrap();
    let args = parse_sample::<ConsumerArgs>(CONSUMER_SAMPLE).unwrap();
    args.parse_settings().unwrap();
}

#[test]
fn the_samples_name_every_setting() {
    for (command, sample) in [
        (FeederArgs::command(), FEEDER_SAMPLE),
        (ConsumerArgs::command(), CONSUMER_SAMPLE),
    ] {
        for name in command.get_arguments().filter_map(clap::Arg::get_env) {
            let name = name.to_str().unwrap();
            assert!(sample.contains(&format!("{name}=")), "{name} is missing");
        }
    }
}

/// As it is printed where there is no terminal and no setting in the environment.
fn help_of<A: CommandFactory>() -> String {
    let help = A::command().term_width(100).render_long_help().to_string();
    let without_value = |line: &str| match line.split_once('=') {
        Some((name, _)) if name.contains("[env: ") => format!("{name}=]\n"),
        _ => format!("{line}\n"),
    };
    help.lines().map(without_value).collect()
}

/// Each setting of the sample as a flag.
fn parse_sample<A: Parser>(sample: &str) -> Result<A, Box<dyn Error>> {
    let command = A::command();
    let mut flags = vec!["program".to_owned()];
    for pair in dotenvy::from_read_iter(sample.as_bytes()) {
        let (name, value) = pair?;
        let is_set_by = |arg: &&clap::Arg| arg.get_env().is_some_and(|env| env == name.as_str());
        let arg = command.get_arguments().find(is_set_by);
        match arg.and_then(clap::Arg::get_long) {
            Some(flag) => flags.push(format!("--{flag}={value}")),
            // The AWS SDK's own settings are no flags of ours.
            None if name.starts_with("AWS_") => {}
            None => return Err(format!("{name} is not a setting").into()),
        }
    }
    Ok(A::try_parse_from(flags)?)
}
