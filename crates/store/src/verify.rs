//! Checking a store: whether everything is there, and has the bytes it had when it was checked in.
//!
//! Runs beside pulls, jobs and collections. First, while the store stands still for a moment, it looks at what there is
//! and how it hangs together; then it reads everything, blob by blob and layer by layer, each held while it is read.
//! What is gone by then was collected.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::config::ImageConfig;
use crate::digest::Digest;
use crate::error::{StoreError, quoted};
use crate::layout::{ImageRecord, LayerForm, Layout, RefRecord};
use crate::lock::{Lock, Share, open_layer_lock};
use crate::tree_digest::{content_digest, disk_digest};
use crate::{Store, tree};

/// How bad a [`Finding`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gravity {
    /// Worth knowing: leftovers that the next sweep removes, things that cannot be checked.
    Note,
    /// Something an image needs is missing, or is not what it was.
    Damage,
}

/// Something [`Store::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub gravity: Gravity,
    /// One line: where in the store, what, and what to do about it.
    pub line: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// How far [`Store::verify`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verifying {
    /// Blobs and layers read completely.
    pub done: usize,
    /// Blobs and layers there are.
    pub total: usize,
    /// Bytes read.
    pub bytes: u64,
}

/// What there is, and who needs it.
#[derive(Default)]
struct Inventory {
    findings: Vec<Finding>,
    /// References that need an image, a blob or a layer, if any do.
    images: BTreeMap<Digest, BTreeSet<String>>,
    blobs: BTreeMap<Digest, BTreeSet<String>>,
    layers: BTreeMap<Digest, BTreeSet<String>>,
}

impl Inventory {
    fn damage(&mut self, line: String) {
        self.findings.push(Finding { gravity: Gravity::Damage, line });
    }

    fn note(&mut self, line: String) {
        self.findings.push(Finding { gravity: Gravity::Note, line });
    }
}

