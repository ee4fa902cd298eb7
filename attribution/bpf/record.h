/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What the programs write and ../src/record.rs reads. A change here is a change of LAYOUT there. */
#ifndef RECORD_H
#define RECORD_H

enum kind {
	KIND_SYN = 1,
	KIND_CONNECT,
	KIND_CONNECT_FAILED,
	KIND_INCOMING,
	KIND_ACCEPT,
	KIND_CLOSE,
	KIND_LISTEN,
	KIND_BIND,
	KIND_SEND,
	KIND_SNAPSHOT,
	KIND_RELEASE,
	KIND_CGROUP_MADE,
	KIND_CGROUP_REMOVED,
	KIND_PROGRAM,
};

enum confidence {
	NOBODY = 0, /* the rest of the process means nothing */
	EXACT,
	READER,
	SNAPSHOT,
	INHERITED,
};

/* Which end opened a connection. */
enum opened {
	UNKNOWN = 0,
	OPENED,
	ACCEPTED,
};

struct process {
	__u64 start_boottime; /* of the thread group's leader: tells processes with the same number apart */
	__u64 cgroup;
	__u32 pid;
	__u32 tid;
	__u32 uid; /* effective */
	__u16 confidence;
	__u16 execs; /* low bits of how often it, and those it was forked from, have executed a program */
	char comm[16];
	char leader_comm[16];
};

/* Every record begins with a __u32 that is its kind. Ports are in host order, addresses in network order. */
struct socket_record {
	__u32 kind;
	__s32 error; /* of a failed connect, or what ended a connection; an errno */
	__u64 monotonic;
	__u64 cookie;
	struct process process;
	__u64 sent; /* payload, of a connection that ended; as the members below */
	__u64 received;
	__u32 network_namespace;
	__u16 local_port;
	__u16 remote_port;
	__u8 local[16];
	__u8 remote[16];
	__u8 family;
	__u8 protocol;
	__u8 opened; /* of a connection that ended or was found open: enum opened */
	__u8 padding;
	__u32 rtt_usec; /* smoothed; 0 where it is not known */
	__u32 retransmissions;
	__u32 connect_usec; /* from the SYN to the connection's establishment, by the end that opened it; else 0 */
};

_Static_assert(sizeof(struct process) == 64 && sizeof(struct socket_record) == 160, "what record.rs asserts too");

#define PATH_BYTES 4096

struct cgroup_record {
	__u32 kind;
	__u32 padding;
	__u64 id;
	char path[PATH_BYTES]; /* none in the record of a removed group; the record ends with the text's zero */
};

/* No more names are added once a path is longer than this, of which the reader keeps the end. */
#define PROGRAM_ENOUGH 128
#define NAME_BYTES 256

struct program_record {
	__u32 kind;
	__u32 pid;
	__u64 start_boottime;
	__u16 execs;
	__u8 is_cut; /* the path begins above the last name */
	__u8 padding;
	__u32 length;				 /* of the names */
	char names[PROGRAM_ENOUGH + NAME_BYTES]; /* the program's own first, then its directories', each with its zero */
};

_Static_assert(sizeof(struct program_record) == 408, "what record.rs asserts too");

/* One for each group of processors, in an array that user space maps. */
#define COUNTER_SLOTS 64

struct counters {
	__u64 written;	  /* records */
	__u64 dropped;	  /* records, because the ring was full */
	__u64 no_storage; /* a socket's owner could not be noted */
	__u64 no_owner;	  /* an event of a socket whose owner had not been noted */
	__u64 unused[4];  /* fills the cache line */
};

#endif
