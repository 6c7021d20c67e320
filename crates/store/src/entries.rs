//! Reading a tar stream: ustar, GNU and PAX, with every length bounded before memory is spent on it.
//!
//! The `tar` crate's header type does the field layout. Its own entry iterator is not used: it reads long names and PAX
//! records of any size into memory and does not know the PAX form of sparse files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use tar::Header;

use crate::error::{StoreError, quoted};
use crate::tree::Xattrs;

const BLOCK: usize = 512;

/// Longest GNU long name or PAX record block; Go's reader has the same bound.
const EXTENSION_BYTES: u64 = 1 << 20;

/// Most pieces of one sparse file.
const SPARSE_PIECES: usize = 1 << 18;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Device,
    Fifo,
}

/// One entry, its extensions already merged. Paths are as written, not yet checked.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    /// Target of a symbolic or hard link, else empty.
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of content in the stream.
    pub(crate) stored: u64,
    /// Size of the file, holes included.
    pub(crate) size: u64,
    /// Pieces of a sparse file as `(offset, length)`; the stream holds them one after the other.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
    pub(crate) xattrs: Xattrs,
}

/// Values a PAX record or a GNU extension gave for the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Xattrs,
    sparse: PaxSparse,
}

/// GNU's three ways to say in PAX that a file is sparse.
#[derive(Default)]
struct PaxSparse {
    major: Option<u64>,
    minor: Option<u64>,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    /// Offsets and lengths in turn (forms 0.0 and 0.1).
    map: Vec<u64>,
}

/// Entries of a tar stream, one at a time; the content of an entry is read from `self` before the next one.
pub(crate) struct Entries<R> {
    reader: R,
    /// Unread content of the entry at hand.
    left: u64,
    /// Bytes between the content and the next header.
    padding: u64,
    finished: bool,
    /// Whether the end mark (a block of zeros) was there.
    marked_end: bool,
    /// Passes over bytes; gives how many there were.
    skip: fn(&mut R, u64) -> io::Result<u64>,
}

impl Entries<File> {
    /// Entries of a file, passing over contents without reading them.
    pub(crate) fn seeking(file: File) -> Entries<File> {
        let mut entries = Entries::new(file);
        entries.skip = |file, count| {
            let position = file.stream_position()?;
            let left = file.metadata()?.len().saturating_sub(position);
            let skipped = count.min(left);
            file.seek(SeekFrom::Start(position + skipped))?;
            Ok(skipped)
        };
        entries
    }

    /// Where in the file the content of the current entry starts, before any of it was read.
    pub(crate) fn position(&mut self) -> io::Result<u64> {
        self.reader.stream_position()
    }
}

impl<R: Read> Entries<R> {
    pub(crate) fn new(reader: R) -> Entries<R> {
        let skip = |reader: &mut R, count| io::copy(&mut reader.take(count), &mut io::sink());
        Entries { reader, left: 0, padding: 0, finished: false, marked_end: false, skip }
    }

