//! The corpus is packed with xz; tests unpack it without an `xz` on the machine.
//!
//! Most of it is holes, gigabytes of them, and a checksum over every zero. So what was unpacked once is kept in the build directory, under the
//! digest of the packed file: the length and the pieces that are not zeros. Several test binaries need the same files.

use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

const PIECE: usize = 64 << 10;

/// A file without its zeros: how long it is, and its pieces with where they start.
#[derive(Default)]
struct Sparse {
    len: u64,
    pieces: Vec<(u64, Vec<u8>)>,
}

impl Sparse {
    fn of_xz(packed: &[u8]) -> std::io::Result<Self> {
        let mut reader = lzma_rust2::XzReader::new(packed, true);
        let (mut sparse, mut buf) = (Self::default(), vec![0; PIECE]);
        loop {
            let mut n = 0;
            while n < buf.len() {
                match reader.read(&mut buf[n..])? {
                    0 => break,
                    more => n += more,
                }
            }
            if n == 0 {
                return Ok(sparse);
            }
            if buf[..n].iter().any(|&b| b != 0) {
                sparse.pieces.push((sparse.len, buf[..n].to_vec()));
            }
            sparse.len += n as u64;
        }
    }

    /// As one run of bytes: the length, and for each piece its place, its length and itself.
    fn keep(&self, home: &Path, name: &Path) -> std::io::Result<()> {
        std::fs::create_dir_all(home)?;
        let mut file = tempfile::NamedTempFile::new_in(home)?;
        file.write_all(&self.len.to_le_bytes())?;
        for (at, piece) in &self.pieces {
            file.write_all(&at.to_le_bytes())?;
            file.write_all(&(piece.len() as u64).to_le_bytes())?;
            file.write_all(piece)?;
        }
        file.persist(name).map(|_| ()).map_err(|e| e.error)
    }

    /// `None` for one that is not there, or is not whole.
    fn kept(name: &Path) -> Option<Self> {
        let mut reader = BufReader::new(File::open(name).ok()?);
        let mut sparse = Self { len: word(&mut reader)?, pieces: Vec::new() };
        while let Some(at) = word(&mut reader) {
            let mut piece = vec![0; usize::try_from(word(&mut reader)?).ok().filter(|&len| len <= PIECE)?];
            reader.read_exact(&mut piece).ok()?;
            sparse.pieces.push((at, piece));
        }
        Some(sparse)
    }
}

fn word(reader: &mut impl Read) -> Option<u64> {
    let mut word = [0; 8];
    reader.read_exact(&mut word).ok()?;
    Some(u64::from_le_bytes(word))
}

/// Unpacks one file; pieces that are all zeros become holes. Returns where the others are.
pub fn unpack(from: &Path, to: &Path) -> Result<Vec<u64>, String> {
    let context = |e: std::io::Error| format!("{}: {e}", from.display());
    let packed = std::fs::read(from).map_err(context)?;
    let digest: String = Sha256::digest(&packed).iter().map(|b| format!("{b:02x}")).collect();
    let home = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("corpus");
    let name = home.join(digest);
    let sparse = match Sparse::kept(&name) {
        Some(sparse) => sparse,
        None => {
            let sparse = Sparse::of_xz(&packed).map_err(context)?;
            sparse.keep(&home, &name).map_err(context)?;
            sparse
        }
    };
    std::fs::create_dir_all(to.parent().expect("a directory")).map_err(context)?;
    let mut out = File::create(to).map_err(context)?;
    for (at, piece) in &sparse.pieces {
        out.seek(SeekFrom::Start(*at)).map_err(context)?;
        out.write_all(piece).map_err(context)?;
    }
    out.set_len(sparse.len).map_err(context)?;
    Ok(sparse.pieces.into_iter().map(|(at, _)| at).collect())
}
