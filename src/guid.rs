//! GUIDs in the Windows byte layout, and one distinct type for each role a GUID plays in a VHDX.
//!
//! On disk the first three text groups are little-endian (u32, u16, u16) and the last two are plain bytes (MS-VHDX uses the
//! layout of MS-DTYP 2.3.4). The roles are separate types because mixing them up is silent: a child linked to its parent's
//! *file* write GUID opens nowhere.

use std::fmt;
use std::str::FromStr;

/// Sixteen bytes in the order in which they stand in the file.
///
/// ```
/// use diffdisk::Guid;
/// let bat: Guid = "2DC27766-F623-4200-9D64-115E9BFD4A08".parse().unwrap();
/// assert_eq!(bat.to_bytes()[..4], [0x66, 0x77, 0xC2, 0x2D]);
/// assert_eq!(bat.to_string(), "2dc27766-f623-4200-9d64-115e9bfd4a08");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Guid([u8; 16]);

impl Guid {
    /// The all-zero GUID, which the format uses for "none".
    pub const ZERO: Self = Self([0; 16]);

    /// From the bytes as they stand in the file.
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// From the five text groups, written as one number: `0x2DC27766_F623_4200_9D64_115E9BFD4A08`.
    pub const fn from_u128(text: u128) -> Self {
        let b = text.to_be_bytes();
        Self([b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]])
    }

    /// The bytes as they stand in the file.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// A random (version 4) GUID from the operating system's generator.
    ///
    /// # Panics
    /// When the operating system has no random numbers to give: nothing can be signed with a made-up identity.
    pub fn random() -> Self {
        #[cfg(feature = "sim")]
        if let Some(bytes) = seeded::next() {
            return Self::version_four(bytes);
        }
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).expect("the operating system gives random bytes");
        Self::version_four(bytes)
    }

    fn version_four(mut bytes: [u8; 16]) -> Self {
        // Byte 7 holds the version in the little-endian third group, byte 8 the variant.
        bytes[7] = (bytes[7] & 0x0F) | 0x40;
        bytes[8] = (bytes[8] & 0x3F) | 0x80;
        Self(bytes)
    }

    /// Whether all bytes are zero.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

/// Random GUIDs of one thread from a seed: a crash that was found once must be found again. Only tests build this, through
/// `storage::sim::Fixed`.
#[cfg(feature = "sim")]
pub(crate) mod seeded {
    use std::cell::Cell;

    thread_local!(static SEED: Cell<Option<u64>> = const { Cell::new(None) });

    /// Draws from `seed` from here on, or from the operating system again. Returns what was in force.
    pub(crate) fn set(seed: Option<u64>) -> Option<u64> {
        SEED.replace(seed)
    }

    /// Two steps of splitmix64, if a seed is in force.
    pub(super) fn next() -> Option<[u8; 16]> {
        let mut state = SEED.get()?;
        let words = [(); 2].map(|()| {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            u128::from(z ^ (z >> 31))
        });
        SEED.set(Some(state));
        Some((words[0] << 64 | words[1]).to_le_bytes())
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = &self.0;
        write!(
            f,
            "{:02x}{:02x}{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}-{:02x}{:02x}{:02x}{:02x}{:02x}{:02x}",
            b[3], b[2], b[1], b[0], b[5], b[4], b[7], b[6], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]
        )
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text was not a GUID: 32 hexadecimal digits in groups of 8-4-4-4-12, with or without braces, in either case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID (expected 8-4-4-4-12 hexadecimal digits)")]
pub struct GuidParseError;

impl FromStr for Guid {
    type Err = GuidParseError;

    fn from_str(text: &str) -> Result<Self, GuidParseError> {
        let bare = match text.strip_prefix('{') {
            Some(rest) => rest.strip_suffix('}').ok_or(GuidParseError)?,
            None => text,
        };
        let bytes = bare.as_bytes();
        if bytes.len() != 36 {
            return Err(GuidParseError);
        }
        let mut value: u128 = 0;
        for (i, &c) in bytes.iter().enumerate() {
            if matches!(i, 8 | 13 | 18 | 23) {
                if c != b'-' {
                    return Err(GuidParseError);
                }
                continue;
            }
            let digit = char::from(c).to_digit(16).ok_or(GuidParseError)?;
            value = (value << 4) | u128::from(digit);
        }
        Ok(Self::from_u128(value))
    }
}

macro_rules! guid_role {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(Guid);

        impl $name {
            /// Gives a GUID this role.
            pub const fn new(guid: Guid) -> Self {
                Self(guid)
            }

            /// A fresh random identity.
            pub fn random() -> Self {
                Self(Guid::random())
            }

            /// The bare GUID.
            pub const fn get(self) -> Guid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
    };
}

guid_role! {
    /// Identifies the file as a whole; new in every session that changes any byte of it (MS-VHDX 2.2.2).
    FileWriteGuid
}
guid_role! {
    /// Identifies what a user of the disk can read; the value children link to (MS-VHDX 2.2.2, 2.6.2.6.3).
    DataWriteGuid
}
guid_role! {
    /// Names the log entries that count; zero means that the log is empty (MS-VHDX 2.2.2).
    LogGuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disk_order_swaps_the_first_three_groups_only() {
        let guid: Guid = "a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5".parse().unwrap();
        let hex = [0xa3, 0xa2, 0xa1, 0xa0, 0xb1, 0xb0, 0xc1, 0xc0, 0xd0, 0xd1, 0xe0, 0xe1, 0xe2, 0xe3, 0xe4, 0xe5];
        assert_eq!(guid.to_bytes(), hex);
        assert_eq!(guid.to_string(), "a0a1a2a3-b0b1-c0c1-d0d1-e0e1e2e3e4e5");
    }

    #[test]
    fn text_is_read_with_or_without_braces_in_either_case() {
        let plain: Guid = "2DC27766-F623-4200-9D64-115E9BFD4A08".parse().unwrap();
        assert_eq!("{2dc27766-f623-4200-9d64-115e9bfd4a08}".parse(), Ok(plain));
        for bad in
            ["", "{2dc27766-f623-4200-9d64-115e9bfd4a08", "2dc27766f623-4200-9d64-115e9bfd4a08-", "zdc27766-f623-4200-9d64-115e9bfd4a08"]
        {
            assert_eq!(bad.parse::<Guid>(), Err(GuidParseError), "{bad}");
        }
    }

    #[test]
    fn random_guids_are_version_four() {
        let text = Guid::random().to_string();
        assert_eq!(&text[14..15], "4");
        assert!(matches!(&text[19..20], "8" | "9" | "a" | "b"));
    }
}
