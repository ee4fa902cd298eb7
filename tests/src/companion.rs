//! What goes on on another thread while a test does something else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Does `work` while `other` runs on another thread until the flag it is given is true, which it becomes however `work` ends.
/// Returns what both returned, when both have.
///
/// # Panics
/// If one of them panics.
pub fn during<T, U: Send>(other: impl FnOnce(&AtomicBool) -> U + Send, work: impl FnOnce() -> T) -> (T, U) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| other(&stop));
        let result = {
            let _stop = Stop(&stop);
            work()
        };
        (result, other.join().expect("what goes on meanwhile does not fail"))
    })
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
