//! What a process has used: processor time from the scheduler's own account, to the nanosecond, memory, wake-ups.

use std::fs;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

/// Keeps this thread, and those that it starts, on one processor.
///
/// # Panics
/// If there is no such processor.
pub(crate) fn pin(processor: usize) {
    let mut set = CpuSet::new();
    set.set(processor);
    sched_setaffinity(None, &set).expect("there are two processors");
}

/// The processor time of a process, all its threads together, in user space and in the kernel.
///
/// # Panics
/// If it is gone.
pub(crate) fn of_process(pid: u32) -> Duration {
    threads(pid).iter().map(|directory| run_time(directory)).sum()
}

/// The processor time of the threads of this name.
///
/// # Panics
/// If the process is gone.
pub(crate) fn of_thread(pid: u32, name: &str) -> Duration {
    let threads = threads(pid);
    let named = threads.iter().filter(|directory| {
        fs::read_to_string(format!("{directory}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    });
    named.map(|directory| run_time(directory)).sum()
}

/// How often the process has gone to sleep by itself, all its threads together: one wake-up each.
///
/// # Panics
/// If it is gone.
pub(crate) fn sleeps(pid: u32) -> u64 {
    threads(pid)
        .iter()
        .map(|directory| field(&format!("{directory}/status"), "voluntary_ctxt_switches:"))
        .sum()
}

/// How often this thread has gone to sleep by itself.
pub(crate) fn own_sleeps() -> u64 {
    field("/proc/thread-self/status", "voluntary_ctxt_switches:")
}

/// The memory that a process takes, in bytes: what is resident, and what its state memfd has allocated and the process
/// does not map.
///
/// # Panics
/// If it is gone.
pub(crate) fn memory(pid: u32) -> u64 {
    let status = format!("/proc/{pid}/status");
    let shared = 1024 * field(&status, "RssShmem:");
    resident(pid) + state_pages(pid).saturating_sub(shared)
}

/// The resident memory in bytes.
///
/// # Panics
/// If it is gone.
fn resident(pid: u32) -> u64 {
    1024 * field(&rollup(pid), "Rss:")
}

/// The memory that is this process's alone, in bytes. Clean pages of files are not: they belong to the page cache.
///
/// # Panics
/// If it is gone.
pub(crate) fn private(pid: u32) -> u64 {
    1024 * field(&rollup(pid), "Private_Dirty:")
}

/// The resident memory in bytes, with this process's share of pages that several map.
///
/// # Panics
/// If it is gone.
pub(crate) fn pss(pid: u32) -> u64 {
    1024 * field(&rollup(pid), "Pss:")
}

fn rollup(pid: u32) -> String {
    format!("/proc/{pid}/smaps_rollup")
}

/// The bytes that the process's state memfd has allocated.
fn state_pages(pid: u32) -> u64 {
    use std::os::linux::fs::MetadataExt;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives");
    descriptors
        .flatten()
        .filter(|entry| {
            fs::read_link(entry.path())
                .is_ok_and(|path| path.to_string_lossy().contains("memfd:flowbusd-state"))
        })
        .filter_map(|entry| fs::metadata(entry.path()).ok())
        .map(|metadata| 512 * metadata.st_blocks())
        .max()
        .unwrap_or(0)
}

/// Waits until a processor time stands still, and returns it: a reader of events has then read them all.
pub(crate) fn settled(time: impl Fn() -> Duration) -> Duration {
    /// Longer than any reader's nap; shorter than what a quiet reader uses the processor again after.
    const STILL: Duration = Duration::from_millis(150);
    let mut used = time();
    let mut since = Instant::now();
    while since.elapsed() < STILL {
        sleep(Duration::from_millis(10));
        let now = time();
        if now != used {
            (used, since) = (now, Instant::now());
        }
    }
    used
}

fn threads(pid: u32) -> Vec<String> {
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).unwrap_or_else(|error| panic!("process {pid}: {error}"));
    tasks.flatten().map(|task| task.path().to_string_lossy().into_owned()).collect()
}

/// The first number of schedstat: nanoseconds on a processor. A thread that has just ended counts as none.
fn run_time(directory: &str) -> Duration {
    let stat = fs::read_to_string(format!("{directory}/schedstat")).unwrap_or_default();
    let nanoseconds = stat.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0);
    Duration::from_nanos(nanoseconds)
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
