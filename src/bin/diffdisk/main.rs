//! The command line.

mod serve;

use clap::{Parser, Subcommand};
use diffdisk::{ErrorKind, ParentPolicy};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    /// Where parents may lie besides the disk's own directory; "anywhere" for no limit.
    #[arg(long, global = true, value_name = "DIR|anywhere")]
    parents: Vec<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Serve(serve::ServeArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let policy = match cli.parents.iter().any(|dir| dir.as_os_str() == "anywhere") {
        true => ParentPolicy::Anywhere,
        false => ParentPolicy::Beneath(cli.parents),
    };
    let Verb::Serve(args) = &cli.verb;
    let on_signal = |stopper: diffdisk::export::nbd::NbdStopper| {
        ctrlc::set_handler(move || stopper.request()).expect("the only handler of this process");
    };
    match serve::run(args, policy, cli.json, &mut std::io::stdout(), on_signal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("diffdisk: {error}");
            ExitCode::from(exit_code(error.kind()))
        }
    }
}

fn exit_code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Denied => 4,
        ErrorKind::InUse => 5,
        ErrorKind::Damaged => 6,
        ErrorKind::Unavailable => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::Cancelled => 9,
        _ => 1,
    }
}
