//! Images of a store are sealed: their digests and all their clones depend on every byte. The file's permissions say so to everybody but root; the
//! verbs that change a file in place ask the store as well, whoever calls.

use crate::args::ParentsArgs;
use crate::error::{About, CliError};
use diffdisk::{Disk, ErrorKind, OpenError, Store};
use std::path::Path;

/// Refuses to change a file that is an image of a store.
///
/// # Errors
/// `Denied`, with the image's name and the number of its clones.
pub fn refuse(path: &Path) -> Result<(), CliError> {
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

/// Refuses to merge into an image: `into`, or the parent of `child` if nothing is said.
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

/// Opens a disk for writing, unless it is an image.
///
/// # Errors
/// As for [`refuse`] and [`Disk::open`].
pub fn open_writable(path: &Path, parents: &ParentsArgs) -> Result<Disk, CliError> {
    refuse(path)?;
    Disk::open(path, &parents.writable()).about(path)
}
