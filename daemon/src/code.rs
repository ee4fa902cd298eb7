//! The code that only the start needed, given back once the daemon serves.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::ops::Range;
use std::ptr::with_exposed_provenance_mut;
use std::time::Duration;

use rustix::mm::{Advice, madvise};
use tokio::sync::watch;
use zbus::Connection;

/// So long somebody may ask whether the daemon has started.
const FIRST_QUESTIONS: Duration = Duration::from_secs(2);

/// Where the code of the program and of its libraries lies.
#[derive(Debug)]
pub(crate) struct Code(Vec<Range<usize>>);

impl Code {
    /// Finds it. Call this before files are confined.
    pub(crate) fn find() -> Self {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
        Self(maps.lines().filter_map(code).collect())
    }

    /// Gives it back when the daemon serves, and once more when those have asked who waited for it. What is still
    /// needed comes back when it is called, from the page cache: the kernel maps 64 KiB around each use of code and
    /// unmaps none of it while there is memory, so that after the start nearly all is resident, two thirds of an idle
    /// daemon.
    pub(crate) async fn give_back(self, mut connection: watch::Receiver<Option<Connection>>) {
        let _ = connection.wait_for(Option::is_some).await;
        self.unmap();
        tokio::time::sleep(FIRST_QUESTIONS).await;
        self.unmap();
    }

    fn unmap(&self) {
        for Range { start, end } in self.0.iter().cloned() {
            let address: *mut c_void = with_exposed_provenance_mut(start);
            // SAFETY: the range is a private mapping of a file that cannot be written to, so its pages are the file's, and
            // the next use reads the same bytes again.
            let _ = unsafe { madvise(address, end - start, Advice::LinuxDontNeed) };
        }
    }
}

/// The range of a line of /proc/self/maps, if it is code: "7f83ea2ae000-7f83ea2b1000 r-xp 00003000 fe:00 7 /usr/lib/libc.so.6".
fn code(line: &str) -> Option<Range<usize>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let is_code = words.next()? == "r-xp" && words.nth(2)? != "0";
    let address = |digits| usize::from_str_radix(digits, 16).ok();
    is_code.then_some(address(start)?..address(end)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_what_is_mapped_from_a_file_to_be_executed_and_not_written() {
        let line = "7f83ea2ae000-7f83ea2b1000 r-xp 00003000 fe:00 7      /usr/lib/libc.so.6";
        assert_eq!(code(line), Some(0x7f83_ea2a_e000..0x7f83_ea2b_1000));
        assert_eq!(code(&line.replace("r-xp", "r--p")), None);
        assert_eq!(code(&line.replace("r-xp", "rwxp")), None);
        assert_eq!(code("7ffc8b3f2000-7ffc8b3f4000 r-xp 00000000 00:00 0      [vdso]"), None);
        assert_eq!(code(""), None);
        assert!(!Code::find().0.is_empty());
    }
}
