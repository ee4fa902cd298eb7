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
	__builtin_memcpy(process->comm, task->comm, sizeof(process->comm));
	__builtin_memcpy(process->leader_comm, task->group_leader->comm, sizeof(process->leader_comm));
}

static __always_inline bool is_followed(struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	return (family == AF_INET || family == AF_INET6) && (sk->sk_protocol == IPPROTO_TCP || sk->sk_protocol == IPPROTO_UDP);
}

SEC("iter/task_file")
int open_sockets(struct bpf_iter__task_file *context)
{
	/* Read once: the verifier remembers of a variable that it is not NULL, and not of a member. */
	struct task_struct *task = context->task;
	struct file *file = context->file;
	struct socket_record record = {};
	struct owner owner = {};
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || !is_followed(sk))
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
	bpf_seq_write(context->meta->seq, &record, sizeof(record));
	return 0;
}
