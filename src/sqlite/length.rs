//! How long the database on a disk is, told by its own bytes. Pure: slices in, numbers out.

/// The largest page of SQLite, and how much of a disk must be zeros to count as an empty database.
pub(super) const LARGEST_PAGE: u64 = 64 << 10;
/// What [`header`] needs of a database, and `journal_pages` of a journal.
pub(super) const HEADER: usize = 100;

const MAGIC: &[u8; 16] = b"SQLite format 3\0";
const JOURNAL_MAGIC: [u8; 8] = [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7];

/// What the first 100 bytes of a disk say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Header {
    /// No magic. The disk holds an empty database or something else.
    Absent,
    /// SQLite's magic with a page size that cannot be.
    BadPageSize(u16),
    /// A header that the last writer did not bring up to date: SQLite before 3.7.0.
    NoPageCount,
    /// The database has this many bytes.
    Valid { len: u64, is_wal: bool },
}

/// Reads a database header (the format's section 1.3).
pub(super) fn header(bytes: &[u8; HEADER]) -> Header {
    if &bytes[..16] != MAGIC {
        return Header::Absent;
    }
    let stored = u16::from_be_bytes([bytes[16], bytes[17]]);
    let page_size = if stored == 1 { LARGEST_PAGE } else { u64::from(stored) };
    if !(512..=LARGEST_PAGE).contains(&page_size) || !page_size.is_power_of_two() {
        return Header::BadPageSize(stored);
    }
    // The count is as old as the version-valid-for number; writers that do not know it change only the change counter.
    let (changes, pages, valid_for) = (word(bytes, 24), word(bytes, 28), word(bytes, 92));
    if pages == 0 || changes != valid_for {
        return Header::NoPageCount;
    }
    Header::Valid { len: u64::from(pages) * page_size, is_wal: bytes[18] == 2 || bytes[19] == 2 }
}

/// The bytes that the database had when the transaction of this rollback journal began; `None` where the journal has no valid header.
pub(super) fn journal_len(bytes: &[u8]) -> Option<u64> {
    if bytes.len() < 28 || bytes[..8] != JOURNAL_MAGIC {
        return None;
    }
    let (pages, page_size) = (word(bytes, 16), u64::from(word(bytes, 24)));
    ((512..=LARGEST_PAGE).contains(&page_size) && page_size.is_power_of_two()).then(|| u64::from(pages) * page_size)
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(page_size: u16, pages: u32, changes: u32, valid_for: u32) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..16].copy_from_slice(MAGIC);
        bytes[16..18].copy_from_slice(&page_size.to_be_bytes());
        (bytes[18], bytes[19]) = (1, 1);
        bytes[24..28].copy_from_slice(&changes.to_be_bytes());
        bytes[28..32].copy_from_slice(&pages.to_be_bytes());
        bytes[92..96].copy_from_slice(&valid_for.to_be_bytes());
        bytes
    }

    #[test]
    fn the_length_is_pages_times_page_size() {
        assert_eq!(header(&sample(4096, 3, 7, 7)), Header::Valid { len: 12288, is_wal: false });
        assert_eq!(header(&sample(1, u32::MAX, 7, 7)), Header::Valid { len: u64::from(u32::MAX) * 65536, is_wal: false });
        let mut wal = sample(512, 1, 0, 0);
        wal[19] = 2;
        assert_eq!(header(&wal), Header::Valid { len: 512, is_wal: true });
    }

    #[test]
    fn a_count_older_than_the_last_change_is_not_believed() {
        assert_eq!(header(&sample(4096, 3, 8, 7)), Header::NoPageCount);
        assert_eq!(header(&sample(4096, 0, 7, 7)), Header::NoPageCount);
        assert_eq!(header(&sample(1000, 3, 7, 7)), Header::BadPageSize(1000));
        assert_eq!(header(&[0; HEADER]), Header::Absent);
    }

    #[test]
    fn a_journal_tells_the_length_before_its_transaction() {
        let mut bytes = [0; 28];
        assert_eq!(journal_len(&bytes), None, "a zeroed header is a finished transaction");
        bytes[..8].copy_from_slice(&JOURNAL_MAGIC);
        bytes[16..20].copy_from_slice(&9u32.to_be_bytes());
        bytes[24..28].copy_from_slice(&1024u32.to_be_bytes());
        assert_eq!(journal_len(&bytes), Some(9216));
        assert_eq!(journal_len(&bytes[..27]), None);
        bytes[24..28].copy_from_slice(&1000u32.to_be_bytes());
        assert_eq!(journal_len(&bytes), None);
    }
}
