//! The store: a directory, what is in it, and how an image is found by name or by identity.

use super::clock::Timestamp;
use super::error::StoreError;
use super::files::{self, Durability, guid_text};
use super::image::Image;
use super::manifest::{self, Manifest};
use super::names::{ImageRef, check_image_name, is_temporary};
use crate::guid::Guid;
use crate::sync::Arc;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The file that makes a directory a store.
const MARKER: &str = ".diffdisk-store";
/// The records of the clones.
const RECORDS: &str = ".clones";
/// Images that are being made.
const WORK: &str = ".work";
/// The cache.
const INDEX: &str = ".index";

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    format: u32,
    #[serde(with = "guid_text")]
    id: Guid,
    created: Timestamp,
}

/// A directory of images, and what is known of their clones. Cheap to copy; any number of processes may have it open.
///
/// ```
/// use diffdisk::{Cancel, CloneOptions, ImageOptions, NoProgress, ResetOptions, Source, Store};
/// # let dir = tempfile::tempdir()?;
/// # let (images, raw, alice) = (dir.path().join("images"), dir.path().join("db.img"), dir.path().join("alice.vhdx"));
/// std::fs::write(&raw, [7; 1 << 20])?;
/// let store = Store::open(&images)?;
/// let image = store.create_image("app", Source::raw(&raw), &ImageOptions::default(), &NoProgress, &Cancel::new())?;
/// assert_eq!(image.reference(), "app@1");
///
/// let clone = store.image("app@latest")?.create_clone(&alice, &CloneOptions::default())?;
/// let disk = clone.open()?;
/// disk.write_at(b"changed", 0)?;
/// disk.close()?;
/// clone.reset(&ResetOptions::default())?;
///
/// assert!(image.remove().is_err(), "it has a clone");
/// clone.remove()?;
/// image.remove()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Store {
    dir: Arc<PathBuf>,
    id: Guid,
}

/// What is in a store.
#[derive(Clone, Debug)]
pub struct Catalog {
    /// The images, by name and generation.
    pub images: Vec<Image>,
    /// What was found that is not an image, or not a whole one.
    pub problems: Vec<Problem>,
}

/// Something in a store that is not as it should be, and was left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: PathBuf,
    /// What it is, and what to do.
    pub what: String,
}

