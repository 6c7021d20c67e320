//! container-hooks: relays one hook call of the official runner to the broker.
