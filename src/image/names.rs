//! Names: of images and savepoints, references to images, and patterns for clones.

use super::StoreError;
use super::clock::Timestamp;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The longest name of an image or savepoint, in bytes. Leaves room for suffixes below the 255 of common file systems.
const MAX_NAME: usize = 100;
/// File names that mean devices on Windows, with any extension.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// Names become directories on whatever file system or share the store lies on, Windows included.
pub(super) fn check_image_name(name: &str) -> Result<(), StoreError> {
    let rule = "use 1 to 100 letters, digits, '-', '_' or '.', beginning with a letter or digit and not ending with '.'";
    let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
    if !fits || !begins_well(name) || name.ends_with('.') || name.len() > MAX_NAME || is_device(name) {
        return Err(StoreError::Name { what: "an image", name: name.to_owned(), rule });
    }
    Ok(())
}

/// Savepoints have no dots, so that `a.b` + `c` and `a` + `b.c` cannot be the same file.
pub(super) fn check_savepoint_name(name: &str) -> Result<(), StoreError> {
    let rule = "use 1 to 100 letters, digits, '-' or '_', beginning with a letter or digit";
    let fits = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    if !fits || !begins_well(name) || name.len() > MAX_NAME {
        return Err(StoreError::Name { what: "a savepoint", name: name.to_owned(), rule });
    }
    Ok(())
}

fn begins_well(name: &str) -> bool {
    name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

fn is_device(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).to_ascii_lowercase();
    let numbered = |prefix: &str| stem.strip_prefix(prefix).is_some_and(|n| n.len() == 1 && n.bytes().all(|b| b.is_ascii_digit()));
    DEVICES.contains(&stem.as_str()) || numbered("com") || numbered("lpt")
}

/// An image as people name it: `app` or `app@latest` for the newest generation that is not disabled, `app@3` for one.
///
/// ```
/// use diffdisk::ImageRef;
/// let third: ImageRef = "app@3".parse()?;
/// assert_eq!((third.name.as_str(), third.generation), ("app", Some(3)));
/// assert_eq!("app".parse::<ImageRef>()?, "app@latest".parse()?);
/// # Ok::<(), diffdisk::StoreError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ImageRef {
    /// The image.
    pub name: String,
    /// The generation; `None` for the latest.
    pub generation: Option<u32>,
}

impl FromStr for ImageRef {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self, StoreError> {
        let (name, generation) = match text.split_once('@') {
            None | Some((_, "latest")) => (text.split('@').next().unwrap_or(text), None),
            Some((name, number)) => {
                let rule = "write NAME, NAME@latest or NAME@NUMBER, generations counting from 1";
                let invalid = || StoreError::Name { what: "an image", name: text.to_owned(), rule };
                let digits_only = number.bytes().all(|b| b.is_ascii_digit());
                (name, Some(number.parse().ok().filter(|&n| n > 0 && digits_only).ok_or_else(invalid)?))
            }
        };
        check_image_name(name)?;
        Ok(Self { name: name.to_owned(), generation })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(generation) => write!(f, "{}@{generation}", self.name),
            None => write!(f, "{}@latest", self.name),
        }
    }
}

/// What the placeholders of a clone's path stand for.
pub(super) struct Placeholders<'a> {
    pub(super) image: &'a str,
    pub(super) now: Timestamp,
}

/// Whether a path asks for a number, so that creation looks for a free one.
pub(super) fn asks_for_number(pattern: &Path) -> bool {
    pattern.to_str().is_some_and(|text| text.contains("{n}"))
}

/// Fills in `{user}`, `{date}`, `{image}` and `{n}`, and adds `.vhdx` where it is missing: Windows attaches nothing else.
pub(super) fn expand(pattern: &Path, values: &Placeholders<'_>, n: u64) -> Result<PathBuf, StoreError> {
    let invalid = |rule| StoreError::Name { what: "a clone", name: pattern.display().to_string(), rule };
    let text = pattern.to_str().ok_or_else(|| invalid("a clone's path must be Unicode, because its parent locator stores it"))?;
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(open) = rest.find('{') {
        let (before, from) = rest.split_at(open);
        out.push_str(before);
        let close = from.find('}').ok_or_else(|| invalid("a '{' has no '}'; the placeholders are {user}, {date}, {image} and {n}"))?;
        match &from[..=close] {
            "{user}" => out.push_str(&user()),
            "{date}" => out.push_str(&values.now.date()),
            "{image}" => out.push_str(values.image),
            "{n}" => out.push_str(&n.to_string()),
            _ => return Err(invalid("the placeholders are {user}, {date}, {image} and {n}")),
        }
        rest = &from[close + 1..];
    }
    out.push_str(rest);
    let path = PathBuf::from(out);
    let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| invalid("it must end in a file name"))?;
    if name.starts_with('.') {
        return Err(invalid("it must not begin with a dot, because hidden files are taken for leftovers"));
    }
    if name.to_ascii_lowercase().ends_with(".vhdx") {
        return Ok(path);
    }
    let named = format!("{name}.vhdx");
    Ok(path.with_file_name(named))
}

