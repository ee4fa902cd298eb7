/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What all programs share: the maps, the process that runs, a socket's owner, records. */
#ifndef COMMON_H
#define COMMON_H

/* What is noted of a socket, and kept with it by the kernel for as long as it lives. */
struct owner {
	struct process process;
	__u32 closed;	    /* its close has been reported */
	__u32 sent_to;	    /* UDP: a digest of the ends of the last datagram that was reported */
	__u64 sent_at;	    /* UDP: and when */
	__u64 syn_at;	    /* TCP: when the SYN was sent */
	__u32 connect_usec; /* TCP: how long it took to be established */
	__u8 opened;	    /* TCP: enum opened */
	__u8 is_attempt;    /* TCP: what it connects to is noted (attempt.h) */
	__u16 asked_port;   /* UDP: where the thread `asked_by` sends to, until it has */
	__u32 asked_by;
	__u8 asked_family;
	__u8 asked[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 << 20);
} records SEC(".maps");

/* CLONE: a socket that comes in begins with its listener's owner. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct owner);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, COUNTER_SLOTS);
	__type(key, __u32);
	__type(value, struct counters);
} statistics SEC(".maps");

/* Network namespaces by cookie: programs of cgroups learn the cookie and not the inode. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, __u32);
} namespaces SEC(".maps");

static __always_inline struct counters *counters(void)
{
	__u32 slot = bpf_get_smp_processor_id() % COUNTER_SLOTS;

	return bpf_map_lookup_elem(&statistics, &slot);
}

#define COUNT(member)                                                \
	do {                                                         \
		struct counters *slot = counters();                  \
		if (slot)                                            \
			__sync_fetch_and_add(&slot->member, 1);      \
	} while (0)

/* Whether a thread of the kernel runs: it works for a process that nobody knows. */
static __always_inline bool is_kernel_thread(void)
{
	return bpf_get_current_task_btf()->flags & PF_KTHREAD;
}

/* The process that runs now: nobody where it is a thread of the kernel. */
static __always_inline void note_current(struct process *process, __u32 confidence)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 ids = bpf_get_current_pid_tgid();

	if (is_kernel_thread()) {
		__builtin_memset(process, 0, sizeof(*process));
		return;
	}
	process->start_boottime = task->group_leader->start_boottime;
	process->cgroup = bpf_get_current_cgroup_id();
	process->pid = ids >> 32;
	process->tid = (__u32)ids;
	process->uid = task->cred->euid.val;
	process->confidence = confidence;
	process->execs = task->self_exec_id;
	bpf_get_current_comm(process->comm, sizeof(process->comm));
	__builtin_memcpy(process->leader_comm, task->group_leader->comm, sizeof(process->leader_comm));
}

static __always_inline void note_namespace(__u64 cookie, __u32 inode)
{
	if (!bpf_map_lookup_elem(&namespaces, &cookie))
		bpf_map_update_elem(&namespaces, &cookie, &inode, BPF_ANY);
}

/* The inode of the namespace with this cookie: the running process's own as a rule, else one that was seen, else 0. */
static __always_inline __u32 namespace_of(__u64 cookie)
{
	struct net *own = bpf_get_current_task_btf()->nsproxy->net_ns;
	__u32 *seen;

	if (own->net_cookie == cookie) {
		note_namespace(cookie, own->ns.inum);
		return own->ns.inum;
	}
	seen = bpf_map_lookup_elem(&namespaces, &cookie);
	return seen ? *seen : 0;
}

static __always_inline void learn_namespace(struct sock *sk)
{
	struct net *net = sk->__sk_common.skc_net.net;

	note_namespace(net->net_cookie, net->ns.inum);
}

static __always_inline struct owner *owner_of(struct sock *sk)
{
	return bpf_sk_storage_get(&owners, sk, NULL, 0);
}

/* The owner of a socket, made of zeros where there was none. */
static __always_inline struct owner *make_owner(struct sock *sk)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!owner)
		COUNT(no_storage);
	return owner;
}

/* A record in the ring, its first members set and the ends zero; NULL and counted where the ring is full. */
static __always_inline struct socket_record *begin(__u32 kind, __u8 protocol, __u8 family)
{
	struct socket_record *record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);

	if (!record) {
		COUNT(dropped);
		return NULL;
	}
	__builtin_memset(record, 0, sizeof(*record));
	record->kind = kind;
	record->monotonic = bpf_ktime_get_ns();
	record->protocol = protocol;
	record->family = family;
	return record;
}

/* Without a flag the kernel wakes the reader only for the first record after it had read all (../src/ring.rs). */
static __always_inline void finish(struct socket_record *record)
{
	bpf_ringbuf_submit(record, 0);
	COUNT(written);
}

static __always_inline void copy_words(__u8 *to, const __be32 *from, int words)
{
#pragma unroll
	for (int i = 0; i < words; i++)
		((__u32 *)to)[i] = from[i];
}

/* The local port outlives skc_num, which is given back before the last change of state. */
static __always_inline __u16 local_port(struct sock *sk)
{
	__u16 port = sk->__sk_common.skc_num;
	struct tcp_sock *tcp;

	if (port || sk->sk_protocol != IPPROTO_TCP)
		return port;
	tcp = bpf_skc_to_tcp_sock(sk);
	return tcp ? bpf_ntohs(tcp->inet_conn.icsk_inet.inet_sport) : 0;
}

static __always_inline void describe(struct socket_record *record, struct sock *sk)
{
	struct sock_common *common = &sk->__sk_common;

	record->cookie = bpf_get_socket_cookie(sk);
	record->network_namespace = common->skc_net.net->ns.inum;
	record->remote_port = bpf_ntohs(common->skc_dport);
	if (common->skc_family == AF_INET) {
		*(__u32 *)record->local = common->skc_rcv_saddr;
		*(__u32 *)record->remote = common->skc_daddr;
	} else {
		copy_words(record->local, common->skc_v6_rcv_saddr.in6_u.u6_addr32, 4);
		copy_words(record->remote, common->skc_v6_daddr.in6_u.u6_addr32, 4);
	}
}

/* A record of a socket by itself; the caller adds what is special and finishes it. */
static __always_inline struct socket_record *begin_for(struct sock *sk, const struct process *process, __u32 kind)
{
	struct socket_record *record = begin(kind, sk->sk_protocol, sk->__sk_common.skc_family);

	if (!record)
		return NULL;
	record->process = *process;
	describe(record, sk);
	record->local_port = local_port(sk);
	return record;
}

static __always_inline void tell(struct sock *sk, const struct process *process, __u32 kind)
{
	struct socket_record *record = begin_for(sk, process, kind);

	if (record)
		finish(record);
}

#endif
