//! A blob on its way to a file and a pipe, over as many connections as it takes.

use std::fs::File;
use std::io::{self, Write};

use reqwest::Method;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderMap, HeaderName, HeaderValue, RANGE};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;

use crate::endpoint::{Endpoint, blob_name};
use crate::failure::{Failure, Kind};
use crate::http::{Answer, Http};
use crate::retry::Tries;

/// Bytes that are written at once.
const PIECE: usize = 64 << 10;

/// A blob and how far it has come. Another server may go on where one failed.
#[derive(Debug)]
pub(crate) struct Transfer {
    digest: String,
    size: u64,
    /// Bytes from the beginning of the blob that need not be fetched any more.
    reached: u64,
    file: File,
    pipe: pipe::Sender,
}

impl Transfer {
    /// A transfer of the bytes from `offset` on. The pipe's description is made non-blocking, for all who share it.
    pub(crate) fn new(
        digest: &str,
        size: u64,
        offset: u64,
        file: File,
        pipe: std::os::fd::OwnedFd,
    ) -> io::Result<Transfer> {
        let pipe = pipe::Sender::from_owned_fd(pipe)?;
        Ok(Transfer { digest: digest.to_owned(), size, reached: offset, file, pipe })
    }

    /// Takes what comes next in the blob.
    async fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        for piece in bytes.chunks(PIECE) {
            // Into the page cache; a thread for it would cost more than it waits.
            self.file.write_all(piece).map_err(|error| {
                let full = matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
                let kind = if full { Kind::Full } else { Kind::Local };
                Failure::lasting(kind, format!("the {} cannot be stored: {error}", blob_name(&self.digest)))
            })?;
            self.reached += piece.len() as u64;
            self.pipe.write_all(piece).await.map_err(|error| {
                let text = format!("whoever reads the {} went away: {error}", blob_name(&self.digest));
                Failure::lasting(Kind::Local, text)
            })?;
        }
        Ok(())
    }
}

impl Endpoint {
    /// Fetches what is left of a blob.
    pub(crate) async fn blob(&self, http: &Http, transfer: &mut Transfer) -> Result<(), Failure> {
        let mut tries = Tries::new(&http.patience, self.last);
        while transfer.reached < transfer.size {
            let before = transfer.reached;
            match self.try_blob(http, transfer).await {
                Ok(()) => {}
                Err(End::Failed(failure)) => {
                    if transfer.reached > before {
                        tries.progressed();
                    }
                    tries.again(failure).await?;
                }
                // Going on in the same way for ever is no progress.
                Err(End::TooSlow(failure)) => tries.again(failure).await?,
            }
        }
        Ok(())
    }

    async fn try_blob(&self, http: &Http, transfer: &mut Transfer) -> Result<(), End> {
        let name = blob_name(&transfer.digest);
        let (reached, size) = (transfer.reached, transfer.size);
        let mut headers = HeaderMap::new();
        if reached > 0 {
            let range = HeaderValue::from_str(&format!("bytes={reached}-")).expect("digits and ASCII");
            headers.insert(RANGE, range);
        }
        let mut answer = self.ask(http, Method::GET, "blobs", &transfer.digest, headers).await?;
        let mut skip = match answer.status.as_u16() {
            // The whole blob, from a server that knows no ranges.
            200 => reached,
            206 if reached > 0 && range_fits(&answer, reached, size) => 0,
            206 => {
                let text = format!("{} sends another part of the {name} than it was asked for", answer.who);
                return Err(Failure::lasting(Kind::BadAnswer, text).into());
            }
            416 => return Err(wrong_size(&answer.who, &name, size).into()),
            _ => return Err(self.refusal(http, &mut answer, &name).await.into()),
        };
        let announced = number(&answer, CONTENT_LENGTH);
        if announced.is_some_and(|length| length != size - reached + skip) {
            return Err(wrong_size(&answer.who, &name, size).into());
        }
        loop {
            let piece = match answer.body.piece(&http.patience).await {
                Ok(Some(piece)) => piece,
                Ok(None) => break,
                // It may be that only the end of the message is missing.
                Err(_) if transfer.reached == size => break,
                Err(broken) => {
                    let text = format!(
                        "the {name} from {} is incomplete, {} of {size} bytes: {broken}",
                        answer.who, transfer.reached
                    );
                    let failure = Failure::passing(Kind::Unavailable, text);
                    return Err(if matches!(broken, crate::body::Broken::Slow(_)) {
                        End::TooSlow(failure)
                    } else {
                        failure.into()
                    });
                }
            };
            let mut bytes = piece.as_ref();
            let skipped = bytes.len().min(usize::try_from(skip).unwrap_or(usize::MAX));
            skip -= skipped as u64;
            bytes = &bytes[skipped..];
            if bytes.len() as u64 > size - transfer.reached {
                return Err(wrong_size(&answer.who, &name, size).into());
            }
            transfer.take(bytes).await?;
        }
        if transfer.reached < size {
            // Without an announced length, a broken connection looks like the end.
            let text =
                format!("the {name} from {} is incomplete: {} of {size} bytes came", answer.who, transfer.reached);
            return Err(Failure::passing(Kind::Unavailable, text).into());
        }
        Ok(())
    }
}

/// How a try ended without the whole blob.
enum End {
    Failed(Failure),
    TooSlow(Failure),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> End {
        End::Failed(failure)
    }
}

fn wrong_size(who: &str, name: &str, size: u64) -> Failure {
    Failure::lasting(Kind::BadAnswer, format!("the {name} at {who} does not have the {size} bytes it should have"))
}

fn number(answer: &Answer, name: HeaderName) -> Option<u64> {
    answer.headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

/// Whether the part that comes begins at `first` and is the rest of a blob of `size` bytes: `bytes FIRST-LAST/SIZE`, where the
/// size may be `*` (RFC 9110, 14.4).
fn range_fits(answer: &Answer, first: u64, size: u64) -> bool {
    let field = answer.headers.get(CONTENT_RANGE).and_then(|field| field.to_str().ok());
    let fits = |field: &str| {
        let (range, whole) = field.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (start, end) = range.split_once('-')?;
        let whole = whole.trim();
        let end: u64 = end.trim().parse().ok()?;
        Some(
            start.trim().parse() == Ok(first)
                && end.checked_add(1) == Some(size)
                && (whole == "*" || whole.parse() == Ok(size)),
        )
    };
    field.and_then(fits).unwrap_or(false)
}
