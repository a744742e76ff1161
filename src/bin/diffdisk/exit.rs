//! Exit codes: the only place that knows them.

use crate::context::Context;
use crate::error::CliError;
use clap::error::ErrorKind as ClapKind;
use diffdisk::ErrorKind;
use serde_json::json;
use std::process::ExitCode;

/// At the foot of `--help`.
pub const HELP: &str = "Exit codes: 0 ok, 1 unexpected, 2 usage, 3 not found, 4 denied, 5 in use or name taken, 6 damaged or differs, \
    7 unavailable, 8 no space, 9 cancelled";

const USAGE: u8 = 2;

/// The exit code of a kind of error.
pub fn code(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidInput => USAGE,
        ErrorKind::NotFound => 3,
        ErrorKind::Denied => 4,
        ErrorKind::InUse | ErrorKind::AlreadyExists => 5,
        // A script that gets a file it cannot use wants one answer, whether the file is broken or too new.
        ErrorKind::Damaged | ErrorKind::Unsupported => 6,
        ErrorKind::Unavailable => 7,
        ErrorKind::NoSpace => 8,
        ErrorKind::Cancelled => 9,
        // `Io`, and kinds that later versions of the library may add.
        _ => 1,
    }
}

/// The name of a kind of error in JSON.
pub fn key(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::NotFound => "not_found",
        ErrorKind::Denied => "denied",
        ErrorKind::AlreadyExists => "already_exists",
        ErrorKind::InUse => "in_use",
        ErrorKind::Damaged => "damaged",
        ErrorKind::Unsupported => "unsupported",
        ErrorKind::InvalidInput => "invalid_input",
        ErrorKind::NoSpace => "no_space",
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Cancelled => "cancelled",
        _ => "io",
    }
}

/// Reports how a verb ended.
pub fn finish(result: Result<(), CliError>, ctx: &Context) -> ExitCode {
    // What a verb printed may still be in a buffer, and printing it may fail.
    let flushed = ctx.flush();
    let Err(error) = result.and(flushed) else { return ExitCode::SUCCESS };
    if let CliError::Failed { kind, message } = &error {
        report(*kind, message, ctx.is_json());
    }
    ExitCode::from(code(error.kind()))
}

/// Reports arguments that do not parse; `--help` and `--version` come here too.
pub fn usage(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ClapKind::DisplayHelp | ClapKind::DisplayVersion) {
        // Nobody left to read the help is not a failure.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|arg| arg == "--json") {
        // The sentence, without the usage and the hints that follow it; the names of missing arguments stand on lines of their own.
        let text = error.to_string();
        let sentence = text.split("\n\n").next().unwrap_or_default();
        let words: Vec<&str> = sentence.strip_prefix("error: ").unwrap_or(sentence).split_whitespace().collect();
        report(ErrorKind::InvalidInput, &words.join(" "), true);
    } else {
        let _ = error.print();
    }
    ExitCode::from(USAGE)
}

fn report(kind: ErrorKind, message: &str, json: bool) {
    use std::io::Write;
    // Standard error may be gone as well; the exit code still tells.
    let _ = if json {
        writeln!(std::io::stderr(), "{}", json!({ "error": { "kind": key(kind), "message": message } }))
    } else {
        writeln!(std::io::stderr(), "diffdisk: {message}")
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_those_of_the_contract() {
        let all = [
            (ErrorKind::Io, 1),
            (ErrorKind::InvalidInput, 2),
            (ErrorKind::NotFound, 3),
            (ErrorKind::Denied, 4),
            (ErrorKind::InUse, 5),
            (ErrorKind::AlreadyExists, 5),
            (ErrorKind::Damaged, 6),
            (ErrorKind::Unsupported, 6),
            (ErrorKind::Unavailable, 7),
            (ErrorKind::NoSpace, 8),
            (ErrorKind::Cancelled, 9),
        ];
        for (kind, expected) in all {
            assert_eq!(code(kind), expected, "{kind}");
        }
    }
}
