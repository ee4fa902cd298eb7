//! Capabilities: what is left of root's powers.

use rustix::io::Errno;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs,
};

/// Takes all capabilities but these from this thread and those that it starts later, and those that a program could bring. A
/// thread that has no other calls nothing but `capget`: a service's unit has seen to the rest.
///
/// # Errors
/// When the kernel refuses: the thread may have what it had.
pub fn keep(kept: CapabilitySet) -> Result<(), Errno> {
    let sets = capabilities(None)?;
    if kept.contains(sets.permitted) {
        return Ok(());
    }
    set_no_new_privs(true)?;
    // Emptying it takes a capability that is given up next.
    if sets.effective.contains(CapabilitySet::SETPCAP) {
        for capability in (0..64).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
            match remove_capability_from_bounding_set(capability) {
                // Behind the last that the kernel knows.
                Err(Errno::INVAL) => break,
                result => result?,
            }
        }
    }
    let sets = CapabilitySets {
        effective: sets.effective & kept,
        permitted: sets.permitted & kept,
        // The ambient set goes with it.
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, sets)
}