impl Store {
    /// Reads everything in the store and says what is wrong with it, worst first; nothing is changed. A store that was
    /// never touched by anybody else gives no [`Gravity::Damage`], however many processes were killed at work on it.
    ///
    /// # Errors
    /// When a folder of the store cannot be read at all.
    pub fn verify(&self, progress: &mut dyn FnMut(Verifying)) -> Result<Vec<Finding>, StoreError> {
        let mut inventory = self.take_inventory()?;
        let total = inventory.blobs.len() + inventory.layers.len();
        let mut state = Verifying { done: 0, total, bytes: 0 };
        progress(state);
        for (blob, users) in std::mem::take(&mut inventory.blobs) {
            state.bytes += self.verify_blob(&blob, &users, &mut inventory)?;
            state.done += 1;
            progress(state);
        }
        let mut busy = Vec::new();
        for (layer, users) in std::mem::take(&mut inventory.layers) {
            match self.verify_layer(&layer, &users, &mut inventory, state, progress)? {
                Some(bytes) => {
                    state.bytes += bytes;
                    state.done += 1;
                    progress(state);
                }
                None => busy.push((layer, users)),
            }
        }
        for (layer, users) in busy {
            match self.verify_layer(&layer, &users, &mut inventory, state, progress)? {
                Some(bytes) => state.bytes += bytes,
                None => inventory.note(format!("layers/{}: being unpacked; verify again later", layer.hex())),
            }
            state.done += 1;
            progress(state);
        }
        let mut findings = inventory.findings;
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.gravity));
        Ok(findings)
    }

    /// Everything that can be told without reading much. Nobody publishes, resolves or collects meanwhile.
    fn take_inventory(&self) -> Result<Inventory, StoreError> {
        let layout = &self.layout;
        let _quiet = layout.lock(Share::Exclusive)?;
        let mut inventory = Inventory::default();
        for (folder, fd, suffix) in [
            ("refs", &layout.refs, ".json"),
            ("images", &layout.images, ".json"),
            ("blobs/sha256", &layout.blobs, ""),
            ("layers", &layout.layers, ""),
            ("partial", &layout.partial, ""),
            ("locks", &layout.locks, ""),
        ] {
            for name in names(fd.as_fd(), folder)? {
                match digest_of(&name, suffix) {
                    None => inventory.note(format!("{folder}/{}: not a name of this store; left alone", quoted(&name))),
                    Some(digest) => match folder {
                        "images" => drop(inventory.images.entry(digest).or_default()),
                        "blobs/sha256" => drop(inventory.blobs.entry(digest).or_default()),
                        "layers" => drop(inventory.layers.entry(digest).or_default()),
                        _ => {}
                    },
                }
            }
        }
        for (name, _lock) in self.debris()? {
            inventory.note(format!("tmp/{}: left by interrupted work; the next sweep removes it", quoted(&name)));
        }
        self.check_references(&mut inventory)?;
        self.check_images(&mut inventory);
        self.check_layers(&mut inventory)?;
        let unused = inventory.blobs.iter().filter(|(_, users)| users.is_empty());
        let unused: Vec<_> = unused.map(|(blob, _)| format!("blobs/sha256/{}: {UNUSED}", blob.hex())).collect();
        unused.into_iter().for_each(|line| inventory.note(line));
        Ok(inventory)
    }

    fn check_references(&self, inventory: &mut Inventory) -> Result<(), StoreError> {
        let layout = &self.layout;
        for name in names(layout.refs.as_fd(), "refs")? {
            let Some(digest) = digest_of(&name, ".json") else { continue };
            let name = format!("{}.json", digest.hex());
            let record = match layout.read_record::<RefRecord>(layout.refs.as_fd(), &name) {
                Ok(Some((record, _))) => record,
                Ok(None) => continue,
                Err(error) => {
                    inventory.damage(format!("refs/{name}: {error}"));
                    continue;
                }
            };
            let reference = quoted(record.reference.as_bytes());
            if Layout::ref_name(&record.reference) != name {
                inventory.damage(format!("refs/{name}: is the record of {reference}; remove the file and pull again"));
                continue;
            }
            match inventory.images.get_mut(&record.image) {
                Some(users) => drop(users.insert(reference.clone())),
                None => inventory
                    .damage(format!("refs/{name}: image {} of {reference} has no record; pull it again", record.image)),
            }
            for document in &record.documents {
                match inventory.blobs.get_mut(document) {
                    Some(users) => drop(users.insert(reference.clone())),
                    None => inventory
                        .damage(format!("refs/{name}: document {document} of {reference} is missing; pull it again")),
                }
            }
        }
        Ok(())
    }

    fn check_images(&self, inventory: &mut Inventory) {
        let layout = &self.layout;
        for (image, users) in inventory.images.clone() {
            let name = Layout::image_name(&image);
            let remedy = remedy(&users);
            let record = match layout.read_record::<ImageRecord>(layout.images.as_fd(), &name) {
                Ok(Some((record, _))) if record.image == image => record,
                Ok(Some((record, _))) => {
                    inventory.damage(format!("images/{name}: is the record of {}; {remedy}", record.image));
                    continue;
                }
                Ok(None) => continue,
                Err(error) => {
                    inventory.damage(format!("images/{name}: {error}"));
                    continue;
                }
            };
            match inventory.blobs.get_mut(&image) {
                Some(of_blob) => of_blob.extend(users.iter().cloned()),
                None => inventory.damage(format!("images/{name}: its configuration is missing; {remedy}")),
            }
            let config = self.document(&image).and_then(|text| ImageConfig::parse(&text).ok());
            if config.is_some_and(|(_, layers)| layers != record.layers) {
                inventory.damage(format!("images/{name}: lists other layers than its configuration; {remedy}"));
            }
            if users.is_empty() {
                // Somebody may have a lease on it, or it is about to be collected.
                inventory.note(format!("images/{name}: {UNUSED}"));
            }
            for layer in record.layers.iter().collect::<BTreeSet<_>>() {
                match inventory.layers.get_mut(layer) {
                    // One that is only leased has users all the same: their lines must not say that it can go.
                    Some(of_layer) => {
                        of_layer.extend(users.iter().cloned());
                        of_layer.extend(users.is_empty().then(|| image.to_string()));
                    }
                    None => inventory.damage(format!("images/{name}: layer {layer} is missing; {remedy}")),
                }
            }
        }
    }

    fn check_layers(&self, inventory: &mut Inventory) -> Result<(), StoreError> {
        for (layer, users) in inventory.layers.clone() {
            let name = layer.hex();
            if users.is_empty() {
                let lock = open_layer_lock(self.layout.locks.as_fd(), &name)?;
                // Complete, and its image is not: somebody is about to need it.
                if Lock::attempt(lock, Share::Exclusive)?.is_some() {
                    inventory.note(format!("layers/{name}: {UNUSED}"));
                }
                continue;
            }
            match self.layout.read_layer(&layer) {
                Ok(Some(_)) => {}
                Ok(None) => inventory.damage(format!("layers/{name}: has no layer.json; {}", remedy(&users))),
                Err(error) => inventory.damage(format!("layers/{name}: {error}")),
            }
        }
        Ok(())
    }

    /// Reads a blob; gives its bytes' number.
    fn verify_blob(
        &self,
        blob: &Digest,
        users: &BTreeSet<String>,
        inventory: &mut Inventory,
    ) -> Result<u64, StoreError> {
        let name = blob.hex();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let outcome = match rustix::fs::openat(&self.layout.blobs, &name, flags, Mode::empty()) {
            Ok(fd) => read_whole(&File::from(fd)),
            // Collected in the meantime.
            Err(Errno::NOENT) => return Ok(0),
            Err(error) => Err(StoreError::io("open it", error)),
        };
        match outcome {
            Ok((found, bytes)) => {
                if found != *blob {
                    let remedy = remedy(users);
                    inventory.damage(format!("blobs/sha256/{name}: its bytes have digest {found}; {remedy}"));
                }
                Ok(bytes)
            }
            Err(error) => {
                inventory.damage(format!("blobs/sha256/{name}: {error}; {}", remedy(users)));
                Ok(0)
            }
        }
    }

    /// Reads a layer; gives its bytes' number, or `None` when somebody is at work on it.
    fn verify_layer(
        &self,
        layer: &Digest,
        users: &BTreeSet<String>,
        inventory: &mut Inventory,
        state: Verifying,
        progress: &mut dyn FnMut(Verifying),
    ) -> Result<Option<u64>, StoreError> {
        let name = layer.hex();
        let failed = |error: Errno| StoreError::io(format_args!("open layers/{name}"), error);
        let lock = open_layer_lock(self.layout.locks.as_fd(), &name)?;
        // Held, it keeps collections away.
        let Some(lock) = Lock::attempt(lock, Share::Shared)? else { return Ok(None) };
        if !lock.is_linked()? {
            return Ok(None);
        }
        let folder = match tree::open_dir(self.layout.layers.as_fd(), name.as_bytes()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Some(0)),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                inventory.damage(format!("layers/{name}: is not a folder; remove it and pull again"));
                return Ok(Some(0));
            }
            Err(error) => return Err(failed(error)),
        };
        // What is wrong with the record was said.
        let Ok(Some(record)) = self.layout.read_layer(layer) else { return Ok(Some(0)) };
        for other in names(folder.as_fd(), &format!("layers/{name}"))? {
            if !matches!(other.as_slice(), b"root" | b"layer.json") {
                inventory.note(format!("layers/{name}/{}: not of this store; left alone", quoted(&other)));
            }
        }
        let Some(expected) = record.tree else {
            let line = format!("layers/{name}: cannot be verified, an earlier version unpacked it; {}", remedy(users));
            inventory.note(line);
            return Ok(Some(0));
        };
        if record.form == LayerForm::Tree && expected != *layer {
            inventory.damage(format!("layers/{name}: layer.json belongs to another layer; {}", remedy(users)));
        }
        let mut bytes = 0;
        let report = &mut |read| {
            bytes = read;
            progress(Verifying { bytes: state.bytes + read, ..state });
        };
        let root = match tree::open_dir(folder.as_fd(), b"root") {
            Ok(root) => root,
            Err(error) => {
                inventory.damage(format!("layers/{name}/root: cannot be opened ({error}); {}", remedy(users)));
                return Ok(Some(0));
            }
        };
        match disk_digest(root.as_fd(), report) {
            Ok(found) if found == expected => {}
            Ok(_) => inventory.damage(format!(
                "layers/{name}: files or their attributes are not what was unpacked; {}",
                remedy(users)
            )),
            Err(error) => inventory.damage(format!("layers/{name}: {error}; {}", remedy(users))),
        }
        Ok(Some(bytes))
    }
}