/// Who is at work, for names and records.
pub(super) fn user() -> String {
    let named = ["USER", "LOGNAME", "USERNAME"].into_iter().filter_map(|key| std::env::var(key).ok()).find(|name| !name.is_empty());
    let clean =
        |name: String| name.chars().map(|c| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' }).collect();
    named.or_else(user_of_process).map_or_else(|| "nobody".to_owned(), clean)
}

/// Services and containers often have no name in their environment.
#[cfg(unix)]
fn user_of_process() -> Option<String> {
    let uid = rustix::process::getuid().as_raw().to_string();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let account = accounts.lines().find(|line| line.split(':').nth(2) == Some(uid.as_str()));
    Some(account.and_then(|line| line.split(':').next()).map_or_else(|| format!("uid{uid}"), str::to_owned))
}

#[cfg(not(unix))]
fn user_of_process() -> Option<String> {
    None
}

/// The name that a file will have that is being made under this one: `.NAME.0123456789abcdef.tmp` (`storage/volume.rs`), or the same
/// with `.vhdx` behind it for clones whose template steps are running.
pub(super) fn made_as(name: &str) -> Option<&str> {
    let inner = name.strip_suffix(".vhdx").unwrap_or(name).strip_prefix('.')?.strip_suffix(".tmp")?;
    let (name, hex) = inner.rsplit_once('.')?;
    (hex.len() == 16 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(name)
}

/// Whether a name is one under which files are made.
pub(super) fn is_temporary(name: &str) -> bool {
    made_as(name).is_some()
}

/// A name under which to make a clone whose steps must run before it is one.
pub(super) fn temporary_clone(name: &str) -> String {
    let random = u64::from_le_bytes(crate::guid::Guid::random().to_bytes()[8..].try_into().expect("eight bytes"));
    format!(".{name}.{random:016x}.tmp.vhdx")
}

/// The sidecar of a clone.
pub(super) fn sidecar_of(clone: &Path) -> PathBuf {
    let mut name = clone.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// A clone's name: its file without directory and `.vhdx`.
pub(super) fn clone_name(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_are_safe_on_every_file_system() {
        for good in ["app", "App-1.2_x", "9", "com10", "console"] {
            assert!(check_image_name(good).is_ok(), "{good}");
        }
        let long = "x".repeat(101);
        for bad in ["", ".", "..", ".clones", "a/b", "a\\b", "a b", "a.", "CON", "nul.x", "com1", "é", "a@1", "-a", long.as_str()] {
            assert!(check_image_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_are_names_with_a_generation() {
        for bad in ["app@", "app@0", "app@-1", "app@+1", "app@x", "@1", "a@1@2", "app@99999999999"] {
            assert!(bad.parse::<ImageRef>().is_err(), "{bad}");
        }
        assert_eq!("app@7".parse::<ImageRef>().unwrap().to_string(), "app@7");
    }

    #[test]
    fn patterns_are_filled_in() {
        let values = Placeholders { image: "app", now: "2026-03-01T12:00:00Z".parse().unwrap() };
        let path = |pattern: &str| expand(Path::new(pattern), &values, 4).map(|path| path.to_str().unwrap().replace('\\', "/"));
        assert_eq!(path("c/{image}-{date}-{n}").unwrap(), "c/app-2026-03-01-4.vhdx");
        assert_eq!(path("a.v2").unwrap(), "a.v2.vhdx");
        assert_eq!(path("a.VHDX").unwrap(), "a.VHDX");
        for bad in ["{host}", "{n", ".hidden", "..", "c/"] {
            assert!(bad == "c/" || path(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_our_own_temporary_names_are_leftovers() {
        assert_eq!(made_as(".alice.vhdx.0123456789abcdef.tmp"), Some("alice.vhdx"));
        assert_eq!(made_as(&temporary_clone("alice.vhdx")), Some("alice.vhdx"));
        for other in ["alice.vhdx", ".alice.tmp", "a.0123456789abcdef.tmp", ".a.0123456789abcdeg.tmp", ".0123456789abcdef.tmp"] {
            assert!(!is_temporary(other), "{other}");
        }
    }
}
