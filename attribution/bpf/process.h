/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Which program a process runs: the path of its executable, which no helper gives to these programs. It is reported before the process's
 * sockets are, once in a minute and anew after each exec, because it has more bytes than all else that is known of a process. */

#define PROGRAM_REPEAT_NS 60000000000ULL
/* At most this many directories and mounts are walked through. */
#define PATH_STEPS 64

struct program_key {
	__u64 start_boottime;
	__u32 pid;
	__u32 execs;
};

/* When a process's program was reported. The reader keeps at least as many (daemon/src/owners/recent.rs). */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 2048);
	__type(key, struct program_key);
	__type(value, __u64);
} programs SEC(".maps");

static __always_inline struct program_key program_of(struct task_struct *task)
{
	struct program_key key = {
		.start_boottime = task->group_leader->start_boottime,
		.pid = task->tgid,
		.execs = (__u16)task->self_exec_id,
	};

	return key;
}

static __always_inline bool program_reported(const struct program_key *key)
{
	__u64 *last = bpf_map_lookup_elem(&programs, key);

	return last && bpf_ktime_get_ns() - *last < PROGRAM_REPEAT_NS;
}

static __always_inline void note_reported(const struct program_key *key)
{
	__u64 now = bpf_ktime_get_ns();

	bpf_map_update_elem(&programs, key, &now, BPF_ANY);
}

static __always_inline void describe_program(struct program_record *record, const struct program_key *key)
{
	record->kind = KIND_PROGRAM;
	record->pid = key->pid;
	record->start_boottime = key->start_boottime;
	record->execs = key->execs;
	record->is_cut = 0;
	record->padding = 0;
	record->length = 0;
}

static __always_inline struct mount *mount_of(struct vfsmount *view)
{
	return (void *)view - bpf_core_field_offset(struct mount, mnt);
}

/* Reads the names of a path into a record, from the file up to the root of its mount namespace, and returns how many bytes they have.
 *
 * It is global, so that the verifier looks at it once by itself: within a program its loop is verified for every state that the
 * program can be in, twenty times as many instructions. The file comes as a number, as a global function takes no kernel pointer. */
__attribute__((noinline)) int read_program(struct program_record *record, __u64 executable)
{
	struct file *file = (void *)executable;
	struct dentry *dentry;
	struct mount *mount;
	__u64 length = 0;

	if (!record || !file)
		return 0;
	dentry = BPF_CORE_READ(file, f_path.dentry);
	mount = mount_of(BPF_CORE_READ(file, f_path.mnt));
	record->is_cut = 1;
#pragma clang loop unroll(disable)
	for (int step = 0; step < PATH_STEPS; step++) {
		struct dentry *parent;
		__u64 at;
		long added;

		if (dentry == BPF_CORE_READ(mount, mnt.mnt_root)) {
			struct mount *outer = BPF_CORE_READ(mount, mnt_parent);

			if (outer == mount) {
				record->is_cut = 0;
				break;
			}
			dentry = BPF_CORE_READ(mount, mnt_mountpoint);
			mount = outer;
			continue;
		}
		parent = BPF_CORE_READ(dentry, d_parent);
		/* A file without a directory, such as a memfd, is its own parent and has a name. */
		if (parent == dentry && length) {
			record->is_cut = 0;
			break;
		}
		if (length >= PROGRAM_ENOUGH)
			break;
		/* Linux 6.1 does not remember the bound over the comparison: a mask that the compiler may not leave out repeats it. */
		at = length;
		asm volatile("" : "+r"(at));
		at &= PROGRAM_ENOUGH - 1;
		added = bpf_probe_read_kernel_str(record->names + at, NAME_BYTES, BPF_CORE_READ(dentry, d_name.name));
		if (added <= 0)
			break;
		length += added;
		dentry = parent;
	}
	record->length = length;
	return length;
}

/* Reports the program of the process that runs, if that was not done lately. */
static __always_inline void report_program(void)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct program_key key = program_of(task);
	struct program_record *record;

	if (is_kernel_thread() || program_reported(&key))
		return;
	record = bpf_ringbuf_reserve(&records, sizeof(*record), 0);
	if (!record) {
		COUNT(dropped);
		return;
	}
	describe_program(record, &key);
	note_reported(&key);
	if (read_program(record, (__u64)BPF_CORE_READ(task, mm, exe_file)) > 0) {
		bpf_ringbuf_submit(record, 0);
		COUNT(written);
	} else {
		bpf_ringbuf_discard(record, 0);
	}
}

/* A process makes a socket. */
SEC("cgroup/sock_create")
int program_opens(struct bpf_sock *sk)
{
	report_program();
	return 1;
}

/* A process accepts, which may have been given its listener: reported at the begin of the call, before whom it accepts. */
SEC("fentry/inet_accept")
int BPF_PROG(program_accepts)
{
	report_program();
	return 0;
}