/// Of something whole that no reference leads to.
const UNUSED: &str = "no reference needs it; the next sweep removes it when nobody uses it";

/// What to do about damage, by the references that suffer.
fn remedy(users: &BTreeSet<String>) -> String {
    const SHOWN: usize = 3;
    if users.is_empty() {
        return "no reference needs it, `runnerctl image prune` removes it".to_owned();
    }
    let mut list = users.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if users.len() > SHOWN {
        list.push_str(&format!(" and {} more", users.len() - SHOWN));
    }
    format!("remove with `runnerctl image rm` and pull again: {list}")
}

fn names(folder: BorrowedFd<'_>, shown: &str) -> Result<Vec<Vec<u8>>, StoreError> {
    tree::names(folder).map_err(|error| StoreError::io(format_args!("list {shown}"), error))
}

fn digest_of(name: &[u8], suffix: &str) -> Option<Digest> {
    Digest::from_hex(std::str::from_utf8(name).ok()?.strip_suffix(suffix)?)
}

fn read_whole(file: &File) -> Result<(Digest, u64), StoreError> {
    let stat = rustix::fs::fstat(file).map_err(|error| StoreError::io("look at it", error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(StoreError::bad("is no file"));
    }
    let size = u64::try_from(stat.st_size).map_err(|_| StoreError::bad("has a negative size"))?;
    Ok((content_digest(file, size, &mut vec![0; tree::BUFFER])?, size))
}
