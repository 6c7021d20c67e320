//! Development only: the official runner's stand-in.
