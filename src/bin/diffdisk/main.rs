//! diffdisk: VHDX disks, images and clones from the command line.

mod demo;

use clap::Parser;
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
            ExitCode::FAILURE
        }
    }
}