    /// Whether the archive ended with its end mark instead of just stopping.
    pub(crate) fn marked_end(&self) -> bool {
        self.marked_end
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, StoreError> {
        let mut extensions = Extensions::default();
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                if extended {
                    return Err(StoreError::bad("archive ends after an extension header"));
                }
                return Ok(None);
            };
            let size = number(&header.as_old().size, "size")?;
            self.start_content(size)?;
            let flag = header.as_old().linkflag[0];
            match flag {
                b'L' => extensions.path = Some(self.long_name()?),
                b'K' => extensions.link = Some(self.long_name()?),
                b'x' | b'X' => extensions.read(&self.extension()?)?,
                // Global records hold a comment in practice; nothing in them may change what an entry is.
                b'g' => self.skip_content()?,
                _ => return self.entry(&header, extensions, size).map(Some),
            }
            extended |= flag != b'g';
        }
    }

    fn entry(&mut self, header: &Header, extensions: Extensions, size: u64) -> Result<Entry, StoreError> {
        let old = header.as_old();
        let Extensions { path, link, size: pax_size, uid, gid, mtime, xattrs, sparse } = extensions;
        // Links, devices, directories and FIFOs have no content, whatever their size says.
        let stored = if matches!(old.linkflag[0], b'1'..=b'6') { 0 } else { pax_size.unwrap_or(size) };
        self.start_content(stored)?;
        let path = path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link = link.unwrap_or_else(|| header.link_name_bytes().map(Vec::from).unwrap_or_default());
        let kind = match old.linkflag[0] {
            // Before ustar a directory was a file whose name ends in a slash.
            0 | b'0' | b'7' | b'S' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let (path, flag) = (quoted(&path), quoted(&[other]));
                return Err(StoreError::bad(format!("entry {path}: unknown entry type '{flag}'")));
            }
        };
        let field = |error: StoreError| error.in_entry(&path);
        let mut entry = Entry {
            link,
            kind,
            mode: u32::try_from(number(&old.mode, "mode").map_err(field)? & 0o7777).expect("masked to 12 bits"),
            uid: uid.map_or_else(|| number(&old.uid, "uid"), Ok).map_err(field)?,
            gid: gid.map_or_else(|| number(&old.gid, "gid"), Ok).map_err(field)?,
            mtime: mtime.map_or_else(|| signed(&old.mtime, "mtime").map(|s| (s, 0)), Ok).map_err(field)?,
            stored,
            size: stored,
            sparse: None,
            xattrs,
            path: Vec::new(),
        };
        if old.linkflag[0] == b'S' {
            self.gnu_sparse(header, &mut entry).map_err(field)?;
        } else if kind == Kind::File {
            self.pax_sparse(&sparse, &mut entry).map_err(field)?;
        }
        entry.path = sparse.name.unwrap_or(path);
        Ok(entry)
    }

    /// Reads the next header, past the rest of the entry before. `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, StoreError> {
        self.skip_content()?;
        if self.finished {
            return Ok(None);
        }
        let mut header = Header::new_old();
        let block = header.as_mut_bytes();
        if !read_block(&mut self.reader, block)? {
            self.finished = true;
            return Ok(None);
        }
        if *block == [0; BLOCK] {
            self.finished = true;
            self.marked_end = true;
            return Ok(None);
        }
        check_sum(&header)?;
        Ok(Some(header))
    }

    fn start_content(&mut self, size: u64) -> Result<(), StoreError> {
        // A size near 2^64 would wrap when padded to blocks.
        if size > i64::MAX as u64 {
            return Err(StoreError::bad(format!("entry size {size} is impossible")));
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip_content(&mut self) -> Result<(), StoreError> {
        let all = self.left + self.padding;
        let skipped = (self.skip)(&mut self.reader, all).map_err(|error| StoreError::io("read the archive", error))?;
        (self.left, self.padding) = (0, 0);
        if skipped < all { Err(truncated()) } else { Ok(()) }
    }

    fn extension(&mut self) -> Result<Vec<u8>, StoreError> {
        if self.left > EXTENSION_BYTES {
            return Err(StoreError::limit(format!("extension header of {} bytes", self.left)));
        }
        let mut content = vec![0; usize::try_from(self.left).expect("bounded just above")];
        self.read_exact(&mut content).map_err(read_failed)?;
        Ok(content)
    }

    fn long_name(&mut self) -> Result<Vec<u8>, StoreError> {
        let mut name = self.extension()?;
        // GNU tar ends the name with a NUL and counts it; one inside is refused with the path.
        while name.last() == Some(&0) {
            name.pop();
        }
        Ok(name)
    }

    /// Old GNU form: pieces in the header and in blocks between it and the content.
    fn gnu_sparse(&mut self, header: &Header, entry: &mut Entry) -> Result<(), StoreError> {
        let gnu = header.as_gnu().ok_or_else(|| StoreError::bad("sparse entry without a GNU header"))?;
        entry.size = number(&gnu.realsize, "real size")?;
        let mut pieces = Vec::new();
        let push = |pieces: &mut Vec<u64>, offset: &[u8], length: &[u8]| -> Result<(), StoreError> {
            // An unused slot has no length.
            if length[0] != 0 {
                pieces.push(number(offset, "sparse offset")?);
                pieces.push(number(length, "sparse length")?);
            }
            Ok(())
        };
        for slot in &gnu.sparse {
            push(&mut pieces, &slot.offset, &slot.numbytes)?;
        }
        let mut more = gnu.isextended[0] == 1;
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            if !read_block(&mut self.reader, block.as_mut_bytes())? {
                return Err(truncated());
            }
            for slot in &block.sparse {
                push(&mut pieces, &slot.offset, &slot.numbytes)?;
            }
            if pieces.len() > 2 * SPARSE_PIECES {
                return Err(too_many_pieces());
            }
            more = block.isextended[0] == 1;
        }
        entry.sparse = Some(check_pieces(&pieces, entry.stored, entry.size)?);
        Ok(())
    }

    /// PAX forms 0.0 and 0.1 carry the map in records, 1.0 in decimal lines in front of the content.
    fn pax_sparse(&mut self, sparse: &PaxSparse, entry: &mut Entry) -> Result<(), StoreError> {
        let form = (sparse.major, sparse.minor);
        let inline = match form {
            (Some(1), Some(0)) => true,
            (None, None) | (Some(0), _) if sparse.map.is_empty() && sparse.real_size.is_none() => return Ok(()),
            (None, None) | (Some(0), _) => false,
            _ => return Err(StoreError::bad("unknown form of sparse file")),
        };
        entry.size = sparse.real_size.ok_or_else(|| StoreError::bad("sparse file without its size"))?;
        let read;
        let map = if inline {
            let before = self.left;
            read = self.inline_map()?;
            entry.stored -= before - self.left;
            &read
        } else {
            &sparse.map
        };
        entry.sparse = Some(check_pieces(map, entry.stored, entry.size)?);
        Ok(())
    }

    fn inline_map(&mut self) -> Result<Vec<u64>, StoreError> {
        let bad = || StoreError::bad("damaged map of a sparse file");
        let mut numbers: Vec<u64> = Vec::new();
        let mut wanted = 1;
        let mut current: Option<u64> = None;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            self.read_exact(&mut block).map_err(read_failed)?;
            for byte in block {
                match byte {
                    b'0'..=b'9' => {
                        let digit = u64::from(byte - b'0');
                        let value = current.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                        current = Some(value.ok_or_else(bad)?);
                    }
                    b'\n' => {
                        numbers.push(current.take().ok_or_else(bad)?);
                        if numbers.len() == 1 {
                            let pieces = usize::try_from(numbers[0]).map_err(|_| too_many_pieces())?;
                            if pieces > SPARSE_PIECES {
                                return Err(too_many_pieces());
                            }
                            wanted = 1 + 2 * pieces;
                        }
                        if numbers.len() == wanted {
                            // The rest of this block is padding.
                            break;
                        }
                    }
                    _ => return Err(bad()),
                }
            }
        }
        numbers.remove(0);
        Ok(numbers)
    }
}

