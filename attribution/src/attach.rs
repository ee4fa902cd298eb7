//! Attaching a program, by descriptors that can be handed over. (aya attaches too, but keeps the link's descriptor to
//! itself.)
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

// linux/bpf.h
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;

/// Where a program is attached, `enum bpf_attach_type`.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(crate) enum AttachType {
    CgroupInetSockCreate = 2,
    CgroupSockOps = 3,
    CgroupInet4Connect = 10,
    CgroupInet6Connect = 11,
    CgroupUdp4Sendmsg = 14,
    CgroupUdp6Sendmsg = 15,
    CgroupInet4PostBind = 12,
    CgroupInet6PostBind = 13,
    TraceRawTp = 23,
    TraceFentry = 24,
    TraceFexit = 25,
    TraceIter = 28,
    CgroupInetSockRelease = 34,
    PerfEvent = 41,
}

/// `union bpf_attr`, as BPF_LINK_CREATE has it without options; BPF_ITER_CREATE has the first two members.
#[repr(C)]
struct LinkCreate {
    program_or_link: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// Attaches `program` to `target`, a control group or an event, or to what it was loaded for. It stays attached as long
/// as the link that is returned, and the program as long as the link.
pub(crate) fn link(
    program: BorrowedFd<'_>,
    target: Option<BorrowedFd<'_>>,
    attach_type: AttachType,
) -> std::io::Result<OwnedFd> {
    let target = target.map_or(0, |target| number(target));
    bpf(
        BPF_LINK_CREATE,
        &LinkCreate { program_or_link: number(program), target, attach_type: attach_type as u32, flags: 0 },
    )
}

/// The file to read what the iterator behind `link` writes.
pub(crate) fn iterator(link: &OwnedFd) -> std::io::Result<OwnedFd> {
    let link = number(link.as_fd());
    bpf(BPF_ITER_CREATE, &LinkCreate { program_or_link: link, target: 0, attach_type: 0, flags: 0 })
}

/// The event of a tracepoint, on all processors and of all processes; `id` is the one in tracefs.
pub(crate) fn tracepoint(id: u64) -> std::io::Result<OwnedFd> {
    const PERF_TYPE_TRACEPOINT: u32 = 2;
    const PERF_FLAG_FD_CLOEXEC: libc::c_ulong = 8;
    /// `struct perf_event_attr` in its first version, of 64 bytes.
    #[repr(C)]
    struct Attributes {
        kind: u32,
        size: u32,
        config: u64,
        sample_period: u64,
        rest: [u64; 5],
    }
    let attributes =
        Attributes { kind: PERF_TYPE_TRACEPOINT, size: 64, config: id, sample_period: 1, rest: [0; 5] };
    let (every_process, first_processor, no_group): (libc::pid_t, libc::c_int, libc::c_int) = (-1, 0, -1);
    // SAFETY: the attributes are as long as their `size` says and live through the call, which only reads them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attributes,
            every_process,
            first_processor,
            no_group,
            PERF_FLAG_FD_CLOEXEC,
        )
    };
    descriptor(result)
}

/// Attaches a socket filter; an earlier one is replaced.
pub(crate) fn filter(socket: BorrowedFd<'_>, program: BorrowedFd<'_>) -> std::io::Result<()> {
    let program = program.as_raw_fd();
    set_option(socket, libc::SO_ATTACH_BPF, program)
}

/// Detaches the filter of a socket: what is sent from now on comes by its queue, whole.
///
/// # Errors
/// ENOENT if the socket has no filter.
pub fn remove_filter(socket: BorrowedFd<'_>) -> std::io::Result<()> {
    set_option(socket, libc::SO_DETACH_FILTER, 0)
}

/// Whether a BPF program filters what the socket receives.
///
/// # Errors
/// The descriptor is not a socket.
pub fn has_filter(socket: BorrowedFd<'_>) -> std::io::Result<bool> {
    let mut length: libc::socklen_t = 0;
    // SAFETY: with a length of 0 the kernel writes nothing but the length, which lives through the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_GET_FILTER,
            std::ptr::null_mut(),
            &raw mut length,
        )
    };
    match result {
        // The length is that of a filter in the old language.
        0 => Ok(length > 0),
        _ => match std::io::Error::last_os_error() {
            // The kernel cannot show a program as a filter in the old language.
            error if error.raw_os_error() == Some(libc::EACCES) => Ok(true),
            error => Err(error),
        },
    }
}

/// Has the allocator give back what is freed at the end of a heap, also when much was in use once. Otherwise it raises that limit with the
/// largest piece that it has seen freed, and keeps the 16 MB that reading the description of the kernel's types takes. It does keep what
/// signals and a page of flows take: fetching that from the kernel for each took a third of their time.
pub(crate) fn return_freed_memory() {
    #[cfg(target_env = "gnu")]
    for limit in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: it sets a number of the allocator's, under the allocator's lock.
        let _ = unsafe { libc::mallopt(limit, 2 << 20) };
    }
}

fn set_option(socket: BorrowedFd<'_>, option: libc::c_int, value: libc::c_int) -> std::io::Result<()> {
    const LENGTH: libc::socklen_t = 4;
    const { assert!(size_of::<libc::c_int>() == LENGTH as usize) };
    // SAFETY: the kernel reads `LENGTH` bytes of `value`, which lives through the call.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), LENGTH)
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

fn bpf(command: libc::c_int, attributes: &LinkCreate) -> std::io::Result<OwnedFd> {
    // SAFETY: the attributes are as long as is said and live through the call, which only reads them. These commands take
    // numbers only, no pointers.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<LinkCreate>())
    };
    descriptor(result)
}

fn descriptor(result: libc::c_long) -> std::io::Result<OwnedFd> {
    match libc::c_int::try_from(result) {
        // SAFETY: the kernel has just made it for us, and nobody else knows of it.
        Ok(number) if number >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(number) }),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Descriptors are never negative.
fn number(descriptor: BorrowedFd<'_>) -> u32 {
    descriptor.as_raw_fd().cast_unsigned()
}
