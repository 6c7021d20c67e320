//! A sequence of byte strings, each with its length in front (32 bit, little endian).

use thiserror::Error;

/// Builds a block.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty block.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends one field. Fields of 4 GiB and more cannot exist here: requests are capped far below.
    pub fn bytes(&mut self, field: &[u8]) -> &mut Self {
        let length = u32::try_from(field.len()).expect("a field comes from a request of at most 32 MiB");
        self.0.extend_from_slice(&length.to_le_bytes());
        self.0.extend_from_slice(field);
        self
    }

    /// Appends a number.
    pub fn number(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends how many fields follow, then the fields.
    pub fn list<T: AsRef<[u8]>>(&mut self, fields: &[T]) -> &mut Self {
        self.number(u32::try_from(fields.len()).expect("a list comes from a request of at most 32 MiB"));
        for field in fields {
            self.bytes(field.as_ref());
        }
        self
    }

    /// The finished block.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// What a block that cannot be read is.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BlockError {
    /// It ends inside a field.
    #[error("the block ends early")]
    Truncated,
    /// A field that should be a number, a choice or text is not.
    #[error("field {0} of the block is malformed")]
    Malformed(&'static str),
    /// Bytes remain behind the last field.
    #[error("the block has bytes behind its last field")]
    Trailing,
}

/// Reads a block field by field.
#[derive(Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Starts at the first field.
    pub fn new(block: &'a [u8]) -> Self {
        Self(block)
    }

    /// The next field.
    pub fn bytes(&mut self) -> Result<&'a [u8], BlockError> {
        let (length, rest) = self.0.split_first_chunk::<4>().ok_or(BlockError::Truncated)?;
        let length = usize::try_from(u32::from_le_bytes(*length)).map_err(|_| BlockError::Truncated)?;
        let (field, rest) = rest.split_at_checked(length).ok_or(BlockError::Truncated)?;
        self.0 = rest;
        Ok(field)
    }

    /// The next field as a number; `name` is for the error.
    pub fn number(&mut self, name: &'static str) -> Result<u32, BlockError> {
        Ok(u32::from_le_bytes(self.bytes()?.try_into().map_err(|_| BlockError::Malformed(name))?))
    }

    /// The next list of fields; `name` is for the error.
    pub fn list(&mut self, name: &'static str) -> Result<Vec<Vec<u8>>, BlockError> {
        let count = self.number(name)?;
        // Grown field by field: a made-up count must not reserve memory.
        let mut fields = Vec::new();
        for _ in 0..count {
            fields.push(self.bytes()?.to_vec());
        }
        Ok(fields)
    }

    /// Makes sure that nothing is left.
    pub fn end(self) -> Result<(), BlockError> {
        if self.0.is_empty() { Ok(()) } else { Err(BlockError::Trailing) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let mut writer = Writer::new();
        writer.bytes(b"").number(7).list(&[&b"a\0b"[..], b"\xff"]);
        let block = writer.finish();
        let mut reader = Reader::new(&block);
        assert_eq!(reader.bytes(), Ok(&b""[..]));
        assert_eq!(reader.number("n"), Ok(7));
        assert_eq!(reader.list("l"), Ok(vec![b"a\0b".to_vec(), b"\xff".to_vec()]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn every_cut_is_noticed() {
        let mut writer = Writer::new();
        writer.bytes(b"abc").list(&[b"d"]);
        let block = writer.finish();
        for cut in 0..block.len() {
            let mut reader = Reader::new(&block[..cut]);
            let outcome = reader.bytes().and_then(|_| reader.list("l").map(|_| ()));
            assert!(matches!(outcome, Err(BlockError::Truncated)), "cut at {cut}: {outcome:?}");
        }
    }

    #[test]
    fn a_made_up_count_reserves_nothing() {
        let mut writer = Writer::new();
        writer.number(u32::MAX);
        assert_eq!(Reader::new(&writer.finish()).list("l"), Err(BlockError::Truncated));
    }
}
