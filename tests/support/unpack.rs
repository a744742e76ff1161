//! The corpus is packed with xz; tests unpack it without an `xz` on the machine.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Unpacks one file; pieces that are all zeros become holes. Returns where the others are.
pub fn unpack(from: &Path, to: &Path) -> Result<Vec<u64>, String> {
    let context = |e: std::io::Error| format!("{}: {e}", from.display());
    std::fs::create_dir_all(to.parent().expect("a directory")).map_err(context)?;
    let packed = BufReader::new(File::open(from).map_err(context)?);
    let mut reader = lzma_rust2::XzReader::new(packed, true);
    let mut out = File::create(to).map_err(context)?;
    let mut buf = vec![0; 64 << 10];
    let (mut len, mut data) = (0_u64, Vec::new());
    loop {
        let mut n = 0;
        while n < buf.len() {
            match reader.read(&mut buf[n..]).map_err(context)? {
                0 => break,
                more => n += more,
            }
        }
        if n == 0 {
            return out.set_len(len).map(|()| data).map_err(context);
        }
        if buf[..n].iter().any(|&b| b != 0) {
            out.seek(SeekFrom::Start(len)).map_err(context)?;
            out.write_all(&buf[..n]).map_err(context)?;
            data.push(len);
        }
        len += n as u64;
    }
}
