//! CRC-32C, the only checksum of the format.
//!
//! Headers, region tables and log entries carry a CRC-32C (Castagnoli; MS-VHDX 2) over themselves, computed with their own
//! checksum field as zeros. The BAT, sector bitmaps and metadata carry none. The CRC-32 of zip and PNG is another polynomial.

/// CRC-32C of `bytes`.
///
/// ```
/// assert_eq!(diffdisk::format::crc32c(b"123456789"), 0xE306_9283);
/// ```
pub fn crc32c(bytes: &[u8]) -> u32 {
    ::crc32c::crc32c(bytes)
}

/// CRC-32C of `bytes` with the four bytes at `field_at` counted as zeros, without copying.
///
/// Bytes of the field that lie behind the end of `bytes` do not count at all.
pub fn crc32c_with_field_zeroed(bytes: &[u8], field_at: usize) -> u32 {
    const ZEROS: [u8; 4] = [0; 4];
    let (before, rest) = bytes.split_at_checked(field_at).unwrap_or((bytes, &[]));
    let (field, after) = rest.split_at_checked(ZEROS.len()).unwrap_or((rest, &[]));
    let zeros = ZEROS.get(..field.len()).unwrap_or(&ZEROS);
    crc32c_append(crc32c_append(crc32c(before), zeros), after)
}

/// Carries a CRC-32C on over more bytes, for what is not contiguous (log entries wrap around the ring).
pub(super) fn crc32c_append(so_far: u32, more: &[u8]) -> u32 {
    ::crc32c::crc32c_append(so_far, more)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_inputs_give_known_checksums() {
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        for (len, crc) in [(32, 0x8A91_36AA), (4096, 0x98F9_4189), (65536, 0x72C0_C4A4)] {
            assert_eq!(crc32c(&vec![0; len]), crc, "{len} zeros");
        }
    }

    proptest! {
        #[test]
        fn zeroing_the_field_equals_a_copy_with_zeros(mut bytes in prop::collection::vec(any::<u8>(), 0..64), at in 0_usize..80) {
            let fast = crc32c_with_field_zeroed(&bytes, at);
            for byte in bytes.iter_mut().skip(at).take(4) {
                *byte = 0;
            }
            prop_assert_eq!(fast, crc32c(&bytes));
        }
    }
}
