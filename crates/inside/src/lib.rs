//! The two small programs that enter a guest, and what they are told.
