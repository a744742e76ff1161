//! What a store has frozen: images, whose digests and clones depend on every byte, and savepoints, on which other savepoints and clones stand. The files'
//! permissions say so to everybody but root; the verbs that change a file in place, or replace it on demand, ask the store as well, whoever
//! calls.

use crate::args::ParentsArgs;
use crate::error::{About, CliError};
use diffdisk::{Disk, ErrorKind, OpenError, Store};
use std::path::Path;

/// Refuses to change what a file holds when it is an image of a store, or a savepoint of a clone.
///
/// # Errors
/// `Denied`, with what the file is and what stands on it.
pub fn refuse(path: &Path) -> Result<(), CliError> {
    refuse_image(path)?;
    let Ok(Some((clone, savepoint))) = Store::savepoint_of_file(path) else { return Ok(()) };
    let name = &savepoint.name;
    let above = match clone.standing_on(name) {
        Ok(above) if above.is_empty() => "nothing stands on it".to_owned(),
        Ok(above) => format!("{} stand on it", above.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")),
        Err(_) => "what stands on it cannot be told".to_owned(),
    };
    let message = format!(
        "{} is the savepoint {name} of the clone {}, which is frozen ({above}); `clone drop {} {name}` merges it with what stands on it",
        path.display(),
        clone.path().display(),
        clone.name()
    );
    Err(CliError::new(ErrorKind::Denied, message))
}

/// The same for images alone, for verbs that leave alone what a file holds and who may stand on it.
///
/// # Errors
/// `Denied`, with the image's name and the number of its clones.
pub fn refuse_image(path: &Path) -> Result<(), CliError> {
    // A path that leads nowhere is the verb's own business, with its own words.
    let Ok(Some(image)) = Store::image_of_file(path) else { return Ok(()) };
    let clones = match image.clones() {
        Ok(clones) => format!("{} clones stand on it", clones.len()),
        Err(_) => "its clones cannot be counted".to_owned(),
    };
    let message = format!(
        "{} is the image {}, which is sealed ({clones}); `image refresh {} CLONE --from clone` makes the next generation",
        path.display(),
        image.reference(),
        image.name()
    );
    Err(CliError::new(ErrorKind::Denied, message))
}

/// Refuses to put a file onto another parent behind the back of the store that knows it as a clone: the store keeps the image that it
/// has written down, and not the other one.
///
/// # Errors
/// `InvalidInput`, with the verb that does it; as [`refuse`].
pub fn refuse_clone(path: &Path, verb: &str) -> Result<(), CliError> {
    refuse(path)?;
    let Ok(Some(clone)) = Store::clone_of_file(path) else { return Ok(()) };
    let message =
        format!("{} is a clone that a store knows, and its books would be wrong; use `clone {verb} {}`", path.display(), clone.name());
    Err(CliError::usage(message))
}

/// Refuses to merge into what is frozen: `into`, or the parent of `child` if nothing is said.
///
/// # Errors
/// As for [`refuse`]. A chain that does not open is the verb's own business.
pub fn refuse_merge(child: &Path, into: Option<&Path>, parents: &ParentsArgs) -> Result<(), CliError> {
    if let Some(into) = into {
        return refuse(into);
    }
    let parent_of = |disk: Disk| disk.info().ok()?.chain.into_iter().nth(1)?.path;
    let found: Result<Disk, OpenError> = Disk::open(child, &parents.read_only());
    found.ok().and_then(parent_of).map_or(Ok(()), |parent| refuse(&parent))
}

/// Opens a disk for writing, unless it is frozen.
///
/// # Errors
/// As for [`refuse`] and [`Disk::open`].
pub fn open_writable(path: &Path, parents: &ParentsArgs) -> Result<Disk, CliError> {
    refuse(path)?;
    Disk::open(path, &parents.writable()).about(path)
}
