//! What `serve` and `mount` show to others: a disk, or a clone that its store can save meanwhile.

use crate::args::ParentsArgs;
use crate::error::{About, CliError};
use crate::sealed;
#[cfg(unix)]
use diffdisk::Control;
use diffdisk::export::BlockDevice;
use diffdisk::{Disk, LiveClone, Store};
use std::path::Path;
use std::sync::Arc;

/// What is served.
pub enum Served {
    Disk(Arc<Disk>),
    Clone(Box<LiveClone>),
}

impl Served {
    /// Opens the disk; as a clone, when a store knows it as one and it is opened for writing.
    pub fn open(file: &Path, read_only: bool, parents: &ParentsArgs) -> Result<Self, CliError> {
        if read_only {
            return Ok(Self::Disk(Arc::new(Disk::open(file, &parents.read_only()).about(file)?)));
        }
        match Store::clone_of_file(file) {
            Ok(Some(clone)) => Ok(Self::Clone(Box::new(clone.open_live()?))),
            _ => Ok(Self::Disk(Arc::new(sealed::open_writable(file, parents)?))),
        }
    }

    /// What the server is given.
    pub fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Disk(disk) => disk.clone(),
            Self::Clone(live) => live.disk(),
        }
    }

    /// The socket on which others ask for a save.
    #[cfg(unix)]
    pub fn control(&self) -> Option<Control> {
        let Self::Clone(live) = self else { return None };
        match Control::open(live) {
            Ok(control) => Some(control),
            Err(e) => {
                eprintln!("diffdisk: {e}; the clone is served, and cannot be saved meanwhile");
                None
            }
        }
    }

    /// Runs `wait` while what comes in on the socket is answered.
    #[cfg(unix)]
    pub fn answering<T>(&self, control: Option<&Control>, wait: impl FnOnce() -> T) -> T {
        std::thread::scope(|scope| {
            if let (Some(control), Self::Clone(live)) = (control, self) {
                scope.spawn(move || control.run(live));
            }
            let waited = wait();
            if let Some(control) = control {
                control.stopper().stop();
            }
            waited
        })
    }

    /// Flushes and closes it, once the server has let go of it.
    pub fn close(self, file: &Path) -> Result<(), CliError> {
        match self {
            Self::Disk(disk) => {
                let disk = Arc::into_inner(disk).expect("a stopped server holds no disk");
                if disk.is_writable() { disk.close().about(file) } else { Ok(()) }
            }
            Self::Clone(live) => Ok(live.close()?),
        }
    }
}
