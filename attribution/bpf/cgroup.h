/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* Control groups that come and go: a sandboxed reader cannot look their paths up. */

/* Too large for a program's stack. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cgroup_record);
} scratch SEC(".maps");

/* cgroup2 is the first hierarchy of all. */
static __always_inline bool is_unified(struct cgroup *cgroup)
{
	return cgroup->root->hierarchy_id == 0;
}

static __always_inline void tell_cgroup(__u32 kind, __u64 id, const char *path)
{
	__u32 first = 0;
	struct cgroup_record *record = bpf_map_lookup_elem(&scratch, &first);
	long length = 0;

	if (!record)
		return;
	record->kind = kind;
	record->padding = 0;
	record->id = id;
	if (path)
		length = bpf_probe_read_kernel_str(record->path, sizeof(record->path), path);
	if (length < 0 || length > PATH_BYTES)
		return;
	if (bpf_ringbuf_output(&records, record, __builtin_offsetof(struct cgroup_record, path) + length, 0))
		COUNT(dropped);
	else
		COUNT(written);
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_made, struct cgroup *cgroup, const char *path)
{
	if (is_unified(cgroup))
		tell_cgroup(KIND_CGROUP_MADE, cgroup->kn->id, path);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(cgroup_removed, struct cgroup *cgroup, const char *path)
{
	if (is_unified(cgroup))
		tell_cgroup(KIND_CGROUP_REMOVED, cgroup->kn->id, NULL);
	return 0;
}
