//! Decisions off the bytes of a fuzzer, and the same decisions put into bytes for a seed.
//!
//! A used-up input answers zero for ever, so every input means something and a shorter one means something simpler.

use super::forge::MIB;

/// Takes decisions off an input.
pub struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(input)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((&first, rest)) => {
                self.0 = rest;
                first
            }
            None => 0,
        }
    }

    /// One of `n`, at most 256.
    pub fn pick(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn raw(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |value, i| value | u64::from(self.byte()) << (8 * i))
    }

    /// A number that is likely to hurt: powers of two and their neighbours, whole sectors and MiB, the last ones, or any.
    pub fn number(&mut self) -> u64 {
        let how = u64::from(self.byte());
        match how {
            0..64 => how,
            64..128 => 1 << (how - 64),
            128..192 => (1 << (how - 128)) - 1,
            192..224 => (how - 192) * MIB,
            224..248 => (how - 224) * 4096,
            248 => u64::MAX,
            249 => u64::MAX - 4095,
            250 => u64::MAX - (MIB - 1),
            251 => self.raw(2),
            252 => self.raw(2) * 4096,
            253 => self.raw(4),
            254 => self.raw(3) * MIB,
            _ => self.raw(8),
        }
    }

    /// As many of the next bytes as a first one says, at most `most`.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let len = usize::from(self.byte()).min(most).min(self.0.len());
        let (some, rest) = self.0.split_at(len);
        self.0 = rest;
        some
    }
}

/// Writes down what a [`Source`] shall say.
#[derive(Clone, Debug, Default)]
pub struct Tape(pub Vec<u8>);

impl Tape {
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }

    pub fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub fn number(mut self, number: u64) -> Self {
        match number {
            0..64 => self.0.push(number as u8),
            u64::MAX => self.0.push(248),
            _ => {
                self.0.push(255);
                self.0.extend(number.to_le_bytes());
            }
        }
        self
    }

    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.push(u8::try_from(bytes.len()).expect("a seed is small"));
        self.0.extend_from_slice(bytes);
        self
    }
}
