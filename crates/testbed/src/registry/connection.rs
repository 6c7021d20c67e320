//! One connection: requests in turn, answers as the faults want them.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use super::fault::Fault;
use super::message::{Answer, NOT_HTTP, is_not_http, read_request};
use super::{Request, Shared, State, access};

/// How an answer's body leaves.
enum Manner {
    Whole,
    /// Without an announced length.
    Chunked,
    /// So many bytes, then nothing while the registry lives.
    HangAfter(usize),
    /// So many bytes, then the end.
    DropAfter(usize),
    Drip(usize, Duration),
    /// Not at all, and no head either.
    Never,
    Close,
}

/// Serves a connection until it ends.
pub(super) fn run(shared: &Shared, socket: TcpStream) {
    // A peer that went away is none of a registry's business.
    let _ = match &shared.identity {
        None => serve(shared, socket),
        Some(identity) => rustls::ServerConnection::new(Arc::clone(&identity.0))
            .map_err(io::Error::other)
            .and_then(|session| serve(shared, rustls::StreamOwned::new(session, socket))),
    };
}

fn serve(shared: &Shared, mut stream: impl Read + Write) -> io::Result<()> {
    let mut kept = Vec::new();
    while let Some(request) = read_request(&mut stream, &mut kept) {
        let head_only = request.method == "HEAD";
        let mut state = shared.lock();
        let (answer, manner) = decide(&mut state, &shared.url, request.clone());
        let status = if matches!(manner, Manner::Never | Manner::Close) { 0 } else { answer.status };
        state.requests.push(Request { status, ..request });
        drop(state);
        if !deliver(shared, &mut stream, answer, &manner, head_only)? {
            return Ok(());
        }
    }
    if is_not_http(&kept) {
        stream.write_all(NOT_HTTP)?;
    }
    Ok(())
}

fn decide(state: &mut State, url: &str, mut request: Request) -> (Answer, Manner) {
    let fault = state.faults.next(&request.method, &request.path);
    match fault {
        None => (answer(state, url, &request), Manner::Whole),
        Some(Fault::Status(status)) => (Answer::error(status, "FAULT", "a fault of the test"), Manner::Whole),
        Some(Fault::RetryAfter(status, value)) => {
            let answer = Answer::error(status, "FAULT", "a fault of the test");
            (answer.with("Retry-After", &value), Manner::Whole)
        }
        Some(Fault::Answer(status, body)) => (Answer::new(status, body), Manner::Whole),
        Some(Fault::Redirect(location)) => (Answer::new(307, Vec::new()).with("Location", &location), Manner::Whole),
        Some(Fault::IgnoreRange) => {
            request.headers.remove("range");
            (answer(state, url, &request), Manner::Whole)
        }
        Some(fault) => {
            let mut answer = answer(state, url, &request);
            let manner = match fault {
                Fault::Hang => Manner::Never,
                Fault::Close => Manner::Close,
                Fault::HangAfter(count) => Manner::HangAfter(count),
                Fault::DropAfter(count) => Manner::DropAfter(count),
                Fault::Drip(count, every) => Manner::Drip(count, every),
                Fault::WrongBytes => {
                    Arc::make_mut(&mut answer.body).iter_mut().for_each(|byte| *byte = !*byte);
                    Manner::Whole
                }
                Fault::Truncate(count) => {
                    Arc::make_mut(&mut answer.body).truncate(count);
                    Manner::Whole
                }
                Fault::Longer(more) => {
                    Arc::make_mut(&mut answer.body).extend(more);
                    Manner::Chunked
                }
                Fault::Header(name, None) => {
                    answer.remove(&name);
                    Manner::Whole
                }
                Fault::Header(name, Some(value)) => {
                    answer = answer.with(&name, &value);
                    Manner::Whole
                }
                Fault::Status(_)
                | Fault::RetryAfter(..)
                | Fault::Answer(..)
                | Fault::Redirect(_)
                | Fault::IgnoreRange => {
                    unreachable!("matched above")
                }
            };
            (answer, manner)
        }
    }
}

/// What a registry without faults says.
fn answer(state: &mut State, url: &str, request: &Request) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default();
    if path == "/token" {
        return access::token(state, request);
    }
    let mut parts = path.strip_prefix("/v2/").unwrap_or_default().rsplitn(3, '/');
    let (Some(name), Some(kind), Some(repository)) = (parts.next(), parts.next(), parts.next()) else {
        return Answer::error(404, "UNSUPPORTED", "no such path");
    };
    if let Some(refusal) = access::judge(state, request, repository, url) {
        return refusal;
    }
    state.content.answer(repository, kind, name, request)
}

/// Sends an answer; says whether the connection can go on.
fn deliver(
    shared: &Shared,
    stream: &mut (impl Read + Write),
    mut answer: Answer,
    manner: &Manner,
    head_only: bool,
) -> io::Result<bool> {
    match manner {
        Manner::Never => {
            shared.hold(Duration::MAX);
            return Ok(false);
        }
        Manner::Close => return Ok(false),
        Manner::Chunked => answer = answer.with("Transfer-Encoding", "chunked"),
        _ => {}
    }
    let length = answer.body.len();
    let declared = answer.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    let honest = declared.is_none_or(|(_, value)| *value == length.to_string());
    if declared.is_none() && !matches!(manner, Manner::Chunked) {
        answer = answer.with("Content-Length", &length.to_string());
    }
    answer.write_head(stream)?;
    if !head_only {
        let body = answer.body.as_slice();
        match *manner {
            Manner::HangAfter(count) | Manner::DropAfter(count) => {
                stream.write_all(&body[..count.min(length)])?;
                stream.flush()?;
                if matches!(manner, Manner::HangAfter(_)) {
                    shared.hold(Duration::MAX);
                }
                return Ok(false);
            }
            Manner::Drip(count, every) => {
                for piece in body.chunks(count.max(1)) {
                    stream.write_all(piece)?;
                    stream.flush()?;
                    shared.hold(every);
                }
            }
            Manner::Chunked => {
                write!(stream, "{length:x}\r\n")?;
                stream.write_all(body)?;
                stream.write_all(b"\r\n0\r\n\r\n")?;
            }
            _ => stream.write_all(body)?,
        }
    }
    stream.flush()?;
    Ok(honest)
}
