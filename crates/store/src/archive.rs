//! Random access to the files of a tar archive that holds an image.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};

use crate::compression::{Compression, Decoder};
use crate::digest::Metered;
use crate::entries::{Entries, Kind};
use crate::error::{StoreError, quoted};
use crate::limits::{Budget, too_many_bytes};
use crate::unpacker::Packed;

/// Files an image archive may hold: two for each layer and a few more.
const MOST_FILES: usize = 100_000;

/// Links followed from one name in the archive to another; older `docker save` links equal layers to each other.
const MOST_LINKS: usize = 8;

/// An archive with the place of every file in it.
pub(crate) struct ImageArchive {
    file: File,
    files: HashMap<Vec<u8>, Place>,
}

enum Place {
    Content { offset: u64, size: u64 },
    Link(Vec<u8>),
}

impl ImageArchive {
    /// Reads the names. A compressed archive is first unpacked into the file that `spool` makes, since its files are not
    /// in the order they are needed in.
    pub(crate) fn index(
        mut file: File,
        budget: &mut Budget,
        spool: impl FnOnce() -> Result<File, StoreError>,
    ) -> Result<ImageArchive, StoreError> {
        let failed = |error| StoreError::io("read the archive", error);
        let mut start = [0; 4];
        let n = file.read(&mut start).map_err(failed)?;
        file.rewind().map_err(failed)?;
        if Compression::detect(&start[..n]) != Compression::None {
            let limit = budget.bytes_left();
            let mut plain =
                Metered::new(Decoder::new(file)?, limit, too_many_bytes(budget.limits().decompressed_bytes));
            file = spool()?;
            let unpacked =
                io::copy(&mut plain, &mut file).map_err(|error| StoreError::io("decompress the archive", error))?;
            budget.spend_bytes(unpacked)?;
            file.rewind().map_err(failed)?;
        }
        let handle = file.try_clone().map_err(failed)?;
        let mut entries = Entries::seeking(file);
        let mut files = HashMap::new();
        while let Some(entry) = entries.next()? {
            let name = plain_name(&entry.path);
            let place = match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    Place::Content { offset: entries.position().map_err(failed)?, size: entry.size }
                }
                Kind::Symlink => Place::Link(beside(&name, &entry.link)),
                Kind::HardLink => Place::Link(plain_name(&entry.link)),
                _ => continue,
            };
            files.insert(name, place);
            if files.len() > MOST_FILES {
                return Err(StoreError::limit(format!("image archive of more than {MOST_FILES} files")));
            }
        }
        Ok(ImageArchive { file: handle, files })
    }

    /// A file's content and size; `None` when the archive has no such file.
    pub(crate) fn open(&self, name: &[u8]) -> Result<Option<(Packed, u64)>, StoreError> {
        let mut name = plain_name(name);
        for _ in 0..=MOST_LINKS {
            match self.files.get(&name) {
                None => return Ok(None),
                Some(Place::Link(target)) => name = target.clone(),
                Some(&Place::Content { offset, size }) => {
                    let file = self.file.try_clone().map_err(|error| StoreError::io("read the archive", error))?;
                    return Ok(Some((Packed::stretch(file, offset, size), size)));
                }
            }
        }
        Err(StoreError::bad(format!("{} is a chain of links without end", quoted(&name))))
    }
}

/// A name as a key: no `.` and no empty components. Only compared with other names, never opened.
pub(crate) fn plain_name(name: &[u8]) -> Vec<u8> {
    name.split(|&byte| byte == b'/').filter(|part| !matches!(*part, b"" | b".")).collect::<Vec<_>>().join(&b'/')
}

/// Target of a symbolic link as a name in the archive.
fn beside(link: &[u8], target: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = link.split(|&byte| byte == b'/').collect();
    parts.pop();
    for part in target.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_stay_names_in_the_archive() {
        assert_eq!(beside(b"a/layer.tar", b"../b/layer.tar"), b"b/layer.tar");
        assert_eq!(beside(b"a", b"../../../etc/passwd"), b"etc/passwd");
        assert_eq!(plain_name(b"./a//b/"), b"a/b");
    }
}