impl Store {
    /// Opens a store. A directory that does not exist, or is empty, becomes one.
    ///
    /// # Errors
    /// `NotAStore` for a directory that holds something else; `Io` when it cannot be read or made.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        let dir = dir.as_ref();
        if !files::exists(dir)? {
            files::make_dir(dir)?;
        }
        let dir = std::fs::canonicalize(dir).map_err(StoreError::io("open the store", dir))?;
        let marker = match files::read_if_there::<Marker>(&dir.join(MARKER))? {
            Some(marker) => marker,
            None => begin(&dir)?,
        };
        if marker.format != manifest::FORMAT {
            let why = format!("it is of format {}, and this version knows {}", marker.format, manifest::FORMAT);
            return Err(StoreError::NotAStore { dir, why });
        }
        Ok(Self { dir: Arc::new(dir), id: marker.id })
    }

    /// Whether the directory is a store.
    pub(super) fn is_at(dir: &Path) -> bool {
        dir.join(MARKER).is_file()
    }

    /// Where it is, without links.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn id(&self) -> Guid {
        self.id
    }

    pub(super) fn records_dir(&self) -> PathBuf {
        self.dir.join(RECORDS)
    }

    pub(super) fn work_dir(&self) -> PathBuf {
        self.dir.join(WORK)
    }

    pub(super) fn index_path(&self) -> PathBuf {
        self.dir.join(INDEX)
    }

    pub(super) fn image_dir(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The image that a reference names: `app` or `app@latest`, `app@3`.
    ///
    /// # Errors
    /// `Name` for what is no reference; `NoImage`; `Disabled` when the latest is asked for and all generations are disabled.
    pub fn image(&self, reference: &str) -> Result<Image, StoreError> {
        let reference: ImageRef = reference.parse()?;
        let generation = match reference.generation {
            Some(generation) => generation,
            None => self.latest(&reference)?,
        };
        match self.load(&reference.name, generation)? {
            Some(image) => Ok(image),
            None => Err(self.no_image(&reference)),
        }
    }

    /// All generations of an image, oldest first, disabled ones included.
    ///
    /// # Errors
    /// `NoImage` when there is none; `Damaged` when a manifest cannot be read.
    pub fn generations(&self, name: &str) -> Result<Vec<Image>, StoreError> {
        check_image_name(name)?;
        let mut images = Vec::new();
        for generation in self.generation_numbers(name)? {
            images.extend(self.load(name, generation)?);
        }
        if images.is_empty() {
            return Err(self.no_image(&ImageRef { name: name.to_owned(), generation: None }));
        }
        Ok(images)
    }

    /// Everything in the store, including what does not belong there.
    ///
    /// # Errors
    /// `Io` when the directory cannot be read. What is wrong with single images is among the problems.
    pub fn images(&self) -> Result<Catalog, StoreError> {
        let mut catalog = Catalog { images: Vec::new(), problems: Vec::new() };
        for (name, path) in entries(&self.dir)? {
            if name.starts_with('.') && !is_temporary(&name) {
                continue;
            }
            if !path.is_dir() || check_image_name(&name).is_err() {
                let what = "it is not an image, and was left alone; images are directories with their disks".to_owned();
                catalog.problems.push(Problem { path, what });
                continue;
            }
            self.list_image(&name, &path, &mut catalog)?;
        }
        catalog.images.sort_by(|a, b| (a.name(), a.generation()).cmp(&(b.name(), b.generation())));
        catalog.problems.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(catalog)
    }

    fn list_image(&self, name: &str, dir: &Path, catalog: &mut Catalog) -> Result<(), StoreError> {
        let found = entries(dir)?;
        let sealed: BTreeSet<u32> = found.iter().filter_map(|(file, _)| numbered(file, ".json")).collect();
        for &generation in &sealed {
            match self.load(name, generation) {
                Ok(Some(image)) => match files::exists(&image.path())? {
                    true => catalog.images.push(image),
                    false => catalog.problems.push(Problem {
                        path: image.path(),
                        what: format!("the disk of {} is missing; restore it from a copy or remove the image", image.reference()),
                    }),
                },
                Ok(None) => {}
                Err(e) => {
                    let what = match e {
                        StoreError::Damaged { what, next, .. } => format!("{what}; {next}"),
                        e => e.to_string(),
                    };
                    catalog.problems.push(Problem { path: dir.join(format!("{generation}.json")), what });
                }
            }
        }
        for (file, path) in found {
            let ours = [".json", ".vhdx", ".blake3", ".disabled"].into_iter().find_map(|ending| numbered(&file, ending));
            let what = match ours {
                Some(generation) if sealed.contains(&generation) => continue,
                Some(_) => "it belongs to an image that is not finished; if nobody is making it, `image sweep` clears it away",
                None if is_temporary(&file) || is_retired(&file) => "it is left over; `image sweep` clears it away",
                None => "it is not part of an image, and was left alone",
            };
            catalog.problems.push(Problem { path, what: what.to_owned() });
        }
        Ok(())
    }

    /// The generation numbers that have a manifest, in order.
    pub(super) fn generation_numbers(&self, name: &str) -> Result<BTreeSet<u32>, StoreError> {
        let dir = self.image_dir(name);
        if !files::exists(&dir)? {
            return Ok(BTreeSet::new());
        }
        Ok(entries(&dir)?.iter().filter_map(|(file, _)| numbered(file, ".json")).collect())
    }

    fn latest(&self, reference: &ImageRef) -> Result<u32, StoreError> {
        let numbers = self.generation_numbers(&reference.name)?;
        if numbers.is_empty() {
            return Err(self.no_image(reference));
        }
        for &generation in numbers.iter().rev() {
            if !files::exists(&self.image_dir(&reference.name).join(format!("{generation}.disabled")))? {
                return Ok(generation);
            }
        }
        Err(StoreError::Disabled { image: format!("every generation of {}", reference.name) })
    }

    pub(super) fn load(&self, name: &str, generation: u32) -> Result<Option<Image>, StoreError> {
        let path = self.image_dir(name).join(format!("{generation}.json"));
        let Some(manifest) = files::read_if_there::<Manifest>(&path)? else { return Ok(None) };
        if manifest.format != manifest::FORMAT {
            let what = format!("it is of format {}, and this version knows {}", manifest.format, manifest::FORMAT);
            return Err(StoreError::Damaged { path, what, next: "use a newer diffdisk" });
        }
        Ok(Some(Image::new(self.clone(), name, generation, manifest)))
    }

    /// The image with this identity: at the place where it is expected, or anywhere in the store.
    pub(super) fn find(&self, guid: Guid, name: &str, generation: u32) -> Result<Option<Image>, StoreError> {
        if let Ok(Some(image)) = self.load(name, generation)
            && image.manifest().data_write_guid == guid
        {
            return Ok(Some(image));
        }
        self.find_by_identity(guid)
    }

    /// The image with this identity.
    pub(super) fn find_by_identity(&self, guid: Guid) -> Result<Option<Image>, StoreError> {
        Ok(self.images()?.images.into_iter().find(|image| image.manifest().data_write_guid == guid))
    }

    fn no_image(&self, reference: &ImageRef) -> StoreError {
        let numbers = self.generation_numbers(&reference.name).unwrap_or_default();
        let hint = if !numbers.is_empty() {
            let numbers: Vec<String> = numbers.iter().map(|n| format!("{}@{n}", reference.name)).collect();
            format!("there is {}", numbers.join(", "))
        } else {
            let names: BTreeSet<String> =
                self.images().map(|all| all.images.iter().map(|i| i.name().to_owned()).collect()).unwrap_or_default();
            match names.len() {
                0 => "the store has no image yet; `image create` makes one".to_owned(),
                _ => format!("there is {}", names.into_iter().collect::<Vec<_>>().join(", ")),
            }
        };
        // Whoever names no generation was not looking for one.
        let wanted = if reference.generation.is_some() { reference.to_string() } else { reference.name.clone() };
        StoreError::NoImage { reference: wanted, store: self.dir().to_path_buf(), hint }
    }

    /// Gives an image another name, all its generations with it. Clones keep working: they are found by identity. Their own
    /// note of where the parent is, which other programs read, is brought up to date where nobody has them open.
    ///
    /// # Errors
    /// `NoImage`; `ImageExists` when the new name is taken; `Io`.
    pub fn rename_image(&self, name: &str, new_name: &str) -> Result<Vec<super::Repaired>, StoreError> {
        check_image_name(name)?;
        check_image_name(new_name)?;
        let _ = self.generations(name)?;
        if name == new_name {
            return Err(StoreError::ImageExists { name: name.to_owned(), store: self.dir().to_path_buf() });
        }
        let lock = self.lock_name(name)?;
        let new_lock = self.lock_name(new_name)?;
        match files::rename(&self.image_dir(name), &self.image_dir(new_name)) {
            Err(StoreError::Io { source, .. }) if matches!(source.kind(), std::io::ErrorKind::AlreadyExists) => {
                return Err(StoreError::ImageExists { name: new_name.to_owned(), store: self.dir().to_path_buf() });
            }
            result => result?,
        }
        files::sync_dir(self.dir(), Durability::Durable)?;
        drop((lock, new_lock));
        self.repair_clones_of(new_name)
    }
}