/// Reads the content of the current entry.
impl<R: Read> Read for Entries<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.reader.read(&mut buffer[..want])?;
        if n == 0 {
            return Err(truncated().into_io());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

impl Extensions {
    /// Reads `LENGTH KEY=VALUE\n` records; a later one wins.
    fn read(&mut self, mut records: &[u8]) -> Result<(), StoreError> {
        let bad = || StoreError::bad("damaged PAX record");
        while !records.is_empty() {
            let space = records.iter().take(20).position(|&byte| byte == b' ').ok_or_else(bad)?;
            let length = usize::try_from(decimal(&records[..space]).ok_or_else(bad)?).map_err(|_| bad())?;
            if length <= space + 1 || length > records.len() || records[length - 1] != b'\n' {
                return Err(bad());
            }
            let record = &records[space + 1..length - 1];
            records = &records[length..];
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(bad)?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let bad = || StoreError::bad(format!("PAX record {}={} is not valid", quoted(key), quoted(value)));
        let count = || decimal(value).ok_or_else(bad);
        // An empty value takes an earlier record back.
        let text = (!value.is_empty()).then(|| value.to_vec());
        match key {
            b"path" => self.path = text,
            b"linkpath" => self.link = text,
            b"size" => self.size = Some(count()?),
            b"uid" => self.uid = Some(count()?),
            b"gid" => self.gid = Some(count()?),
            b"mtime" => self.mtime = Some(pax_time(value).ok_or_else(bad)?),
            b"GNU.sparse.major" => self.sparse.major = Some(count()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(count()?),
            b"GNU.sparse.name" => self.sparse.name = text,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => self.sparse.real_size = Some(count()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(count()?),
            b"GNU.sparse.map" => {
                let numbers = value.split(|&byte| byte == b',').filter(|number| !number.is_empty());
                self.sparse.map = numbers.map(|number| decimal(number).ok_or_else(bad)).collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(other, _)| other != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

/// `-12.345` as seconds and nanoseconds, rounded down.
fn pax_time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0;
    if let Some(fraction) = parts.next() {
        for position in 0..9 {
            let digit = fraction.get(position).copied().unwrap_or(b'0');
            nanos = nanos * 10 + char::from(digit).to_digit(10)?;
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// A numeric field that cannot be negative.
fn number(field: &[u8], name: &str) -> Result<u64, StoreError> {
    u64::try_from(signed(field, name)?).map_err(|_| StoreError::bad(format!("negative {name}")))
}

/// A numeric field: octal digits, or a big-endian two's complement number when the top bit is set. Blank is zero.
fn signed(field: &[u8], name: &str) -> Result<i64, StoreError> {
    let bad = || StoreError::bad(format!("field {name} is not a number"));
    if field[0] & 0x80 != 0 {
        // The top bit is the mark; the one below it is the sign.
        let mut value: i64 = if field[0] & 0x40 != 0 { -1 } else { 0 };
        for (index, &byte) in field.iter().enumerate() {
            let byte = if index == 0 { byte & 0x7f | (byte & 0x40) << 1 } else { byte };
            if !(i64::MIN >> 8..=i64::MAX >> 8).contains(&value) {
                return Err(StoreError::bad(format!("field {name} is too large")));
            }
            value = value << 8 | i64::from(byte);
        }
        return Ok(value);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(start) = field.iter().position(|byte| !blank(byte)) else { return Ok(0) };
    let digits = &field[start..];
    let digits = &digits[..digits.iter().position(blank).unwrap_or(digits.len())];
    let mut value: i64 = 0;
    for byte in digits {
        let digit = char::from(*byte).to_digit(8).ok_or_else(bad)?;
        value = value << 3 | i64::from(digit);
    }
    Ok(value)
}

/// The sum may be over unsigned or, by a mistake of old programs, signed bytes.
fn check_sum(header: &Header) -> Result<(), StoreError> {
    let bytes = header.as_bytes();
    let outside = |index: usize| !(148..156).contains(&index);
    let (mut plain, mut with_sign) = (8 * 32, 8 * 32);
    for (index, &byte) in bytes.iter().enumerate() {
        if outside(index) {
            plain += i64::from(byte);
            with_sign += i64::from(byte.cast_signed());
        }
    }
    match signed(&header.as_old().cksum, "checksum") {
        Ok(stated) if stated == plain || stated == with_sign => Ok(()),
        _ => Err(StoreError::bad("not a tar archive, or a damaged one: wrong header checksum")),
    }
}

/// Fills one block. `false` when the stream ended before its first byte.
fn read_block(reader: &mut impl Read, block: &mut [u8; BLOCK]) -> Result<bool, StoreError> {
    let mut filled = 0;
    while filled < BLOCK {
        match reader.read(&mut block[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(truncated()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read the archive", error)),
        }
    }
    Ok(true)
}

/// Pieces in order, apart, inside the file, and together exactly what the stream holds.
fn check_pieces(map: &[u64], stored: u64, size: u64) -> Result<Vec<(u64, u64)>, StoreError> {
    let bad = || StoreError::bad("map of a sparse file does not fit its content");
    let pairs = map.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(bad());
    }
    let (mut end, mut sum) = (0u64, 0u64);
    let mut pieces = Vec::with_capacity(pairs.len());
    for pair in pairs {
        let (offset, length) = (pair[0], pair[1]);
        if offset < end {
            return Err(bad());
        }
        end = offset.checked_add(length).ok_or_else(bad)?;
        sum = sum.checked_add(length).ok_or_else(bad)?;
        pieces.push((offset, length));
    }
    if end > size || sum != stored {
        return Err(bad());
    }
    Ok(pieces)
}

fn too_many_pieces() -> StoreError {
    StoreError::limit(format!("sparse file of more than {SPARSE_PIECES} pieces"))
}

fn truncated() -> StoreError {
    StoreError::bad("archive is truncated")
}

fn read_failed(error: io::Error) -> StoreError {
    if error.kind() == io::ErrorKind::UnexpectedEof { truncated() } else { StoreError::io("read the archive", error) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numeric_fields_are_read_in_all_their_forms() {
        let cases: [(&[u8], Option<i64>); 12] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000648\0", None),
            (b"-0000001", None),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 12], Some(-1)),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Some(i64::MAX)),
            (&[0x80, 0, 0, 0, 0x80, 0, 0, 0, 0, 0, 0, 0], None),
        ];
        for (field, expected) in cases {
            assert_eq!(signed(field, "f").ok(), expected, "{}", field.escape_ascii());
        }
    }

    #[test]
    fn pax_times_round_down() {
        let cases: [(&str, Option<(i64, u32)>); 8] = [
            ("12", Some((12, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.0000000019", Some((12, 1))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(pax_time(text.as_bytes()), expected, "{text}");
        }
    }

    /// Reads every entry and its content, as unpacking would.
    fn read_all(bytes: &[u8]) -> Result<usize, StoreError> {
        let mut entries = Entries::new(bytes);
        let mut count = 0;
        while let Some(entry) = entries.next()? {
            count += 1;
            let mut content = Vec::new();
            entries.read_to_end(&mut content).map_err(|error| StoreError::io("read", error))?;
            assert_eq!(content.len() as u64, entry.stored);
        }
        Ok(count)
    }

    #[test]
    fn what_the_crate_writes_is_read() {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, data) in [("a", &b"first"[..]), (&"n/".repeat(120), b"long"), ("empty", b"")] {
            let mut header = Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, path.trim_end_matches('/'), data).unwrap();
        }
        assert_eq!(read_all(&builder.into_inner().unwrap()).unwrap(), 3);
    }

    /// An entry of some type and size with some bytes of its header overwritten, its checksum right.
    fn damaged_entry() -> impl Strategy<Value = Vec<u8>> {
        let hits = proptest::collection::vec((0..BLOCK, any::<u8>()), 0..6);
        (0..8usize, 0..1500u16, hits).prop_map(|(flag, size, hits)| {
            let mut header = Header::new_gnu();
            header.as_old_mut().linkflag = [b"0SxLKg15"[flag]];
            header.set_size(size.into());
            for (at, byte) in hits {
                header.as_mut_bytes()[at] = byte;
            }
            header.set_cksum();
            let mut bytes = header.as_bytes().to_vec();
            bytes.resize(BLOCK + usize::from(size).next_multiple_of(BLOCK), b'1');
            bytes
        })
    }

    proptest! {
        /// Damage gives entries or an error, never a panic or an endless loop.
        #[test]
        fn damaged_archives_end(entries in proptest::collection::vec(damaged_entry(), 1..8)) {
            if let Err(error) = read_all(&entries.concat()) {
                prop_assert!(!error.to_string().contains(|c: char| c.is_control()), "{error}");
            }
        }
    }
}
