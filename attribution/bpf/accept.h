/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Who accepts, in three ways; the loader takes the first that the kernel has. */

static __always_inline int accepted(struct sock *sk, __u32 confidence)
{
	struct owner *owner = make_owner(sk);

	if (!owner)
		return 0;
	note_current(&owner->process, confidence);
	tell(sk, &owner->process, KIND_ACCEPT);
	return 0;
}

/* 1. The end of the kernel's own accept, which has the socket. Its first two arguments are the same in all kernels. */
SEC("fexit/inet_accept")
int BPF_PROG(accept_exact, struct socket *listener, struct socket *socket)
{
	struct sock *sk = socket->sk;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	return accepted(sk, EXACT);
}

/* 2. The end of the system call, which has the number of a descriptor. The owner is noted by the socket's cookie: a socket that
 * was found by reading (reading.h) has no storage. */
static __always_inline int accepted_by_reading(struct sock *sk)
{
	struct socket_record *record;
	struct process process;
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);
	__u64 cookie;

	if (!sk || (family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	report_program();
	note_current(&process, EXACT);
	cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	if (bpf_map_update_elem(&acceptors, &cookie, &process, BPF_ANY))
		COUNT(no_storage);
	record = begin(KIND_ACCEPT, IPPROTO_TCP, family);
	if (!record)
		return 0;
	record->cookie = cookie;
	record->process = process;
	describe_by_reading(record, sk);
	finish(record);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept")
int accept_syscall(struct syscall_exit *exit)
{
	return exit->result < 0 ? 0 : accepted_by_reading(tcp_by_reading(socket_of(exit->result)));
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int accept4_syscall(struct syscall_exit *exit)
{
	return exit->result < 0 ? 0 : accepted_by_reading(tcp_by_reading(socket_of(exit->result)));
}

/* The kernel's accept of MPTCP: a socket whose first subflow, a TCP socket, is found by reading; or a TCP socket by itself, where
 * the other end speaks no MPTCP. */
SEC("fexit/mptcp_stream_accept")
int BPF_PROG(accept_mptcp, struct socket *listener, struct socket *socket)
{
	struct sock *sk = socket->sk;
	struct owner *owner;

	if (!sk)
		return 0;
	if (sk->sk_protocol == IPPROTO_MPTCP)
		return accepted_by_reading(tcp_by_reading(sk));
	/* Linux 6.1 calls inet_accept for it, which has reported it. */
	owner = owner_of(sk);
	return owner && owner->process.confidence == EXACT ? 0 : accepted(sk, EXACT);
}

/* 3. The first process to read from the connection. */
SEC("tp_btf/tcp_rcv_space_adjust")
int BPF_PROG(accept_reader, struct sock *sk)
{
	struct owner *owner = owner_of(sk);

	if (!owner || owner->process.confidence != INHERITED)
		return 0;
	return accepted(sk, READER);
}
