/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Calls that connect: what they ask for, and how they end. The loader takes the functions of the kernel or, where it has no way to
 * their ends, the system call and io_uring; the begin only where it has an end. */

/* Fills in what both families have in common; false where the call is not reported. */
static __always_inline bool ask(struct attempt *attempt, struct bpf_sock_addr *address, struct bpf_sock *sk)
{
	if (!sk || (address->protocol != IPPROTO_TCP && address->protocol != IPPROTO_UDP) || is_kernel_thread())
		return false;
	end_unseen_attempt(address, sk);
	note_current(&attempt->process, EXACT);
	attempt->protocol = address->protocol;
	attempt->local_port = sk->src_port;
	attempt->remote_port = bpf_ntohs(address->user_port);
	return true;
}

SEC("cgroup/connect4")
int connect_asked4(struct bpf_sock_addr *address)
{
	struct bpf_sock *sk = address->sk;
	struct attempt attempt = {};

	if (!ask(&attempt, address, sk))
		return 1;
	attempt.family = AF_INET;
	*(__u32 *)attempt.local = sk->src_ip4;
	*(__u32 *)attempt.remote = address->user_ip4;
	note_attempt(bpf_get_socket_cookie(address), &attempt);
	return 1;
}

SEC("cgroup/connect6")
int connect_asked6(struct bpf_sock_addr *address)
{
	struct bpf_sock *sk = address->sk;
	struct attempt attempt = {};

	if (!ask(&attempt, address, sk))
		return 1;
	attempt.family = AF_INET6;
	copy_words(attempt.local, sk->src_ip6, 4);
	copy_words(attempt.remote, address->user_ip6, 4);
	note_attempt(bpf_get_socket_cookie(address), &attempt);
	return 1;
}

static __always_inline int connect_ended(struct sock *sk, long result)
{
	struct sock_common *common;

	if (!sk)
		return 0;
	common = &sk->__sk_common;
	end_attempt(bpf_get_socket_cookie(sk), common->skc_net.net->ns.inum, common->skc_state, result);
	return 0;
}

SEC("fexit/inet_stream_connect")
int BPF_PROG(connect_stream, struct socket *socket, struct sockaddr *address, int length, int flags, int result)
{
	return connect_ended(socket->sk, result);
}

SEC("fexit/inet_dgram_connect")
int BPF_PROG(connect_datagram, struct socket *socket, struct sockaddr *address, int length, int flags, int result)
{
	return connect_ended(socket->sk, result);
}

/* TCP Fast Open connects by sending; needed where no tracepoint reports its end (udp_sent). */
SEC("fexit/tcp_sendmsg_fastopen")
int BPF_PROG(connect_fastopen, struct sock *sk, struct msghdr *message, int *copied, unsigned long size, void *buffer, int result)
{
	return connect_ended(sk, result);
}

static __always_inline int connect_ended_by_reading(struct sock *sk, long result)
{
	struct sock *tcp = tcp_by_reading(sk);
	__u64 cookie = BPF_CORE_READ(tcp, __sk_common.skc_cookie.counter);

	if (cookie)
		end_attempt(cookie, BPF_CORE_READ(tcp, __sk_common.skc_net.net, ns.inum),
			    BPF_CORE_READ(tcp, __sk_common.skc_state), result);
	return 0;
}

/* MPTCP asks for its first subflow, which is found by reading. */
SEC("fexit/mptcp_connect")
int BPF_PROG(connect_mptcp, struct sock *sk, struct sockaddr *address, int length, int result)
{
	return connect_ended_by_reading(sk, result);
}

SEC("tracepoint/syscalls/sys_exit_connect")
int connect_syscall(struct syscall_exit *exit)
{
	struct pt_regs *registers = (struct pt_regs *)bpf_task_pt_regs(bpf_get_current_task_btf());
	long descriptor;

	if (exit->result == -EBADF || exit->result == -ENOTSOCK)
		return 0;
	if (bpf_core_field_exists(struct pt_regs___x86, di))
		descriptor = BPF_CORE_READ((struct pt_regs___x86 *)registers, di);
	else if (bpf_core_field_exists(struct pt_regs___arm64, orig_x0))
		descriptor = BPF_CORE_READ((struct pt_regs___arm64 *)registers, orig_x0);
	else
		return 0;
	return connect_ended_by_reading(socket_of((__u32)descriptor), exit->result);
}

/* The arguments are those of Linux since about 6.15. */
SEC("tp_btf/io_uring_complete")
int BPF_PROG(connect_io_uring, void *ring, void *request, struct io_uring_cqe *completion)
{
	struct io_kiocb *asked = request;
	long result = completion->res;

	/* The rest is for what can be the end of a connect. */
	if (result > 0 || !request || BPF_CORE_READ(asked, opcode) != IORING_OP_CONNECT)
		return 0;
	return connect_ended_by_reading(sock_of(BPF_CORE_READ(asked, file)), result);
}
