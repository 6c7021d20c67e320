//! Moves a program's output from a pipe to a stream of ours: live, every byte, without looking at it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};

/// How much one call may move.
const CHUNK: usize = 1 << 20;

/// A stream on its way.
#[derive(Debug)]
pub struct Mover {
    stop: Arc<OwnedFd>,
    thread: JoinHandle<io::Result<u64>>,
}

impl Mover {
    /// Starts to move what comes out of `from` to `to`.
    pub fn start(from: OwnedFd, to: OwnedFd) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("output".into())
            .stack_size(128 * 1024)
            .spawn(move || run(from.as_fd(), to.as_fd(), stopped.as_fd()))?;
        Ok(Self { stop, thread })
    }

    /// The program has ended: moves what is in the pipe by now and returns how many bytes there were in all. Does not
    /// wait for the pipe's end, which a daemon that the program left behind may hold open for as long as it lives.
    pub fn drain(self) -> io::Result<u64> {
        rustix::io::write(&*self.stop, &1_u64.to_ne_bytes())?;
        self.thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that moves output panicked")))
    }
}

fn run(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stop: BorrowedFd<'_>) -> io::Result<u64> {
    let mut moved = 0;
    let mut way = Way::Splice;
    loop {
        let mut waited = [PollFd::new(&from, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
        match poll(&mut waited, None) {
            Err(Errno::INTR) => continue,
            outcome => outcome?,
        };
        let [readable, stopped] = waited.map(|descriptor| descriptor.revents());
        if readable.contains(PollFlags::IN) {
            moved += way.forward(from, to)?;
        } else if !readable.is_empty() || !stopped.is_empty() {
            // Its end, or the program's end with nothing left in the pipe.
            return Ok(moved);
        }
    }
}

/// How bytes get across.
enum Way {
    /// Within the kernel.
    Splice,
    /// Through this buffer: for a file opened for appending and other things that take no splice.
    Copy(Vec<u8>),
}

impl Way {
    /// Moves what is there. The pipe is known to be readable; the other side is waited for.
    fn forward(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<u64> {
        loop {
            let outcome = match self {
                Self::Splice => splice(from, None, to, None, CHUNK, SpliceFlags::MOVE),
                Self::Copy(buffer) => return copy(from, to, buffer),
            };
            match outcome {
                Ok(count) => return Ok(count as u64),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait_writable(to)?,
                Err(Errno::INVAL) => *self = Self::Copy(vec![0; 64 * 1024]),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<u64> {
    let count = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut *buffer))?;
    let mut rest = buffer.get(..count).unwrap_or_default();
    while !rest.is_empty() {
        match rustix::io::write(to, rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(to)?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(count as u64)
}

/// Somebody made the stream non-blocking; this waits as a blocking one would have.
fn wait_writable(to: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::new(&to, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::pipe;
    use std::fs::{File, OpenOptions};
    use std::io::{Read, Write};

    /// Bytes of every value, more than any pipe holds.
    fn payload() -> Vec<u8> {
        (0..3_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
    }

    #[test]
    fn every_byte_arrives_in_a_pipe_read_slowly() {
        let (from, program) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        let mover = Mover::start(from, to).unwrap();
        let sent = payload();
        let expected = sent.clone();
        let writer = std::thread::spawn(move || File::from(program).write_all(&sent).unwrap());
        let mut received = Vec::new();
        let mut reader = File::from(reader);
        let mut buffer = [0; 777];
        while received.len() < expected.len() {
            let count = reader.read(&mut buffer).unwrap();
            received.extend_from_slice(&buffer[..count]);
        }
        writer.join().unwrap();
        assert_eq!(mover.drain().unwrap(), expected.len() as u64);
        assert!(received == expected, "bytes differ");
    }

    #[test]
    fn a_daemon_that_holds_the_pipe_delays_nothing() {
        let (from, program) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        let mover = Mover::start(from, to).unwrap();
        let mut program = File::from(program);
        program.write_all(b"last words").unwrap();
        // `program` stays open beyond the end of drain().
        assert_eq!(mover.drain().unwrap(), 10);
        let mut received = [0; 10];
        File::from(reader).read_exact(&mut received).unwrap();
        assert_eq!(&received, b"last words");
        program.write_all(b"to nobody").unwrap_err();
    }

    #[test]
    fn an_appended_file_takes_every_byte_too() {
        let path = std::env::temp_dir().join(format!("output-test-{}", std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let (from, program) = pipe().unwrap();
        let mover = Mover::start(from, file.into()).unwrap();
        let sent = payload();
        let mut program = File::from(program);
        program.write_all(&sent).unwrap();
        drop(program);
        assert_eq!(mover.drain().unwrap(), sent.len() as u64);
        assert!(std::fs::read(&path).unwrap() == sent, "bytes differ");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_reader_that_went_away_is_an_error_and_no_hang() {
        let (from, program) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        drop(reader);
        let mover = Mover::start(from, to).unwrap();
        File::from(program).write_all(b"x").unwrap();
        assert_eq!(mover.drain().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
