//! Tests against the real systemd in the lab.
