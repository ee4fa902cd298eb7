/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* What is open already, in every process and every network namespace. Read once, after the other programs are attached: what
 * they note is surer, and stays. */

static __always_inline void note_holder(struct process *process, struct task_struct *task)
{
	process->start_boottime = task->group_leader->start_boottime;
	process->cgroup = task->cgroups->dfl_cgrp->kn->id;
	process->pid = task->tgid;
	process->tid = task->pid;
	process->uid = task->cred->euid.val;
	process->confidence = SNAPSHOT;
	process->execs = task->self_exec_id;
	__builtin_memcpy(process->comm, task->comm, sizeof(process->comm));
	__builtin_memcpy(process->leader_comm, task->group_leader->comm, sizeof(process->leader_comm));
}

static __always_inline bool is_followed(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return (family == AF_INET || family == AF_INET6) && (sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_UDP);
}

/* Too large for a program's stack. One is enough: an iterator's file is read by one process at a time. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct program_record);
} program_scratch SEC(".maps");

/* Writes the program of a socket's holder. */
static __always_inline long write_program(struct seq_file *seq, struct task_struct *task, const struct program_key *key)
{
	__u32 first = 0;
	struct program_record *record = bpf_map_lookup_elem(&program_scratch, &first);

	if (!record)
		return 0;
	describe_program(record, key);
	if (read_program(record, (__u64)BPF_CORE_READ(task, mm, exe_file)) <= 0)
		return 0;
	return bpf_seq_write(seq, record, sizeof(*record));
}

static __always_inline int open_socket(struct bpf_iter__task_file *context, bool by_reading)
{
	/* Read once: the verifier remembers of a variable that it is not NULL, and not of a member. */
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct socket_record record = {};
	struct owner owner = {};
	struct program_key key;
	struct socket *socket;
	struct sock *sk;
	bool fresh;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_followed(sk))
		return 0;

	/* Before the socket comes its holder's program. If either does not fit, the kernel takes both back and runs this again for the same
	 * file: so the program has been reported only when the socket has been, too. */
	key = program_of(task);
	fresh = by_reading && !program_reported(&key);
	if (fresh && write_program(context->meta->seq, task, &key))
		return 0;
	note_holder(&owner.process, task);
	if (!bpf_sk_storage_get(&owners, sk, &owner, BPF_LOCAL_STORAGE_GET_F_CREATE))
		COUNT(no_storage);
	learn_namespace(sk);

	record.kind = KIND_SNAPSHOT;
	record.monotonic = bpf_ktime_get_ns();
	record.protocol = sk->sk_protocol;
	record.family = sk->__sk_common.skc_family;
	record.process = owner.process;
	describe(&record, sk);
	record.local_port = sk->__sk_common.skc_num;
	if (!bpf_seq_write(context->meta->seq, &record, sizeof(record)) && fresh)
		note_reported(&key);
	return 0;
}

SEC("iter/task_file")
int open_sockets(struct bpf_iter__task_file *context)
{
	return open_socket(context, true);
}

/* For kernels whose memory may not be read. */
SEC("iter/task_file")
int open_sockets_plain(struct bpf_iter__task_file *context)
{
	return open_socket(context, false);
}
