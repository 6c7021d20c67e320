//! runner-guestd: the privileged broker that makes the guests.
