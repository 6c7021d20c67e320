//! What `guest-enter` is told: the mounts that make up the container's root.

use crate::block::{BlockError, Reader, Writer};

/// Where the container's root is mounted in PID 1's tree. The generated root tree has the empty directory.
pub const CONTAINER_ROOT: &str = "/container";

/// The file descriptors a request may carry: one for the container's root and one for each mount. The kernel passes at
/// most 253 in one message (`SCM_MAX_FD`, unix(7)).
pub const MAX_MOUNTS: usize = 250;

/// The largest request, in bytes. Far above what [`MAX_MOUNTS`] paths need, and well below a socket's send buffer.
pub const MAX_REQUEST: usize = 64 * 1024;

/// One mount inside the container. Its source travels as a descriptor of a detached mount (open_tree(2)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Absolute path in the container. Missing parts are created; symbolic links are resolved inside the container.
    pub target: Vec<u8>,
    /// Whether the source is a directory; else the mount point is a file.
    pub directory: bool,
}

/// The request. With it travel the descriptors: a pidfd of the guest's PID 1, the detached root, then one per mount.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Whether to put a container's root together; if not, only the bus is connected.
    pub furnish: bool,
    /// Mounts in the order they are made: parents before children.
    pub mounts: Vec<Mount>,
    /// Directories to make where there are none.
    pub directories: Vec<Vec<u8>>,
    /// Small files to put into the container's root, in place of what the image has there: `/etc/hosts` and the like.
    /// Path and content.
    pub files: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Request {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.number(u32::from(self.furnish));
        writer.number(u32::try_from(self.mounts.len()).expect("at most MAX_MOUNTS"));
        for mount in &self.mounts {
            writer.bytes(&mount.target).number(u32::from(mount.directory));
        }
        writer.list(&self.directories);
        writer.number(u32::try_from(self.files.len()).expect("a handful"));
        for (path, content) in &self.files {
            writer.bytes(path).bytes(content);
        }
        writer.finish()
    }

    /// From bytes.
    pub fn decode(block: &[u8]) -> Result<Self, BlockError> {
        let mut reader = Reader::new(block);
        let furnish = reader.number("furnish")? != 0;
        let mut mounts = Vec::new();
        for _ in 0..reader.number("mounts")? {
            mounts.push(Mount { target: reader.bytes()?.to_vec(), directory: reader.number("directory")? != 0 });
        }
        let directories = reader.list("directories")?;
        let mut files = Vec::new();
        for _ in 0..reader.number("files")? {
            files.push((reader.bytes()?.to_vec(), reader.bytes()?.to_vec()));
        }
        reader.end()?;
        Ok(Self { furnish, mounts, directories, files })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_survives_the_journey() {
        let request = Request {
            furnish: true,
            mounts: vec![
                Mount { target: b"/__w".to_vec(), directory: true },
                Mount { target: b"/etc/resolv.conf".to_vec(), directory: false },
            ],
            directories: vec![b"/scratch".to_vec()],
            files: vec![(b"/etc/hosts".to_vec(), b"127.0.0.1 localhost\n".to_vec())],
        };
        assert_eq!(Request::decode(&request.encode()), Ok(request));
        assert_eq!(Request::decode(&Request::default().encode()), Ok(Request::default()));
    }
}
