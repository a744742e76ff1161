//! Arguments that several verbs share.

use diffdisk::{Content, OpenOptions, ParentPolicy};
use std::path::{Path, PathBuf};

/// Parses a number of bytes: decimal, with `K`, `M`, `G` or `T` for powers of 1024 (`KiB` and so on also count), or hexadecimal with `0x`.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of bytes; write 4096, 64K, 10M, 2G, 1T or 0x1000");
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).map_err(|_| wrong());
    }
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(wrong()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is more bytes than 64 bits hold"))
}

/// The same for sizes that are small.
pub fn small_bytes(text: &str) -> Result<u32, String> {
    u32::try_from(bytes(text)?).map_err(|_| format!("{text:?} is too large"))
}

/// Bytes for people: exact powers short, everything else with one decimal.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let unit = ((u64::BITS - bytes.leading_zeros()).saturating_sub(1) / 10).min(4);
    let one = 1u64 << (10 * unit);
    let name = UNITS[unit as usize];
    if bytes.is_multiple_of(one) { format!("{} {name}", bytes / one) } else { format!("{:.1} {name}", bytes as f64 / one as f64) }
}

/// Parses a span of time: a number of seconds, minutes, hours, days or weeks.
pub fn span(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("{text:?} is not a span of time; write 90s, 30m, 8h, 7d or 2w");
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(wrong()),
    };
    if !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    number.checked_mul(unit).map(std::time::Duration::from_secs).ok_or_else(wrong)
}

/// The store.
#[derive(Clone, Debug, clap::Args)]
pub struct StoreArgs {
    /// Directory of the image store.
    #[arg(long, value_name = "DIR", env = "DIFFDISK_STORE")]
    store: PathBuf,
}

impl StoreArgs {
    /// Opens it; one that does not exist is begun.
    pub fn begin(&self) -> Result<diffdisk::Store, crate::error::CliError> {
        Ok(diffdisk::Store::open(&self.store)?)
    }

    /// Opens it; it must exist.
    pub fn open(&self) -> Result<diffdisk::Store, crate::error::CliError> {
        if !self.store.exists() {
            let message = format!("there is no store {}; `diffdisk image create` begins one", self.store.display());
            return Err(crate::error::CliError::new(diffdisk::ErrorKind::NotFound, message));
        }
        self.begin()
    }
}

/// Where the parents of a differencing disk may lie.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct ParentsArgs {
    /// Allow parents in this directory too, besides the disk's own; `anywhere` allows every place. May be repeated.
    #[arg(long = "parents", value_name = "DIR|anywhere")]
    parents: Vec<PathBuf>,
}

impl ParentsArgs {
    /// The policy that was asked for.
    pub fn policy(&self) -> ParentPolicy {
        if self.parents.iter().any(|dir| dir.as_os_str() == "anywhere") {
            ParentPolicy::Anywhere
        } else {
            ParentPolicy::Beneath(self.parents.clone())
        }
    }

    /// Read-only opening with this policy.
    pub fn read_only(&self) -> OpenOptions {
        OpenOptions::new().parents(self.policy())
    }

    /// Opening for writing with this policy.
    pub fn writable(&self) -> OpenOptions {
        self.read_only().writable(true)
    }
}

/// What a file is. Said by the caller or by the extension, never guessed from the content: a raw disk whose guest wrote a VHDX
/// header to it must stay a raw disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk.
    Raw,
    /// A VHDX, with its parents.
    Vhdx,
}

impl Format {
    /// What the extension says: `.vhdx` and `.avhdx` are VHDX, everything else is raw.
    pub fn of(path: &Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()).map(str::to_ascii_lowercase).as_deref() {
            Some("vhdx" | "avhdx") => Self::Vhdx,
            _ => Self::Raw,
        }
    }

    /// Opens a file as what it is said to be.
    pub fn open(self, path: &Path, parents: &ParentsArgs) -> Result<Content<'static>, crate::error::CliError> {
        Ok(match self {
            Self::Raw => Content::raw(path)?,
            Self::Vhdx => Content::vhdx(path, &parents.read_only())?,
        })
    }

    /// The name in JSON.
    pub fn key(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhdx => "vhdx",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, expected) in [("0", 0), ("512", 512), ("4K", 4096), ("3m", 3 << 20), ("2GiB", 2 << 30), ("64T", 64 << 40), ("0x1F", 31)]
        {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "K", "1.5G", "-1", "+1", "10X", "1 G", "99999999999999999999", "18446744073709551615K", "0x", "1é", "²"] {
            assert!(bytes(text).is_err(), "{text}");
        }
        assert!(small_bytes("4G").is_err());
    }

    #[test]
    fn spans_have_units() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("8h", 28_800), ("7d", 604_800), ("2w", 1_209_600)] {
            assert_eq!(span(text).map(|span| span.as_secs()), Ok(seconds), "{text}");
        }
        for text in ["", "8", "h", "-1h", "1.5h", "8 h", "99999999999999999999d", "18446744073709551615w"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    #[test]
    fn people_read_round_numbers() {
        assert_eq!(
            ["0 B", "511 B", "4 KiB", "1.5 MiB", "64 TiB"],
            [0, 511, 4096, 3 << 19, 64 << 40].map(human).each_ref().map(String::as_str)
        );
    }

    #[test]
    fn extensions_decide() {
        for (name, format) in
            [("a.vhdx", Format::Vhdx), ("a.AVHDX", Format::Vhdx), ("a.vhd", Format::Raw), ("vhdx", Format::Raw), ("a.img", Format::Raw)]
        {
            assert_eq!(Format::of(Path::new(name)), format, "{name}");
        }
    }
}
