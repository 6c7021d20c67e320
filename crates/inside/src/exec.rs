//! What `guest-exec` is told: one program to run in the container.

use crate::block::{BlockError, Reader, Writer};

/// The exit status of `guest-exec` when it could not start the program. With it comes a status text that starts with
/// [`STATUS_PREFIX`]; a program that happens to exit with the same number has no such text.
pub const NOT_STARTED: u8 = 125;

/// Starts the status text (`STATUS=` of sd_notify(3)) of a failed start: the field at fault, a colon, the reason.
pub const STATUS_PREFIX: &str = "runner-guest-exec: ";

/// Where the program's standard input comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stdin {
    /// `/dev/null`. The descriptor the block came from is closed.
    Null,
    /// What follows the block on the same descriptor, a pipe.
    Rest,
    /// A terminal of the guest, by path; it becomes the controlling terminal and all three standard streams.
    Terminal(Vec<u8>),
}

/// One program to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// The container's root, as a path in PID 1's tree.
    pub root: Vec<u8>,
    /// Working directory, inside the root. It must exist.
    pub directory: Vec<u8>,
    /// User id, in the guest.
    pub uid: u32,
    /// Group id, in the guest.
    pub gid: u32,
    /// Supplementary group ids, in the guest.
    pub groups: Vec<u32>,
    /// Standard input.
    pub stdin: Stdin,
    /// Program and arguments. A program without a slash is looked up on the `PATH` of `environment`.
    pub arguments: Vec<Vec<u8>>,
    /// The whole environment, as `NAME=value`.
    pub environment: Vec<Vec<u8>>,
}

impl Program {
    /// The block, with its own length (64 bit, little endian) in front: what follows on a pipe is the program's input.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.bytes(&self.root).bytes(&self.directory).number(self.uid).number(self.gid);
        writer.list(&self.groups.iter().map(|group| group.to_le_bytes()).collect::<Vec<_>>());
        match &self.stdin {
            Stdin::Null => writer.bytes(b"null").bytes(b""),
            Stdin::Rest => writer.bytes(b"rest").bytes(b""),
            Stdin::Terminal(path) => writer.bytes(b"terminal").bytes(path),
        };
        writer.list(&self.arguments).list(&self.environment);
        let block = writer.finish();
        let mut framed = (block.len() as u64).to_le_bytes().to_vec();
        framed.extend_from_slice(&block);
        framed
    }

    /// Reads a block without its length.
    pub fn decode(block: &[u8]) -> Result<Self, BlockError> {
        let mut reader = Reader::new(block);
        let program = Self {
            root: reader.bytes()?.to_vec(),
            directory: reader.bytes()?.to_vec(),
            uid: reader.number("uid")?,
            gid: reader.number("gid")?,
            groups: reader
                .list("groups")?
                .iter()
                .map(|group| {
                    Ok(u32::from_le_bytes(group.as_slice().try_into().map_err(|_| BlockError::Malformed("groups"))?))
                })
                .collect::<Result<_, _>>()?,
            stdin: match (reader.bytes()?, reader.bytes()?) {
                (b"null", _) => Stdin::Null,
                (b"rest", _) => Stdin::Rest,
                (b"terminal", path) => Stdin::Terminal(path.to_vec()),
                _ => return Err(BlockError::Malformed("stdin")),
            },
            arguments: reader.list("arguments")?,
            environment: reader.list("environment")?,
        };
        reader.end()?;
        Ok(program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_survives_the_journey() {
        for stdin in [Stdin::Null, Stdin::Rest, Stdin::Terminal(b"/dev/pts/3".to_vec())] {
            let program = Program {
                root: b"/container".to_vec(),
                directory: b"/with space/\xff".to_vec(),
                uid: 1000,
                gid: 7,
                groups: vec![7, 27],
                stdin,
                arguments: vec![b"sh".to_vec(), b"".to_vec(), b"$HOME\n".to_vec()],
                environment: vec![b"INPUT_FETCH-DEPTH=1".to_vec(), b"EMPTY=".to_vec()],
            };
            let framed = program.encode();
            let (length, block) = framed.split_first_chunk::<8>().expect("eight bytes of length");
            assert_eq!(u64::from_le_bytes(*length), block.len() as u64);
            assert_eq!(Program::decode(block), Ok(program));
        }
    }
}
