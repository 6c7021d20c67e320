//! Reading an answer's body without trusting that it ends, or that it comes.

use std::fmt;
use std::time::Duration;

use reqwest::Response;
use tokio::time::Instant;

use crate::retry::Patience;
use crate::text;

/// A body under way.
#[derive(Debug)]
pub(crate) struct Body {
    response: Response,
    /// Time spent waiting for bytes since the last look at the rate, and the bytes that came in it. Time that whoever
    /// takes the bytes needs is not the registry's fault and does not count.
    waited: Duration,
    bytes: u64,
}

/// Why a body ended before its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Broken {
    /// No byte for this long.
    Silent(Duration),
    /// Fewer bytes a second than this.
    Slow(u64),
    /// The connection broke; why.
    Lost(String),
    /// More bytes than were wanted.
    Long(usize),
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Silent(time) => write!(f, "no byte came for {time:?}"),
            Broken::Slow(rate) => write!(f, "fewer than {rate} bytes a second came"),
            Broken::Lost(cause) => write!(f, "the connection broke ({cause})"),
            Broken::Long(most) => write!(f, "more than {most} bytes came"),
        }
    }
}

impl Body {
    pub(crate) fn new(response: Response) -> Body {
        Body { response, waited: Duration::ZERO, bytes: 0 }
    }

    /// The next bytes, as many as have come; `None` at the end.
    pub(crate) async fn piece(&mut self, patience: &Patience) -> Result<Option<impl AsRef<[u8]> + use<>>, Broken> {
        let start = Instant::now();
        let piece = tokio::time::timeout(patience.silence, self.response.chunk()).await;
        let piece = piece.map_err(|_| Broken::Silent(patience.silence))?;
        let piece = piece.map_err(|error| Broken::Lost(text::cause(&error)))?;
        self.waited += start.elapsed();
        self.bytes += piece.as_ref().map_or(0, |piece| piece.len() as u64);
        if self.waited >= patience.window {
            let wanted = u128::from(patience.rate) * self.waited.as_millis() / 1000;
            if u128::from(self.bytes) < wanted && piece.is_some() {
                return Err(Broken::Slow(patience.rate));
            }
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
        Ok(piece)
    }

    /// All of it, if that is at most `most` bytes.
    pub(crate) async fn read(&mut self, most: usize, patience: &Patience) -> Result<Vec<u8>, Broken> {
        let mut bytes = Vec::new();
        while let Some(piece) = self.piece(patience).await? {
            let piece = piece.as_ref();
            if piece.len() > most - bytes.len() {
                return Err(Broken::Long(most));
            }
            bytes.extend_from_slice(piece);
        }
        Ok(bytes)
    }
}
