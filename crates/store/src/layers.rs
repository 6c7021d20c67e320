//! Having the layers of an image: several at a time, each unpacked once whoever needs it.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::claim::{Claim, Wish};
use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{ErrorKind, StoreError};
use crate::import::{Held, Imported, Named, Progress, new_root};
use crate::layout::{LayerForm, LayerRecord, LayerStats};
use crate::limits::Budget;
use crate::lock::Lock;
use crate::remote::{BlobRequest, Partial, Remote};
use crate::room::Room;
use crate::source::{ImageSource, LayerBytes, LayerSource};
use crate::unpacker::{Packed, UnpackedLayer, unpack_layer};
use crate::{Lease, Store};

/// Layers under way at a time, at most. Each is two busy threads while its bytes come fast.
const AT_A_TIME: usize = 3;

/// The layers of one image, as the threads that work on them see them.
struct Work<'a> {
    store: &'a Store,
    image: &'a ImageSource<'a>,
    budget: Mutex<Budget>,
    /// Positions, the largest layer first: what takes longest must not come last.
    order: Vec<usize>,
    next: AtomicUsize,
    failed: AtomicBool,
    /// What failed first. Whatever fails after that was given up because of it.
    failure: Mutex<Option<StoreError>>,
    room: Room,
}

impl Store {
    /// An image whose layers are known by name before they are read.
    pub(crate) fn import_image(
        &self,
        reference: &str,
        image: &ImageSource<'_>,
        budget: &Budget,
        progress: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<(Imported, Lease), StoreError> {
        let (parsed, _) = ImageConfig::parse(&image.config)?;
        parsed.check_platform()?;
        self.check_room(image)?;
        let mut order: Vec<usize> = (0..image.layers.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(image.layers[index].blob.map_or(0, |(_, size)| size)));
        let work = Work {
            store: self,
            image,
            budget: Mutex::new(budget.clone()),
            order,
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::default(),
            room: Room::default(),
        };
        // On a full disk not even the first byte comes.
        work.room.keep(self);
        let ImageSource { config, manifest, digest, documents, .. } = image;
        let named = Named { config, manifest: *manifest, digest: *digest, documents };
        let held = work.all(progress)?;
        match self.publish(reference, &named, &held) {
            // A layer made beside somebody else who had its lock, and collected when he let go of it.
            Err(error) if error.kind() == ErrorKind::Damaged => {
                work.next.store(0, Ordering::Relaxed);
                self.publish(reference, &named, &work.all(progress)?)
            }
            published => published,
        }
    }
}

impl Work<'_> {
    /// All layers, in the image's order.
    fn all(&self, progress: &mut (dyn FnMut(Progress) + Send)) -> Result<Vec<Held>, StoreError> {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let threads = (cores + 1).min(AT_A_TIME).min(self.order.len());
        let progress = Mutex::new(progress);
        let mut results: Vec<(usize, Held)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.some(&progress))).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("a panic of a worker is one of ours")).collect()
        });
        if let Some(failure) = held(&self.failure).take() {
            return Err(failure);
        }
        results.sort_by_key(|(index, _)| *index);
        Ok(results.into_iter().map(|(_, held)| held).collect())
    }

    /// One layer after the other, until there is none or something failed.
    fn some(&self, progress: &Mutex<&mut (dyn FnMut(Progress) + Send)>) -> Vec<(usize, Held)> {
        let mut results = Vec::new();
        while let Some(&index) = self.order.get(self.next.fetch_add(1, Ordering::Relaxed)) {
            if self.failed.load(Ordering::Relaxed) {
                break;
            }
            let layer = &self.image.layers[index];
            let report = &mut |what| held(progress)(what);
            match self.one(index, layer, report) {
                Ok(have) => {
                    let (layer, reused) = (have.digest, have.reused);
                    report(Progress::Layer { index, total: self.order.len(), layer, reused });
                    results.push((index, have));
                }
                Err(error) => {
                    held(&self.failure).get_or_insert_with(|| error.for_layer(layer.diff_id));
                    self.failed.store(true, Ordering::Relaxed);
                    // The others may have hours to go.
                    self.image.give_up();
                }
            }
        }
        results
    }

    /// Has a layer in the store, by waiting for whoever unpacks it or by unpacking it.
    fn one(&self, index: usize, layer: &LayerSource, report: &mut dyn FnMut(Progress)) -> Result<Held, StoreError> {
        let digest = layer.diff_id;
        let total = self.order.len();
        let given_up = || self.is_given_up();
        let mut made = None;
        let maker = self.image.maker();
        let wish = Wish { layer: &digest, blob: layer.blob, maker: &maker, given_up: &given_up };
        loop {
            let mut waiting = || report(Progress::Waiting { index, total, layer: digest });
            let claim = self.store.claim_layer(&wish, &mut waiting)?;
            let lock = match claim {
                Claim::Present(lock) => {
                    let (reused, stats) = (made.is_none(), made.unwrap_or_default());
                    return Ok(Held { digest, reused, stats, _lock: Some(lock) });
                }
                Claim::Absent(lock) => lock,
            };
            let stats = self.make(index, layer, report)?;
            made = Some(stats);
            let lock = lock.map(Lock::share).transpose()?;
            // A sweep may have come between the two locks; then it has to be made again.
            if lock.as_ref().map_or(Ok(true), Lock::is_linked)? && self.store.has_layer(&digest)? {
                return Ok(Held { digest, reused: false, stats, _lock: lock });
            }
        }
    }

    /// Whether what is under way is of no use any more.
    fn is_given_up(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.image.is_given_up()
    }

    /// Unpacks a layer into its place.
    fn make(
        &self,
        index: usize,
        layer: &LayerSource,
        report: &mut dyn FnMut(Progress),
    ) -> Result<LayerStats, StoreError> {
        match self.image.open_layer(layer)? {
            LayerBytes::Local(packed, size) => {
                if let Some((blob, stated)) = layer.blob
                    && stated != size
                {
                    let cause = format!("blob {blob} has {size} bytes, its descriptor says {stated}");
                    return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
                }
                self.unpack(index, layer, packed, size, report)
            }
            LayerBytes::Remote(remote) => {
                let (digest, size) =
                    layer.blob.ok_or_else(|| StoreError::bad("a layer without a descriptor cannot be fetched"))?;
                let partial = self.store.partial(&digest, size)?;
                match self.fetch(remote, &partial, index, layer, (digest, size), report) {
                    Ok(stats) => partial.remove().map(|()| stats),
                    // The next pull goes on from here.
                    Err(error) if matches!(error.kind(), ErrorKind::Fetch | ErrorKind::Io) => Err(error),
                    // Bytes that are of no use to anybody, or that there is no room for.
                    Err(error) => partial.remove().and(Err(error)),
                }
            }
        }
    }

    /// Fetches and unpacks at the same time. Wrong bytes of a mirror, or of an earlier try, are no reason to give up.
    fn fetch(
        &self,
        remote: &dyn Remote,
        partial: &Partial<'_>,
        index: usize,
        layer: &LayerSource,
        (digest, size): (Digest, u64),
        report: &mut dyn FnMut(Progress),
    ) -> Result<LayerStats, StoreError> {
        let mut origin_only = false;
        loop {
            let have = partial.have()?;
            let request = BlobRequest { digest: &digest, size, have, origin_only };
            let (packed, outcome) = if have < size {
                let fetching = remote.blob(&request, partial.writer()?)?;
                (Packed::followed(partial.reader()?, have, File::from(fetching.pipe)), Some(fetching.outcome))
            } else {
                (Packed::stretch(partial.reader()?, 0, size), None)
            };
            let error = match self.unpack(index, layer, packed, size, report) {
                // Everything came, whatever may have gone wrong after that.
                Ok(stats) => return Ok(stats),
                Err(error) if error.kind() == ErrorKind::DigestMismatch => error,
                Err(error) => return Err(error),
            };
            // Too few bytes are wrong bytes, and this is why there were too few.
            outcome.map_or(Ok(()), |outcome| outcome())?;
            if origin_only || (have == 0 && !remote.has_mirrors()) {
                return Err(error);
            }
            // A beginning that was wrong says nothing about the mirrors.
            origin_only = have == 0;
            partial.start_over()?;
        }
    }

    fn unpack(
        &self,
        index: usize,
        layer: &LayerSource,
        packed: Packed,
        size: u64,
        report: &mut dyn FnMut(Progress),
    ) -> Result<LayerStats, StoreError> {
        let total = self.order.len();
        let stage = self.store.layout.stage()?;
        let root = new_root(&stage)?;
        let report = &mut |done| {
            self.room.keep(self.store);
            report(Progress::Unpacking { index, total, done, size: Some(size) });
        };
        report(0);
        let given_up = || self.is_given_up();
        let before = held(&self.budget).clone();
        let mut budget = before.clone();
        let UnpackedLayer { diff_id, stats, tree, .. } =
            unpack_layer(&self.store.unpacker, packed, layer.blob, root.as_fd(), &mut budget, &given_up, report)?;
        held(&self.budget).spend_as(&before, &budget)?;
        if diff_id != layer.diff_id {
            let cause = format!("unpacks to {diff_id}, which is not its diff id");
            return Err(StoreError::new(ErrorKind::DigestMismatch, cause));
        }
        stage.publish(&diff_id, &LayerRecord { form: LayerForm::Tar, tree: Some(tree), unsettled: None, stats })?;
        Ok(stats)
    }
}

/// A panic of another worker says nothing about the values in here.
fn held<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
