//! Shell completions and manual pages, made of the same definitions as `--help`.

use std::io::{self, ErrorKind, Write};

use clap::{Command, Subcommand};
use clap_complete::Shell;

use crate::exit;
use crate::settings::SettingsError;

#[derive(Debug, Subcommand)]
pub enum ManualCommand {
    /// Print completions for a shell, such as bash or zsh
    Completions { shell: Shell },
    /// Print the manual page, or that of one command
    Man { command: Option<String> },
}

impl ManualCommand {
    /// Prints it for this program.
    pub fn run(self, program: Command) -> anyhow::Result<u8> {
        let text = match self {
            Self::Completions { shell } => completions(program, shell),
            Self::Man { command } => manual_page(program, command.as_deref())?,
        };
        let mut out = io::stdout().lock();
        match out.write_all(&text).and_then(|()| out.flush()) {
            // A reader that has gone away, as `head` does, is no error.
            Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(exit::DONE),
        }
    }
}

/// In memory first: the generator panics where it cannot write.
fn completions(mut program: Command, shell: Shell) -> Vec<u8> {
    let (mut text, name) = (Vec::new(), program.get_name().to_owned());
    clap_complete::generate(shell, &mut program, name, &mut text);
    text
}

fn manual_page(mut program: Command, command: Option<&str>) -> anyhow::Result<Vec<u8>> {
    // Names its commands feeder-plan, and so on.
    program.build();
    let page = match command {
        None => program,
        Some(name) => find_command(&program, name)?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    Ok(text)
}

fn find_command(program: &Command, name: &str) -> Result<Command, SettingsError> {
    let found = program.find_subcommand(name).cloned();
    found.ok_or_else(|| {
        let names: Vec<_> = program.get_subcommands().map(Command::get_name).collect();
        let problem = format!("'{name}' is not a command: {}", names.join(", "));
        SettingsError::for_setting("man", problem)
    })
}
