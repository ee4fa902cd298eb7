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
