//! Images by content: import, verify, unpack, references, leases.
