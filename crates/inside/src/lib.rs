//! The two small programs that enter a guest, and what they are told.
//!
//! * `guest-enter` is started by the broker on the host. It joins the namespaces of a freshly booted guest, puts the
//!   container's root together there and hands back a connection to the guest's bus. It runs before anything of the
//!   image runs, and it becomes the guest's root before it touches a path.
//! * `guest-exec` is started by the guest's own PID 1, once a step. It reads what to run from its standard input,
//!   changes root into the container and executes the program.
//!
//! Both are told what to do by a [`block`]: fields with a length in front, so that every byte of an argument or an
//! environment value travels unchanged. (`Environment=` and `ExecStart=` of a unit would refuse some names and expand
//! `$` in others.)

pub mod block;
pub mod enter;
pub mod exec;
