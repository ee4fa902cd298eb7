// SPDX-License-Identifier: MIT OR GPL-2.0
/* A socket filter for a socket that listens to conntrack's events: it copies each message into a ring and drops it, so that nobody has
 * to receive it by a system call. What finds no room goes to the socket's own queue, whole and counted, and so does everything
 * behind it until the reader has read the queue: ../src/events/mod.rs tells why that keeps the order.
 *
 * It never trims a message: other listeners share it. ../src/events/load.rs loads one of the two programs, which differ in how they learn
 * who sent the message. */

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u32 __wsum;
typedef _Bool bool;
#define NULL ((void *)0)

enum { BPF_F_MMAPABLE = 1 << 10 };
enum { BPF_RB_NO_WAKEUP = 1 << 0, BPF_RB_FORCE_WAKEUP = 1 << 1 };
enum bpf_map_type { BPF_MAP_TYPE_ARRAY = 2, BPF_MAP_TYPE_RINGBUF = 27 };
#define __ksym __attribute__((section(".ksyms")))
/* linux/bpf.h, whose first member is all that is read by it. */
struct __sk_buff {
	__u32 len;
};

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct sk_buff {
	char cb[48];
};
struct netlink_skb_parms {
	__u32 portid;
};

#pragma clang attribute pop

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} messages SEC(".maps");

/* What filter and reader say to each other. A cache line for each of them, because the filter runs on all processors. */
struct control {
	__u64 passed; /* by the filter: how many messages went to the queue */
	__u64 unused[7];
	__u64 taken; /* by the reader: how many messages of the queue it has done with */
	__u64 unused_too[7];
	__u64 sleeping; /* set by the reader, cleared by the filter that wakes it */
	__u64 unused_as_well[7];
	__u64 mark; /* by the reader, to know the ring again */
	__u64 layout; /* by the loader: the version of this and of the records */
	__u64 ring_bytes; /* by the loader: the ring's size */
	__u64 unused_at_last[5];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct control);
} control SEC(".maps");

/* A record: the length of the message, then the message, and what is left of the size. */
#define HEAD 8

enum { DROP = 0, WHOLE = -1 };
enum { NLMSG_HEADER = 16 };

/* Leaves the message to the queue. From here on `passed` is not `taken`, and nothing goes to the ring. */
static __always_inline int pass(struct control *control)
{
	/* With its result in use the addition is a barrier, too: who sees this message dropped sees it counted. */
	volatile __u64 before = __sync_fetch_and_add(&control->passed, 1);

	(void)before;
	return WHOLE;
}

static __always_inline int put(struct __sk_buff *skb, __u64 length, const __u32 size, struct control *control)
{
	__u8 *record = bpf_ringbuf_reserve(&messages, HEAD + size, 0);
	__u64 wake = BPF_RB_NO_WAKEUP;

	if (!record)
		return pass(control);
	*(__u64 *)record = length;
	if (bpf_skb_load_bytes(skb, 0, record + HEAD, length)) {
		bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
		return pass(control);
	}
	/* Atomic, and with it a barrier behind the reservation: the reader sets `sleeping` and then looks for a reservation. */
	if (__sync_lock_test_and_set(&control->sleeping, 0))
		wake = BPF_RB_FORCE_WAKEUP;
	bpf_ringbuf_submit(record, wake);
	return DROP;
}

static __always_inline struct control *controls(void)
{
	__u32 first = 0;

	return bpf_map_lookup_elem(&control, &first);
}

static __always_inline int filter(struct __sk_buff *skb, __u32 port)
{
	struct control *control = controls();
	__u64 length = skb->len;

	if (!control)
		return WHOLE;
	/* Of a process, as the queue will say, too: what is in the ring is of the kernel. It is not counted, because it may come here
	 * twice, or be refused by the queue without being counted as dropped. Its place among the events means nothing. */
	if (port)
		return WHOLE;
	if (*(volatile __u64 *)&control->passed != *(volatile __u64 *)&control->taken)
		return pass(control);
	/* No message is shorter. The verifier of Linux 6.1 learns from this that the length is not 0, as long as the compiler does not make one
	 * comparison of this and the next. */
	if (length < NLMSG_HEADER)
		return pass(control);
	asm volatile("" : "+r"(length));
	/* The sizes of reservations are constants. */
	if (length <= 192)
		return put(skb, length, 192, control);
	if (length <= 256)
		return put(skb, length, 256, control);
	if (length <= 384)
		return put(skb, length, 384, control);
	if (length <= 768)
		return put(skb, length, 768, control);
	return pass(control);
}

/* The port of the sender by the kernel's own type of the buffer: bpf_cast_to_kern_ctx (Linux 6.2), called by hand, because aya does not
 * resolve functions of the kernel: the loader puts the function's number in the place of KERNEL_FUNCTION. */
#define KERNEL_FUNCTION "0x776f6c66"

SEC("socket")
int events_by_type(struct __sk_buff *skb)
{
	struct sk_buff *buffer;
	__u8 *port;

	asm volatile("r1 = %1\n"
		     ".byte 0x85, 0x20, 0, 0\n"
		     ".long " KERNEL_FUNCTION "\n"
		     "%0 = r0"
		     : "=r"(buffer)
		     : "r"(skb)
		     : "r0", "r1", "r2", "r3", "r4", "r5");
	/* The control block is an array of characters, of which the verifier allows to read one at a time. */
	port = (__u8 *)buffer->cb + bpf_core_field_offset(struct netlink_skb_parms, portid);
	return filter(skb, port[0] | port[1] | port[2] | port[3]);
}

/* The port of the sender by reading the kernel's memory by address, which lockdown=confidentiality forbids. */
SEC("socket")
int events_by_reading(struct __sk_buff *skb)
{
	__u32 port = ~0;
	__u32 place = bpf_core_field_offset(struct sk_buff, cb) + bpf_core_field_offset(struct netlink_skb_parms, portid);

	if (bpf_probe_read_kernel(&port, sizeof(port), (void *)skb + place)) {
		struct control *control = controls();

		return control ? pass(control) : WHOLE; /* the queue will say whose it is */
	}
	return filter(skb, port);
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";

/* What the object was made of; ./compile has the recipe. */
char SOURCE[] SEC("source_hash") = SOURCE_HASH;
