//! The guest engine: the only caller of systemd, machined, mounts and namespaces.
//!
//! It knows images as folders, programs, files and lifetimes. It does not know workflows, nor which front door asks.
//!
//! A guest's life: [`Engine::assemble`] makes the container's root, [`Engine::boot`] starts the guest's unit and moves
//! the root in, [`Guest::start`] runs programs in it, [`Engine::destroy`] kills the job's slice and removes everything
//! the job had. Nothing waits for a guest to cooperate: it is the attacker's as soon as a program ran in it.
//!
//! | module | what is decided there |
//! | --- | --- |
//! | `systemd` | how unit jobs are started and awaited, on the host and in guests |
//! | crate `runner-idmap` | who owns a file in a guest and on disk |
//! | `overlay`, `root` | how layers become a container's root, and what is read from it |
//! | `source` | which file of the host a mount really is |
//! | `tree` | what a guest's own PID 1 sees |
//! | `network` | the guest's network namespace |
//! | `enter` | how the host reaches into a guest |
//! | `step` | how a program runs and how its end is known |
//! | `engine` | booting, destroying, reaping |
//! | `leases` | which ids are in use |
//! | `ownership` | who owns the workspace after a job |
//! | `removal` | how a tree that a guest made is removed |

mod engine;
mod enter;
mod guest;
mod leases;
mod network;
mod overlay;
mod ownership;
mod removal;
mod root;
mod source;
mod step;
mod systemd;
mod tree;

pub use engine::{BootError, BootSpec, BoundSource, Engine, Places, Receipt, assemble};
pub use guest::Guest;
pub use leases::{IdRange, Leases};
pub use ownership::{Restored, restore};
pub use root::{ImageFacts, Root};
pub use runner_inside::enter::CONTAINER_ROOT;
pub use runner_inside::exec::{Program, Stdin};
pub use source::{Owner, Source, SourceError, open_below};
pub use step::{Outcome, Step, StepError, StepHandle};
pub use systemd::UnitError;
