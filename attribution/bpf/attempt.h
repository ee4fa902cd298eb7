/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Connections that were asked for and came to nothing. TCP's changes of state report only those that failed once the SYN had left.
 * Where connect() or sendto() returns the error itself, the end of the call has it, and by then the socket does not say what was
 * asked for. So that is noted at the begin of the call, by the socket's cookie, which every end of a call can find, and it stays until
 * what became of it has been reported. The kernel skips a program while it has the same one interrupted on that processor: what a
 * change of state did not report, the end of the call reports; what neither reported, the next connect or the release of the socket. */

#define REPEAT_NS 10000000000ULL

struct attempt {
	struct process process;
	__u8 local[16];
	__u8 remote[16];
	__u16 local_port;
	__u16 remote_port;
	__u8 family;
	__u8 protocol;
	__u8 is_over; /* TCP: it has failed, whatever the call returns */
	__u8 padding;
};

/* Attempts by cookie. Those that no end of a call comes for are evicted as the least recently used. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 4096);
	__type(key, __u64);
	__type(value, struct attempt);
} attempts SEC(".maps");

/* Where a datagram of an unconnected socket goes, or one of any socket that could not be sent (cookie 0). */
struct destination {
	__u64 cookie;
	__u8 remote[16];
	__u16 remote_port;
	__u16 local_port;
	__u32 program; /* see running() */
};

/* Tells the program that a process runs from all others for some seconds: the kernel's pids have 22 bits. */
static __always_inline __u32 running(__u32 pid, __u16 execs)
{
	return pid | (__u32)execs << 22;
}

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct destination);
	__type(value, __u64);
} told SEC(".maps");

static __always_inline bool told_lately(const struct destination *destination)
{
	__u64 now = bpf_ktime_get_ns();
	__u64 *last = bpf_map_lookup_elem(&told, destination);

	if (last && now - *last < REPEAT_NS)
		return true;
	bpf_map_update_elem(&told, destination, &now, BPF_ANY);
	return false;
}

static __always_inline bool failure_told_lately(const struct attempt *attempt)
{
	struct destination destination = {};

	__builtin_memcpy(destination.remote, attempt->remote, sizeof(destination.remote));
	destination.remote_port = attempt->remote_port;
	destination.program = running(attempt->process.pid, attempt->process.execs);
	return told_lately(&destination);
}

static __always_inline void tell_failure(const struct attempt *attempt, __u64 cookie, __u32 network_namespace, __u32 error)
{
	struct socket_record *record;

	if (attempt->protocol == IPPROTO_UDP && failure_told_lately(attempt))
		return;
	record = begin(KIND_CONNECT_FAILED, attempt->protocol, attempt->family);
	if (!record)
		return;
	record->error = error;
	record->cookie = cookie;
	record->process = attempt->process;
	record->network_namespace = network_namespace;
	record->local_port = attempt->local_port;
	record->remote_port = attempt->remote_port;
	__builtin_memcpy(record->local, attempt->local, sizeof(record->local));
	__builtin_memcpy(record->remote, attempt->remote, sizeof(record->remote));
	finish(record);
}

static __always_inline void note_attempt(__u64 cookie, const struct attempt *attempt)
{
	if (bpf_map_update_elem(&attempts, &cookie, attempt, BPF_ANY))
		COUNT(no_storage);
}

/* Whether the connection goes on without the call: a signal came, or nobody waits. The socket's state then says what becomes of it. */
static __always_inline bool goes_on(__u32 error)
{
	return error == EINPROGRESS || error == EALREADY || error == EISCONN || error == EINTR ||
	       (error >= ERESTARTSYS && error <= ERESTART_RESTARTBLOCK);
}

/* Whether a TCP socket in this state still connects, whatever a call returned: its state will say what becomes of that. */
static __always_inline bool is_connecting(const struct attempt *attempt, __u32 state)
{
	return attempt->protocol == IPPROTO_TCP && (state == TCP_SYN_SENT || state == TCP_SYN_RECV);
}

/* A call that can connect a socket has ended with this result, and left the socket in this state. */
static __always_inline void end_attempt(__u64 cookie, __u32 network_namespace, __u32 state, long result)
{
	struct attempt *attempt = bpf_map_lookup_elem(&attempts, &cookie);
	__u32 error = result < 0 ? -result : 0;

	if (!attempt || is_connecting(attempt, state))
		return;
	if (goes_on(error))
		error = 0;
	if (error || attempt->is_over)
		tell_failure(attempt, cookie, network_namespace, error);
	bpf_map_delete_elem(&attempts, &cookie);
}

/* The socket connects again, or is released. An attempt that is still noted and does not go on has ended, and no program saw it. The
 * error is not known any more. */
static __always_inline void end_unseen_attempt(void *context, struct bpf_sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie(context);
	struct attempt *attempt = bpf_map_lookup_elem(&attempts, &cookie);
	bool failed;

	if (!attempt || is_connecting(attempt, sk->state))
		return;
	failed = attempt->protocol == IPPROTO_TCP ? sk->state == TCP_CLOSE : sk->dst_port != bpf_htons(attempt->remote_port);
	if (failed)
		tell_failure(attempt, cookie, namespace_of(bpf_get_netns_cookie(context)), 0);
	bpf_map_delete_elem(&attempts, &cookie);
}

/* True where it is noted what this socket connects to. */
static __always_inline bool is_attempt(struct sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	return bpf_map_lookup_elem(&attempts, &cookie) != NULL;
}

/* Notes the local end, whose port the kernel has chosen by now. */
static __always_inline void note_local_end(const struct socket_record *record)
{
	__u64 cookie = record->cookie;
	struct attempt *attempt = bpf_map_lookup_elem(&attempts, &cookie);

	if (!attempt)
		return;
	attempt->local_port = record->local_port;
	__builtin_memcpy(attempt->local, record->local, sizeof(attempt->local));
}

/* Forgets an attempt when what became of it has been reported. */
static __always_inline void forget_attempt(struct sock *sk)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	bpf_map_delete_elem(&attempts, &cookie);
}

/* A connection attempt is over, and the call that runs now will return the error. */
static __always_inline void await_error(struct sock *sk, const struct process *process)
{
	struct sock_common *common = &sk->__sk_common;
	struct attempt attempt = {
		.process = *process,
		.local_port = local_port(sk),
		.remote_port = bpf_ntohs(common->skc_dport),
		.family = common->skc_family,
		.protocol = IPPROTO_TCP,
		.is_over = 1,
	};

	if (attempt.family == AF_INET) {
		*(__u32 *)attempt.local = common->skc_rcv_saddr;
		*(__u32 *)attempt.remote = common->skc_daddr;
	} else {
		copy_words(attempt.local, common->skc_v6_rcv_saddr.in6_u.u6_addr32, 4);
		copy_words(attempt.remote, common->skc_v6_daddr.in6_u.u6_addr32, 4);
	}
	note_attempt(bpf_get_socket_cookie(sk), &attempt);
}
