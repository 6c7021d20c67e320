//! Which ranges of host ids are in use. One process makes all guests, and it reaps all guests before it makes the
//! first, so memory is the right place for this.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Ids in one range: what a guest needs to run any image.
pub(crate) const RANGE: u32 = 65_536;

/// The pool of id ranges.
#[derive(Debug, Clone)]
pub struct Leases(Arc<Mutex<Pool>>);

#[derive(Debug)]
struct Pool {
    first: u32,
    count: u32,
    used: BTreeSet<u32>,
    /// Where the search for a free range goes on, so that a range is not used again at once.
    next: u32,
}

impl Leases {
    /// A pool of `ids` ids from `base` on; both are multiples of 65,536.
    pub fn new(base: u32, ids: u32) -> Self {
        Self(Arc::new(Mutex::new(Pool { first: base, count: ids / RANGE, used: BTreeSet::new(), next: 0 })))
    }

    /// A free range, if there is one. It is free again when the lease is dropped.
    pub fn take(&self) -> Option<IdRange> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let index =
            (0..pool.count).map(|step| (pool.next + step) % pool.count).find(|index| !pool.used.contains(index))?;
        pool.used.insert(index);
        pool.next = (index + 1) % pool.count;
        Some(IdRange { base: pool.first + index * RANGE, index, pool: Arc::clone(&self.0) })
    }

    /// Whether a host id lies in the pool, in use or not.
    pub fn contains(&self, id: u32) -> bool {
        let pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        id.checked_sub(pool.first).is_some_and(|offset| offset / RANGE < pool.count)
    }
}

/// A leased range of 65,536 host ids.
#[derive(Debug)]
pub struct IdRange {
    base: u32,
    index: u32,
    pool: Arc<Mutex<Pool>>,
}

impl IdRange {
    /// The first id.
    pub fn base(&self) -> u32 {
        self.base
    }

    /// Its number in the pool: no two leases have the same at a time.
    pub fn number(&self) -> u32 {
        self.index
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner).used.remove(&self.index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_leased_once_and_comes_back() {
        let leases = Leases::new(524_288, 2 * RANGE);
        let first = leases.take().expect("a free range");
        let second = leases.take().expect("another free range");
        assert_eq!((first.base(), second.base()), (524_288, 589_824));
        assert!(leases.take().is_none());
        drop(first);
        assert_eq!(leases.take().map(|range| range.base()), Some(524_288));
        drop(second);
    }

    #[test]
    fn a_range_just_given_back_is_used_last() {
        let leases = Leases::new(524_288, 3 * RANGE);
        drop(leases.take());
        assert_eq!(leases.take().map(|range| range.base()), Some(524_288 + RANGE));
    }

    #[test]
    fn the_pool_knows_its_ids() {
        let leases = Leases::new(524_288, RANGE);
        assert!(leases.contains(524_288) && leases.contains(589_823));
        assert!(!leases.contains(524_287) && !leases.contains(589_824) && !leases.contains(0));
    }
}
