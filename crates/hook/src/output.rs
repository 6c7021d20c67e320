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
        if !stopped.is_empty() {
            // What the program wrote is in the pipe by now. What comes later is somebody else's, and may never end.
            let mut left = rustix::io::ioctl_fionread(from)?;
            while left > 0 {
                let count = way.forward(from, to, usize::try_from(left).unwrap_or(CHUNK).min(CHUNK))?;
                if count == 0 {
                    break;
                }
                left = left.saturating_sub(count);
                moved += count;
            }
            return Ok(moved);
        }
        if readable.contains(PollFlags::IN) {
            match way.forward(from, to, CHUNK)? {
                // A file or a device that is read is always readable, also at its end.
                0 => return Ok(moved),
                count => moved += count,
            }
        } else if !readable.is_empty() {
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
    fn forward(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, most: usize) -> io::Result<u64> {
        loop {
            let outcome = match self {
                Self::Splice => splice(from, None, to, None, most, SpliceFlags::MOVE),
                Self::Copy(buffer) => {
                    let most = most.min(buffer.len());
                    return copy(from, to, buffer.get_mut(..most).unwrap_or_default());
                }
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
    fn a_daemon_that_never_stops_writing_delays_nothing() {
        let (from, program) = pipe().unwrap();
        let (reader, to) = pipe().unwrap();
        let mover = Mover::start(from, to).unwrap();
        let daemon = std::thread::spawn(move || {
            let mut program = File::from(program);
            // Ends when nobody reads any more.
            while program.write_all(&[b'x'; 4096]).is_ok() {}
        });
        let swallow = std::thread::spawn(move || io::copy(&mut File::from(reader), &mut io::sink()).unwrap());
        let moved = mover.drain().unwrap();
        assert_eq!(swallow.join().unwrap(), moved);
        daemon.join().unwrap();
    }

    #[test]
    fn files_and_devices_end_where_they_end() {
        let path = std::env::temp_dir().join(format!("output-test-input-{}", std::process::id()));
        std::fs::write(&path, "content").unwrap();
        for (source, expected) in [(path.to_str().unwrap(), "content"), ("/dev/null", "")] {
            let (reader, to) = pipe().unwrap();
            let _mover = Mover::start(File::open(source).unwrap().into(), to).unwrap();
            let mut received = String::new();
            // Ends because the mover closed its side.
            File::from(reader).read_to_string(&mut received).unwrap();
            assert_eq!(received, expected, "{source}");
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn an_appended_file_takes_every_byte_too() {
        let path = std::env::temp_dir().join(format!("output-test-{}", std::process::id()));
        let file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let (from, program) = pipe().unwrap();
        let mover = Mover::start(from, file.into()).unwrap();
        let sent = payload();
        let expected = sent.len() as u64;
        let bytes = sent.clone();
        // Ended before drain(), as a program is.
        File::from(program).write_all(&bytes).unwrap();
        assert_eq!(mover.drain().unwrap(), expected);
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
