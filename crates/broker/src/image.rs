//! Having the image of a container: allowed, pulled if need be, held in the store.

use std::sync::Arc;

use anyhow::{Context, bail};
use runner_model::config::Watermarks;
use runner_model::image_ref::Reference;
use runner_model::message;
use runner_model::protocol::{ImageSource, Registry};
use runner_model::registry_auth;
use runner_pull::{News, Obtained, Wanted};
use runner_store::{Lease, Scope, Store, StoreError};

use crate::broker::Broker;
use crate::call::{Cancellation, Output, Stop};

/// The image a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Field of the request, for messages.
    pub(crate) field: &'static str,
    pub(crate) image: &'a ImageSource,
    pub(crate) registry: Option<&'a Registry>,
}

impl Broker {
    /// The image a container asks for. `output` hears of pulling; cancelling ends it.
    pub(crate) async fn image(
        &self,
        asked: Asked<'_>,
        output: Option<&Output>,
        mut cancellation: Cancellation,
    ) -> anyhow::Result<Lease> {
        let Asked { field, image, registry } = asked;
        let text = match image {
            ImageSource::Reference(text) => text,
            ImageSource::Dockerfile(_) => {
                bail!("args.container.dockerfile: a job container is not built; name an image")
            }
        };
        let image = Reference::parse(text).context(field)?;
        let found = registry.map(|registry| registry_auth::from_request(registry, &image));
        let (credentials, warning) = found.map_or((None, None), |found| (found.credentials, found.warning));
        if let (Some(output), Some(warning)) = (output, warning) {
            output.say(&message::warning(&warning));
        }

        let wanted = Wanted { image: &image, credentials, policy: None };
        let mut group = Group { output, title: format!("Pulling {}", image.familiar()), open: false };
        let obtained = tokio::select! {
            biased;
            obtained = self.puller.obtain(&wanted, |news| group.tell(&news)) => obtained,
            () = cancellation.reached(Stop::Ask) => bail!("{field}: cancelled while the image was being pulled"),
        };
        drop(group);
        let Obtained { lease, pulled } = obtained.context(field)?;
        if pulled.is_some() {
            self.tidy_store();
        }
        Ok(lease)
    }

    /// Brings what was pulled to the disk, and removes images if the disk is too full: in the background, and without
    /// waiting for the timer.
    fn tidy_store(&self) {
        let store = Arc::clone(&self.store);
        let marks = self.settings.images.collect;
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.settle() {
                tracing::warn!("{error}");
            }
            if let Err(error) = collect(&store, marks) {
                tracing::warn!("images cannot be collected: {error}");
            }
        });
    }
}

fn collect(store: &Store, marks: Watermarks) -> Result<(), StoreError> {
    if store.percent_used()? > marks.start {
        let scope = Scope::Watermarks { start: marks.start, stop: marks.stop };
        store.prune(scope, &mut |reference| tracing::info!("removed image {reference}: the disk is too full"))?;
    }
    Ok(())
}

/// The digest that says exactly what an image is: the registry's, which a pinned reference names; else the manifest's; else
/// the image's id.
pub(crate) fn exact_digest(lease: &Lease) -> String {
    lease.digest().or(lease.manifest()).unwrap_or_else(|| lease.id()).to_string()
}

/// Lines about a pull, folded in the log. There is no group without a line.
struct Group<'a> {
    output: Option<&'a Output>,
    title: String,
    open: bool,
}

impl Group<'_> {
    fn tell(&mut self, news: &News) {
        let Some(output) = self.output else {
            if let News::Warning(text) = news {
                tracing::warn!("{text}");
            }
            return;
        };
        match news {
            News::Progress(line) => {
                if !self.open {
                    output.say(&message::group(&self.title));
                    self.open = true;
                }
                output.say(&line.to_string());
            }
            News::Warning(text) => {
                self.close();
                output.say(&message::warning(text));
            }
        }
    }

    fn close(&mut self) {
        if let Some(output) = self.output.filter(|_| self.open) {
            output.say(&message::endgroup());
            self.open = false;
        }
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.close();
    }
}
