//! How long to wait for a registry, and how often to try.

use std::hash::{BuildHasher, Hasher};
use std::time::{Duration, SystemTime};

use crate::failure::{Again, Failure};

/// Times and bounds. The default is what the program uses; tests use less.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// For a connection to be made, TLS included.
    pub connect: Duration,
    /// For the head of an answer, and for each further piece of its body.
    pub silence: Duration,
    /// Within this much waiting a body must bring at least [`Patience::rate`] bytes a second.
    pub window: Duration,
    /// Bytes a second below which a body counts as a failure.
    pub rate: u64,
    /// How often a request is sent, the first time included.
    pub tries: u32,
    /// The same for a server that is not the last one to be asked.
    pub tries_of_a_mirror: u32,
    /// How often a blob is asked for, however far each try gets.
    pub tries_of_a_blob: u32,
    /// Pause before the second try; doubled before each further one.
    pub pause: Duration,
    /// No pause is longer, unless the registry asks for it.
    pub longest_pause: Duration,
    /// A registry that asks for a longer pause (`Retry-After`) is not waited for; a mirror not beyond `longest_pause`.
    pub longest_wait: Duration,
}

impl Default for Patience {
    fn default() -> Patience {
        Patience {
            connect: Duration::from_secs(10),
            silence: Duration::from_secs(30),
            window: Duration::from_secs(60),
            rate: 1024,
            tries: 5,
            tries_of_a_mirror: 2,
            tries_of_a_blob: 100,
            pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(10),
            longest_wait: Duration::from_secs(60),
        }
    }
}

/// Counts the tries of one request.
#[derive(Debug)]
pub(crate) struct Tries<'a> {
    patience: &'a Patience,
    most: u32,
    /// A pause that is asked for may be so long.
    wait: Duration,
    failed: u32,
    failed_ever: u32,
}

impl<'a> Tries<'a> {
    pub(crate) fn new(patience: &'a Patience, last_server: bool) -> Tries<'a> {
        let (most, wait) = match last_server {
            true => (patience.tries, patience.longest_wait),
            // Another server may answer at once.
            false => (patience.tries_of_a_mirror, patience.longest_pause),
        };
        Tries { patience, most, wait, failed: 0, failed_ever: 0 }
    }

    /// The try that failed brought something; those before it do not count any more.
    pub(crate) fn progressed(&mut self) {
        self.failed = 0;
    }

    /// Waits until the next try, or gives the failure back if there is none.
    pub(crate) async fn again(&mut self, failure: Failure) -> Result<(), Failure> {
        self.failed += 1;
        self.failed_ever += 1;
        let exhausted = self.failed >= self.most || self.failed_ever >= self.patience.tries_of_a_blob;
        let pause = match failure.again {
            Again::Never => return Err(failure),
            _ if exhausted => return Err(failure),
            Again::Soon => jittered(pause(self.patience, self.failed)),
            Again::After(asked) if asked > self.wait => {
                let text = format!("{}; it asks to wait {} s", failure.text, asked.as_secs());
                return Err(Failure { text, ..failure });
            }
            // At least a little, should it ask for nothing.
            Again::After(asked) => asked.max(jittered(self.patience.pause)),
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// The pause after so many failures in a row.
fn pause(patience: &Patience, failed: u32) -> Duration {
    let doubled = 1u32.checked_shl(failed.saturating_sub(1)).unwrap_or(u32::MAX);
    patience.pause.saturating_mul(doubled).min(patience.longest_pause)
}

/// Between half of `pause` and all of it, so that those who failed together do not come back together.
fn jittered(pause: Duration) -> Duration {
    // The standard library's hasher has a random key; better numbers are not needed here.
    let random = std::hash::RandomState::new().build_hasher().finish();
    let share = u32::try_from(random % 1000).expect("below 1000");
    pause / 2 + pause / 2 * share / 1000
}

/// `Retry-After` as a time from `now` on: seconds or an HTTP date (RFC 9110, 10.2.3). `None` if it is neither.
pub(crate) fn retry_after(field: &str, now: SystemTime) -> Option<Duration> {
    let field = field.trim();
    if let Ok(seconds) = field.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(field).ok()?;
    Some(date.duration_since(now).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let patience = Patience::default();
        let pauses: Vec<u128> = [1, 2, 3, 5, 6, 40].map(|failed| pause(&patience, failed).as_millis()).to_vec();
        assert_eq!(pauses, [500, 1000, 2000, 8000, 10_000, 10_000]);
        for _ in 0..100 {
            let pause = jittered(Duration::from_secs(1));
            assert!((500..=1000).contains(&pause.as_millis()), "{pause:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        for (field, seconds) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:49:00 GMT", Some(0)),
            ("-1", None),
            ("soon", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(retry_after(field, now).map(|wait| wait.as_secs()), seconds, "{field}");
        }
    }
}
