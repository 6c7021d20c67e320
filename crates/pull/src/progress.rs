//! Lines about a pull: one a second, and none while it is quick.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use runner_store::Progress;

/// Time between two lines, and before the first.
pub(crate) const INTERVAL: Duration = Duration::from_secs(1);

/// What is going on at the moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// What it is that takes time.
    pub state: State,
    /// Layers that are here.
    pub done: usize,
    /// Layers of the image; 0 as long as that is not known.
    pub total: usize,
}

/// What takes time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The registry has not said yet what the image consists of.
    Asking,
    /// Somebody else is making this layer, counted from 1.
    Waiting(usize),
    /// Bytes of a layer come.
    Coming {
        /// Position of the layer, from 1.
        layer: usize,
        /// Packed bytes so far.
        bytes: u64,
        /// Packed bytes there are, where that is known.
        size: Option<u64>,
        /// Bytes in a second, since the line about this layer before.
        rate: u64,
    },
    /// All layers are here, or the next ones are about to begin.
    Finishing,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Line { done, total, .. } = self;
        match self.state {
            State::Asking => return f.write_str("asking the registry"),
            State::Waiting(layer) => write!(f, "layer {layer}/{total}: somebody else is pulling it")?,
            State::Coming { layer, bytes, size: Some(size), rate } => {
                write!(f, "layer {layer}/{total}: {} of {}, {}/s", Size(bytes), Size(size), Size(rate))?;
            }
            State::Coming { layer, bytes, size: None, rate } => {
                write!(f, "layer {layer}/{total}: {}, {}/s", Size(bytes), Size(rate))?;
            }
            State::Finishing => f.write_str("writing to the disk")?,
        }
        write!(f, " ({done} of {total} layers done)")
    }
}

/// A number of bytes for people, in binary units.
#[derive(Debug, Clone, Copy)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mut value, mut rest) = (self.0, 0);
        for unit in ["B", "KiB", "MiB", "GiB"] {
            if value < 1024 {
                return match unit {
                    "B" => write!(f, "{value} B"),
                    _ => write!(f, "{value}.{} {unit}", rest * 10 / 1024),
                };
            }
            rest = value % 1024;
            value /= 1024;
        }
        write!(f, "{value}.{} TiB", rest * 10 / 1024)
    }
}

/// Where the store writes down how far it is, and lines are read off.
#[derive(Debug)]
pub struct Board {
    layers: Mutex<Layers>,
    last: Mutex<Instant>,
}

impl Default for Board {
    fn default() -> Self {
        Self { layers: Mutex::default(), last: Mutex::new(Instant::now()) }
    }
}

#[derive(Debug, Default)]
struct Layers {
    /// Those under way, by position from 0.
    under_way: BTreeMap<usize, Layer>,
    done: usize,
    total: usize,
}

#[derive(Debug)]
struct Layer {
    bytes: Option<u64>,
    size: Option<u64>,
    /// When a line was about it, and what that said; at first, when it began.
    shown: (Instant, u64),
}

impl Board {
    /// Writes down.
    pub fn note(&self, progress: &Progress) {
        self.note_at(progress, Instant::now());
    }

    fn note_at(&self, progress: &Progress, now: Instant) {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut set = |index, bytes, size| {
            let layer = layers.under_way.entry(index).or_insert(Layer { bytes, size, shown: (now, 0) });
            (layer.bytes, layer.size) = (bytes, size);
        };
        match *progress {
            Progress::Waiting { index, total, .. } => {
                set(index, None, None);
                layers.total = total;
            }
            Progress::Unpacking { index, total, done, size } => {
                set(index, Some(done), size);
                layers.total = total;
            }
            Progress::Layer { index, total, .. } => {
                layers.under_way.remove(&index);
                layers.done += 1;
                layers.total = total;
            }
            _ => {}
        }
    }

    /// A line, if there was none for a second. For whoever has no clock of its own.
    pub fn due_line(&self) -> Option<Line> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now.duration_since(*last) < INTERVAL {
            return None;
        }
        *last = now;
        Some(self.line_at(now))
    }

    /// A line about the layer that was longest without one.
    pub fn line(&self) -> Line {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Line {
        let mut layers = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        let Layers { done, total, .. } = *layers;
        let state = match layers.under_way.iter_mut().min_by_key(|(_, layer)| layer.shown.0) {
            None if total == 0 => State::Asking,
            None => State::Finishing,
            Some((index, layer)) => {
                let (then, before) = std::mem::replace(&mut layer.shown, (now, layer.bytes.unwrap_or(0)));
                let millis = u64::try_from(now.duration_since(then).as_millis()).unwrap_or(u64::MAX).max(1);
                match layer.bytes {
                    None => State::Waiting(index + 1),
                    Some(bytes) => {
                        let rate = bytes.saturating_sub(before).saturating_mul(1000) / millis;
                        State::Coming { layer: index + 1, bytes, size: layer.size, rate }
                    }
                }
            }
        };
        Line { state, done, total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_take_turns_and_rates_are_those_of_the_moment() {
        let board = Board::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let coming = |index, done, seconds| {
            board.note_at(&Progress::Unpacking { index, total: 3, done, size: Some(10 << 20) }, at(seconds));
        };
        let line = |seconds| board.line_at(at(seconds)).to_string();
        assert_eq!(line(1), "asking the registry");
        coming(0, 0, 1);
        coming(1, 0, 2);
        coming(0, 4 << 20, 3);
        assert_eq!(line(3), "layer 1/3: 4.0 MiB of 10.0 MiB, 2.0 MiB/s (0 of 3 layers done)");
        coming(1, 1 << 20, 4);
        assert_eq!(line(4), "layer 2/3: 1.0 MiB of 10.0 MiB, 512.0 KiB/s (0 of 3 layers done)");
        coming(0, 5 << 20, 5);
        assert_eq!(line(5), "layer 1/3: 5.0 MiB of 10.0 MiB, 512.0 KiB/s (0 of 3 layers done)");
        let layer = runner_store::Digest::of(b"layer");
        board.note_at(&Progress::Layer { index: 0, total: 3, layer, reused: false }, at(6));
        board.note_at(&Progress::Layer { index: 1, total: 3, layer, reused: true }, at(6));
        board.note_at(&Progress::Waiting { index: 2, total: 3, layer }, at(6));
        assert_eq!(line(7), "layer 3/3: somebody else is pulling it (2 of 3 layers done)");
        board.note_at(&Progress::Layer { index: 2, total: 3, layer, reused: true }, at(8));
        assert_eq!(line(9), "writing to the disk (3 of 3 layers done)");
    }

    #[test]
    fn sizes_read_well() {
        let shown = |bytes| Size(bytes).to_string();
        assert_eq!([shown(0), shown(1_023), shown(1_536), shown(5 << 30)], ["0 B", "1023 B", "1.5 KiB", "5.0 GiB"]);
    }
}
