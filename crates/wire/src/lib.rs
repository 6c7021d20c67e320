//! The broker's private D-Bus interface, as both ends see it.
