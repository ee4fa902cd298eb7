// SPDX-License-Identifier: MIT OR GPL-2.0
/* Which process opens, accepts and closes a socket. docs/architecture.md has the list of the programs; ../src/load.rs loads them
 * one by one, and any of them may be missing.
 *
 * Members of kernel structs are read through pointers that the verifier knows the type of. Programs that read kernel memory by
 * address instead (accept_syscall, accept4_syscall, accept_mptcp, connect_syscall, connect_mptcp, connect_io_uring, cgroup_made, udp_send4, udp_send6, program_opens,
 * program_accepts, open_sockets) do not load under lockdown=confidentiality. Programs of cgroups return 1: anything else would stop the traffic. */
#include "kernel.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>
#include "record.h"
#include "common.h"
#include "process.h"
#include "attempt.h"
#include "tcp.h"
#include "reading.h"
#include "accept.h"
#include "connect.h"
#include "addresses.h"
#include "udp.h"
#include "cgroup.h"
#include "snapshot.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* What the object was made of; ./compile has the recipe. */
char SOURCE[] SEC("source_hash") = SOURCE_HASH;
