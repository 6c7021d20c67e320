//! `container-hooks`: relays one hook call of the official runner to the broker.
//!
//! No privilege, no policy: standard input goes to the broker as it is, the program's output comes back on pipes and is
//! moved to our own standard output and error, the broker's answer goes into the response file, and its verdict is our
//! exit status. See the protocol text, sections 2 and 9.

pub mod output;
pub mod relay;
pub mod response_file;
