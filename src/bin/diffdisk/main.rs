//! `diffdisk`, the command line: it parses arguments, calls the library and prints. No engine logic lives here.
//!
//! One file per group of verbs, each with its arguments (`XArgs`) and a `run(&XArgs, &Context)`. Around them:
//!
//! | file | what |
//! |---|---|
//! | `args.rs` | sizes with K M G T, `--parents`, formats |
//! | `context.rs` | `--json`, standard output that may go away, progress bars, Ctrl-C |
//! | `error.rs`, `exit.rs` | one error type; the only place that turns it into an exit code |
//! | `table.rs` | columns for people |
//! | `buffer.rs` | page-aligned buffers |

mod args;
mod books;
mod buffer;
mod check;
mod clone;
mod compact;
mod compare;
mod content;
mod context;
mod convert;
mod create;
mod demo;
mod diff;
mod digest;
mod error;
mod exit;
mod image;
mod info;
mod map;
mod merge;
#[cfg(target_os = "linux")]
mod mount;
mod rebase;
mod relink;
mod resize;
mod sealed;
mod serve;
mod served;
mod shell;
mod table;

use clap::{CommandFactory, Parser, Subcommand};
use context::Context;
use error::CliError;
use std::process::ExitCode;

/// Copy-on-write virtual disks in real VHDX files.
#[derive(Debug, Parser)]
#[command(name = "diffdisk", version, about, propagate_version = true, after_help = exit::HELP)]
struct Cli {
    /// Print JSON on standard output; errors become one line of JSON on standard error.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::CreateArgs),
    Info(info::InfoArgs),
    Check(check::CheckArgs),
    Map(map::MapArgs),
    Digest(digest::DigestArgs),
    Read(content::ReadArgs),
    Write(content::WriteArgs),
    Trim(content::TrimArgs),
    Convert(convert::ConvertArgs),
    Compare(compare::CompareArgs),
    Compact(compact::CompactArgs),
    Diff(diff::DiffArgs),
    Relink(relink::RelinkArgs),
    Resize(resize::ResizeArgs),
    Merge(merge::MergeArgs),
    Hydrate(merge::HydrateArgs),
    Flatten(merge::FlattenArgs),
    Rebase(rebase::RebaseArgs),
    Serve(serve::ServeArgs),
    #[cfg(target_os = "linux")]
    Mount(mount::MountArgs),
    #[command(subcommand)]
    Image(image::ImageVerb),
    #[command(subcommand)]
    Clone(clone::CloneVerb),
    Demo(demo::DemoArgs),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

impl Verb {
    fn run(&self, ctx: &Context) -> Result<(), CliError> {
        match self {
            Self::Create(args) => create::run(args, ctx),
            Self::Info(args) => info::run(args, ctx),
            Self::Check(args) => check::run(args, ctx),
            Self::Map(args) => map::run(args, ctx),
            Self::Digest(args) => digest::run(args, ctx),
            Self::Read(args) => content::run_read(args, ctx),
            Self::Write(args) => content::run_write(args, ctx),
            Self::Trim(args) => content::run_trim(args, ctx),
            Self::Convert(args) => convert::run(args, ctx),
            Self::Compare(args) => compare::run(args, ctx),
            Self::Compact(args) => compact::run(args, ctx),
            Self::Diff(args) => diff::run(args, ctx),
            Self::Image(verb) => verb.run(ctx),
            Self::Clone(verb) => verb.run(ctx),
            Self::Demo(args) => demo::show(args, ctx),
            Self::Relink(args) => relink::run(args, ctx),
            Self::Resize(args) => resize::run(args, ctx),
            Self::Merge(args) => merge::run(args, ctx),
            Self::Hydrate(args) => merge::run_hydrate(args, ctx),
            Self::Flatten(args) => merge::run_flatten(args, ctx),
            Self::Rebase(args) => rebase::run(args, ctx),
            Self::Serve(args) => serve::run(args, ctx),
            #[cfg(target_os = "linux")]
            Self::Mount(args) => mount::run(args, ctx),
            Self::Completions(args) => shell::run_completions(args, Cli::command(), ctx),
            Self::Man(args) => shell::run_man(args, Cli::command(), ctx),
        }
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return exit::usage(&e),
    };
    let ctx = Context::new(cli.json);
    exit::finish(cli.verb.run(&ctx), &ctx)
}
