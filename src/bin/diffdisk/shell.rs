//! `completions` and `man`: made from the parser itself.

use crate::context::Context;
use crate::error::{About, CliError};
use clap::Command;
use clap_complete::Shell;
use serde_json::json;
use std::path::PathBuf;

/// Print a completion script for a shell.
///
/// With --json the script comes as `script` in an object.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk completions bash > /etc/bash_completion.d/diffdisk")]
pub struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write manual pages, one for each verb, into a directory.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: diffdisk man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// An existing directory.
    dir: PathBuf,
}

/// Runs `completions`.
pub fn run_completions(args: &CompletionsArgs, mut command: Command, ctx: &Context) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "diffdisk", &mut script);
    let answer = json!({ "shell": args.shell.to_string(), "script": String::from_utf8_lossy(&script) });
    ctx.emit(&answer, |out| out.write_all(&script))
}

/// Runs `man`.
pub fn run_man(args: &ManArgs, command: Command, ctx: &Context) -> Result<(), CliError> {
    let mut files = Vec::new();
    let mut command = command;
    command.build();
    let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help").cloned();
    for page in std::iter::once(command.clone()).chain(verbs.collect::<Vec<_>>()) {
        let name = page.get_display_name().unwrap_or_else(|| page.get_name()).to_owned();
        let mut text = Vec::new();
        clap_mangen::Man::new(page).render(&mut text)?;
        let path = args.dir.join(format!("{name}.1"));
        std::fs::write(&path, text).about(&path)?;
        files.push(path);
    }
    let names: Vec<_> = files.iter().map(|path| path.to_string_lossy()).collect();
    ctx.emit(&json!({ "files": names }), |out| files.iter().try_for_each(|path| writeln!(out, "{}", path.display())))
}
