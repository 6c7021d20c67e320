//! The guest engine: the only caller of systemd, machined, mounts and namespaces.
