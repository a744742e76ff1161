//! diffdisk: VHDX disks, images and clones from the command line.

mod demo;

use clap::Parser;
use diffdisk::ErrorKind;
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(version, about)]
enum Command {
    /// Make an image with a database, clone it, change the clones, and show what that cost
    Demo(demo::DemoArgs),
}

fn main() -> ExitCode {
    let Command::Demo(args) = Command::parse();
    match demo::run(&args) {
        Ok(report) => {
            println!("\n{report}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("diffdisk: {error}");
            exit_code(error.kind())
        }
    }
}

fn exit_code(kind: ErrorKind) -> ExitCode {
    ExitCode::from(match kind {
        ErrorKind::AlreadyExists | ErrorKind::InvalidInput => 2,
        ErrorKind::NotFound => 3,
        ErrorKind::Denied => 4,
        ErrorKind::InUse => 5,
        ErrorKind::Damaged => 6,
        ErrorKind::Unavailable => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::Cancelled => 9,
        _ => 1,
    })
}
