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

/* 2. The end of the system call, which has the number of a descriptor. The way from there to the socket goes through an array
 * that only a reader of kernel memory can index, and what it finds may not be used to note an owner: that goes by the cookie. */
static __always_inline struct sock *socket_of(long descriptor)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct file **files = BPF_CORE_READ(task, files, fdt, fd);
	struct file *file = NULL;
	struct socket *socket;

	if (bpf_probe_read_kernel(&file, sizeof(file), files + descriptor) || !file)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	return BPF_CORE_READ(socket, sk);
}

static __always_inline void describe_by_reading(struct socket_record *record, struct sock *sk)
{
	record->network_namespace = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	record->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	record->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (record->family == AF_INET) {
		*(__u32 *)record->local = BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr);
		*(__u32 *)record->remote = BPF_CORE_READ(sk, __sk_common.skc_daddr);
	} else {
		BPF_CORE_READ_INTO(&record->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&record->remote, sk, __sk_common.skc_v6_daddr);
	}
}

static __always_inline int accept_returned(long descriptor)
{
	struct socket_record *record;
	struct process process;
	struct sock *sk;
	__u16 family;
	__u64 cookie;

	if (descriptor < 0)
		return 0;
	sk = socket_of(descriptor);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (!sk || (family != AF_INET && family != AF_INET6) || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
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
	return accept_returned(exit->result);
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int accept4_syscall(struct syscall_exit *exit)
{
	return accept_returned(exit->result);
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
