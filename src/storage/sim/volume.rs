//! The simulated directory as a [`Volume`], so that creations can be crashed between any two of their steps.

use super::sparse::SparseFile;
use super::{Event, FileId, SimStorage, SimWorld};
use crate::storage::{Storage, Volume};
use crate::sync::Arc;
use std::io;

impl Volume for SimWorld {
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn Storage>> {
        let mut inner = self.world.inner.lock();
        if inner.now.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = FileId(inner.now.files.len());
        inner.now.files.push(SparseFile::default());
        inner.now.names.insert(name.to_owned(), file);
        inner.record(|| Event::Create { file, name: name.to_owned() });
        Ok(Arc::new(SimStorage { world: Arc::clone(&self.world), file }))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        if !replace && inner.now.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = inner.now.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        inner.now.names.insert(to.to_owned(), file);
        inner.record(|| Event::Rename { from: from.to_owned(), to: to.to_owned() });
        Ok(())
    }

    fn link(&self, name: &str, second: &str) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        if inner.now.names.contains_key(second) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = *inner.now.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        inner.now.names.insert(second.to_owned(), file);
        inner.record(|| Event::Link { name: name.to_owned(), second: second.to_owned() });
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut inner = self.world.inner.lock();
        inner.now.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        inner.record(|| Event::Unlink { name: name.to_owned() });
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.world.inner.lock().record(|| Event::SyncDir);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.world.inner.lock().now.names.keys().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{CrashOptions, CrashWalk};
    use super::*;
    use crate::storage::{StorageError, SyncSite, create_atomically, write_all};

    const CONTENT: [u8; 1500] = [5; 1500];

    /// Makes a file atomically over an old one of another content or none, and returns what crashes leave under the name: before
    /// the call returned, and after.
    fn outcomes(old: bool, options: &CrashOptions) -> [Vec<Option<Vec<u8>>>; 2] {
        let world = SimWorld::new(4);
        if old {
            let file = world.create("name");
            file.write_at(&[1; 700], 0).unwrap();
            drop(file);
            world.forget();
        }
        let fill = |file: &Arc<dyn Storage>| write_all(file.as_ref(), &CONTENT, 0);
        create_atomically::<_, StorageError>(&world, "name", old, true, fill).unwrap();
        let (trace, done) = (world.trace(), world.cut());
        let mut walk = CrashWalk::new(&trace, options.clone());
        let mut seen = [Vec::new(), Vec::new()];
        loop {
            let list = &mut seen[usize::from(walk.cut() == done)];
            walk.for_each_choice(&mut |_, image| {
                let found = image.boot(false).open("name").map(|file| {
                    let mut all = vec![0; file.len().unwrap() as usize];
                    file.read_at(&mut all, 0).unwrap();
                    all
                });
                list.push(found);
                true
            });
            if walk.step().is_none() {
                return seen;
            }
        }
    }

    fn whole(found: &Option<Vec<u8>>) -> bool {
        found.as_deref() == Some(&CONTENT)
    }

    #[test]
    fn a_file_made_atomically_is_absent_or_whole_and_stays_once_made() {
        let [before, after] = outcomes(false, &CrashOptions::default());
        assert!(before.iter().all(|found| found.is_none() || whole(found)));
        assert!(before.iter().any(Option::is_none) && before.iter().any(whole));
        assert!(after.iter().all(whole));
    }

    #[test]
    fn a_file_replaced_atomically_is_the_old_or_the_new_one() {
        let [before, after] = outcomes(true, &CrashOptions::default());
        assert!(before.iter().all(|found| found.as_deref() == Some(&[1; 700]) || whole(found)));
        assert!(after.iter().all(whole));
    }

    #[test]
    fn both_syncs_of_a_creation_are_needed() {
        let no_file_sync = CrashOptions { no_op: [SyncSite::Create].into(), ..CrashOptions::default() };
        let [before, _] = outcomes(false, &no_file_sync);
        assert!(before.iter().any(|found| found.is_some() && !whole(found)));
        let no_dir_sync = CrashOptions { no_op_dir: true, ..CrashOptions::default() };
        let [_, after] = outcomes(false, &no_dir_sync);
        assert!(after.iter().any(Option::is_none));
    }
}
