//! Who makes a layer: whoever comes first, unless he does not get on.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use crate::digest::Digest;
use crate::error::StoreError;
use crate::lock::{Lock, Share, open_layer_lock};
use crate::{Store, tree};

/// How often a layer's lock is looked at while somebody else has it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Bytes of a blob that show that it is coming.
const ENOUGH: u64 = 1 << 20;

/// Once all of a blob is there, unpacking may take so many times the time of [`Limits::stall`](crate::Limits::stall).
const UNPACKING: u32 = 12;

/// Who fetches the very same bytes from the same registry is given so many times that time for each byte: a registry may ask
/// to be left alone for a while, and a process may be stopped.
const SAME: u32 = 30;

/// Who makes a layer out of what is on this machine. No registry is called that.
pub(crate) const LOCAL: &str = "";

/// A layer somebody needs.
pub(crate) struct Wish<'a> {
    pub(crate) layer: &'a Digest,
    /// The blob it would be made of.
    pub(crate) blob: Option<(Digest, u64)>,
    /// The registry it would come from, or [`LOCAL`].
    pub(crate) maker: &'a str,
    /// Whether it is no longer needed.
    pub(crate) given_up: &'a dyn Fn() -> bool,
}

/// A layer, and the lock that goes with its state.
pub(crate) enum Claim {
    /// It is there, under a shared lock.
    Present(Lock),
    /// It is not there, and whoever holds this exclusive lock makes it. Without a lock, somebody else has it and does not get
    /// on; then it is made all the same, and the first one to be ready wins.
    Absent(Option<Lock>),
}

impl Store {
    /// Finds a layer, or takes the right to make it. `waiting` is called before this has to wait for whoever makes it.
    ///
    /// The exclusive lock is only ever tried. Others hold shared locks on finished layers until their image is complete;
    /// waiting for those, two imports could wait for each other. Who fetches the same blob from the same registry is waited
    /// for with much patience, since nothing else would come of fetching it once more; another one only as long as he gets
    /// on: any image can claim to have any layer, and would hold up everybody who needs it.
    pub(crate) fn claim_layer(&self, wish: &Wish<'_>, waiting: &mut dyn FnMut()) -> Result<Claim, StoreError> {
        let Wish { layer, blob, maker, given_up } = *wish;
        let open = || open_layer_lock(self.layout.locks.as_fd(), &layer.hex());
        let mine = format!("{maker} {}", blob.map_or_else(String::new, |(digest, _)| digest.to_string()));
        let mut watch: Option<Watch> = None;
        loop {
            if let Some(lock) = Lock::attempt(open()?, Share::Shared)? {
                // The file may have been collected between opening and locking; then others no longer see this lock.
                if !lock.is_linked()? {
                    continue;
                }
                if self.has_layer(layer)? {
                    return Ok(Claim::Present(lock));
                }
                drop(lock);
                match Lock::attempt(open()?, Share::Exclusive)? {
                    Some(lock) if lock.is_linked()? && !self.has_layer(layer)? => {
                        // Unsigned, on a full disk for instance, it is anybody's.
                        let _ = lock.sign(&mine);
                        return Ok(Claim::Absent(Some(lock)));
                    }
                    // Somebody else looks at the same moment, or was faster.
                    _ => std::thread::yield_now(),
                }
                continue;
            }
            let watch = watch.get_or_insert_with(|| {
                waiting();
                Watch::new(self.limits.stall, Instant::now())
            });
            if given_up() {
                return Err(StoreError::fetch("given up"));
            }
            let (there, size) = blob.map_or((0, u64::MAX), |(digest, size)| (self.fetched_of(&digest), size));
            let same = Lock::signature(&open()?)? == mine;
            if !watch.gets_on(same, there, size, Instant::now()) {
                return Ok(Claim::Absent(None));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Bytes of a blob that whoever fetches it has so far.
    fn fetched_of(&self, blob: &Digest) -> u64 {
        let stat = tree::stat_name(self.layout.partial.as_fd(), blob.hex().as_bytes());
        stat.ok().flatten().and_then(|stat| u64::try_from(stat.st_size).ok()).unwrap_or(0)
    }
}

/// Watches somebody else fetch a blob.
struct Watch {
    stall: Duration,
    since: Instant,
    seen: u64,
}

impl Watch {
    fn new(stall: Duration, now: Instant) -> Watch {
        Watch { stall, since: now, seen: 0 }
    }

    /// Whether it is worth waiting on, when `there` of `size` bytes are there `now`. `same`: they are the very bytes that would
    /// be fetched otherwise, from the same place.
    fn gets_on(&mut self, same: bool, there: u64, size: u64, now: Instant) -> bool {
        let enough = if same { 1 } else { ENOUGH };
        if there >= self.seen.saturating_add(enough) || (there == size && self.seen < size) {
            *self = Watch { since: now, seen: there, ..*self };
        }
        let times = match (same, self.seen == size) {
            (true, _) => SAME,
            (false, true) => UNPACKING,
            (false, false) => 1,
        };
        now.duration_since(self.since) < self.stall * times
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gets_on_is_waited_for_and_who_does_not_is_not() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mib = |count: u64| count << 20;
        // Nothing comes.
        let mut watch = Watch::new(Duration::from_secs(10), start);
        assert!(watch.gets_on(false, 0, mib(100), at(9)) && !watch.gets_on(false, 100, mib(100), at(10)));
        // A mebibyte in nine seconds, all the time; then all is there, and is being unpacked.
        let mut watch = Watch::new(Duration::from_secs(10), start);
        for turn in 1..=100 {
            assert!(watch.gets_on(false, mib(turn), mib(100), at(turn * 9)), "{turn}");
        }
        assert!(watch.gets_on(false, mib(100), mib(100), at(900 + 119)));
        assert!(!watch.gets_on(false, mib(100), mib(100), at(900 + 120)));
        // The same bytes from the same place: five minutes for each.
        let mut watch = Watch::new(Duration::from_secs(10), start);
        assert!(watch.gets_on(true, 0, mib(100), at(299)) && watch.gets_on(true, 1, mib(100), at(299)));
        assert!(watch.gets_on(true, 1, mib(100), at(598)) && !watch.gets_on(true, 1, mib(100), at(599)));
        // A small blob is there at once.
        let mut watch = Watch::new(Duration::from_secs(10), start);
        assert!(
            watch.gets_on(false, 10, 10, at(5))
                && watch.gets_on(false, 10, 10, at(100))
                && !watch.gets_on(false, 10, 10, at(125))
        );
    }
}