/// Makes a directory a store: an empty one, or one that has images and lost its marker.
fn begin(dir: &Path) -> Result<Marker, StoreError> {
    let found = entries(dir)?;
    let mut foreign = found.iter().filter(|(name, _)| !is_temporary(name) && name != MARKER);
    if let Some((name, _)) = foreign.next() {
        let has_image = |path: &Path| entries(path).is_ok_and(|found| found.iter().any(|(file, _)| numbered(file, ".blake3").is_some()));
        if !found.iter().any(|(_, path)| path.is_dir() && has_image(path)) {
            let why = format!("it has no {MARKER} and is not empty (there is {name})");
            return Err(StoreError::NotAStore { dir: dir.to_path_buf(), why });
        }
    }
    let marker = Marker { format: manifest::FORMAT, id: Guid::random(), created: Timestamp::now() };
    match files::Held::create(&dir.join(MARKER), &marker, Durability::Durable) {
        Ok(_) => Ok(marker),
        // Somebody else began it in the same moment.
        Err(e) if e.kind() == crate::kind::ErrorKind::AlreadyExists => files::read(&dir.join(MARKER)),
        Err(e) => Err(e),
    }
}

/// What is in a directory, by name; names that are not Unicode are not ours.
pub(super) fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(StoreError::io("list", dir))? {
        let entry = entry.map_err(StoreError::io("list", dir))?;
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    Ok(found)
}

/// The generation in a name like `3.json`.
pub(super) fn numbered(file: &str, ending: &str) -> Option<u32> {
    let digits = file.strip_suffix(ending)?;
    let plain = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
    digits.parse().ok().filter(|&n| plain && n > 0)
}

/// Whether a file is the manifest of an image whose removal has begun.
pub(super) fn is_retired(file: &str) -> bool {
    file.strip_prefix('.').is_some_and(|rest| numbered(rest, ".retired").is_some())
}
