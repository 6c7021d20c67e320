//! Everything that can be decided without looking at the machine: protocol, configuration, planning, rendering.
