/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* UDP: who sends where, reported once in ten seconds, and who serves. */

/* The record of a datagram to `destination`; the caller adds the local address and finishes it. */
static __always_inline struct socket_record *begin_send(struct bpf_sock_addr *address, const struct destination *destination,
							 __u8 family)
{
	struct socket_record *record = begin(KIND_SEND, IPPROTO_UDP, family);

	if (!record)
		return NULL;
	note_current(&record->process, EXACT);
	record->cookie = destination->cookie;
	record->network_namespace = namespace_of(bpf_get_netns_cookie(address));
	record->local_port = destination->local_port;
	record->remote_port = destination->remote_port;
	__builtin_memcpy(record->remote, destination->remote, sizeof(record->remote));
	return record;
}

static __always_inline void aim(struct destination *destination, struct bpf_sock_addr *address, struct bpf_sock *sk)
{
	destination->cookie = bpf_get_socket_cookie(address);
	destination->program = running(bpf_get_current_pid_tgid() >> 32, bpf_get_current_task_btf()->self_exec_id);
	destination->local_port = sk->src_port;
	destination->remote_port = bpf_ntohs(address->user_port);
}

/* Notes where a datagram goes until it has been sent. The storage that this takes has the end of the socket reported, too:
 * socket_release does so for sockets that have it. */
static __always_inline void follow(struct bpf_sock *sk, const struct destination *destination, __u8 family)
{
	struct owner *owner = bpf_sk_storage_get(&owners, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!owner) {
		COUNT(no_storage);
		return;
	}
	owner->asked_by = (__u32)bpf_get_current_pid_tgid();
	owner->asked_port = destination->remote_port;
	owner->asked_family = family;
	__builtin_memcpy(owner->asked, destination->remote, sizeof(owner->asked));
}

/* Reports a datagram from each address that its namespace has; false where these are not all known, or are those of the tracked
 * namespace, which need no record each. */
static __always_inline bool tell_from_each4(struct bpf_sock_addr *address, const struct destination *destination)
{
	struct net *net = other_namespace(bpf_get_netns_cookie(address));
	struct addresses4 walk = {};
	bool told = false;

	if (!net || is_loopback4(*(__be32 *)destination->remote))
		return false;
	walk.interfaces = &net->dev_base_head;
	walk.interface = BPF_CORE_READ(net, dev_base_head.next);
#pragma clang loop unroll(disable)
	for (int step = 0; step < ADDRESS_STEPS && !walk.all_read; step++) {
		__be32 local = next_address4(&walk);

		if (local && !is_loopback4(local)) {
			struct socket_record *record = begin_send(address, destination, AF_INET);

			if (record) {
				*(__be32 *)record->local = local;
				finish(record);
			}
			told = true;
		}
	}
	return told && walk.all_read;
}

static __always_inline bool tell_from_each6(struct bpf_sock_addr *address, const struct destination *destination)
{
	struct net *net = other_namespace(bpf_get_netns_cookie(address));
	const __be32 *remote = (const __be32 *)destination->remote;
	struct addresses6 walk = {};
	bool told = false;

	if (!net || is_loopback6(remote))
		return false;
	walk.interfaces = &net->dev_base_head;
	walk.interface = BPF_CORE_READ(net, dev_base_head.next);
#pragma clang loop unroll(disable)
	for (int step = 0; step < ADDRESS_STEPS && !walk.all_read; step++) {
		struct in6_addr local;

		if (next_address6(&walk, &local) && !is_loopback6(local.in6_u.u6_addr32) &&
		    (!is_link_local6(local.in6_u.u6_addr32) || is_link_local6(remote))) {
			struct socket_record *record = begin_send(address, destination, AF_INET6);

			if (record) {
				copy_words(record->local, local.in6_u.u6_addr32, 4);
				finish(record);
			}
			told = true;
		}
	}
	return told && walk.all_read;
}

/* A datagram of an unconnected socket. `address->msg_src_ip4` is what the socket is bound to, or what this call asks for. */
static __always_inline int sends4(struct bpf_sock_addr *address, bool by_reading)
{
	struct destination destination = {};
	struct bpf_sock *sk = address->sk;
	__be32 source = address->msg_src_ip4;
	struct socket_record *record;

	if (!sk || address->protocol != IPPROTO_UDP)
		return 1;
	aim(&destination, address, sk);
	*(__u32 *)destination.remote = address->user_ip4;
	if (is_kernel_thread())
		return 1;
	follow(sk, &destination, AF_INET);
	if (told_lately(&destination))
		return 1;
	if (by_reading) {
		/* It may have been given its socket. */
		report_program();
		if (!source && tell_from_each4(address, &destination))
			return 1;
	}
	record = begin_send(address, &destination, AF_INET);
	if (!record)
		return 1;
	*(__be32 *)record->local = source;
	finish(record);
	return 1;
}

static __always_inline int sends6(struct bpf_sock_addr *address, bool by_reading)
{
	struct destination destination = {};
	struct bpf_sock *sk = address->sk;
	struct socket_record *record;
	__be32 source[4];

	if (!sk || address->protocol != IPPROTO_UDP)
		return 1;
	copy_words((__u8 *)source, address->msg_src_ip6, 4);
	aim(&destination, address, sk);
	copy_words(destination.remote, address->user_ip6, 4);
	if (is_kernel_thread())
		return 1;
	follow(sk, &destination, AF_INET6);
	if (told_lately(&destination))
		return 1;
	if (by_reading) {
		report_program();
		if (!(source[0] | source[1] | source[2] | source[3]) && tell_from_each6(address, &destination))
			return 1;
	}
	record = begin_send(address, &destination, AF_INET6);
	if (!record)
		return 1;
	copy_words(record->local, source, 4);
	finish(record);
	return 1;
}

SEC("cgroup/sendmsg4")
int udp_send4(struct bpf_sock_addr *address)
{
	return sends4(address, true);
}

SEC("cgroup/sendmsg6")
int udp_send6(struct bpf_sock_addr *address)
{
	return sends6(address, true);
}

/* For kernels whose memory may not be read. */
SEC("cgroup/sendmsg4")
int udp_send4_plain(struct bpf_sock_addr *address)
{
	return sends4(address, false);
}

SEC("cgroup/sendmsg6")
int udp_send6_plain(struct bpf_sock_addr *address)
{
	return sends6(address, false);
}

/* A digest of a connected socket's ends, so that each connect of one socket is reported. */
static __always_inline __u32 ends(struct sock *sk)
{
	struct sock_common *common = &sk->__sk_common;

	return common->skc_daddr ^ common->skc_v6_daddr.in6_u.u6_addr32[3] ^ ((__u32)common->skc_dport << 16) ^ common->skc_num;
}

/* A connected socket has sent. */
static __always_inline int sent_connected(struct sock *sk)
{
	__u64 now = bpf_ktime_get_ns();
	struct owner *owner = make_owner(sk);
	__u16 execs = bpf_get_current_task_btf()->self_exec_id;

	if (!owner)
		return 0;
	if (owner->process.pid == bpf_get_current_pid_tgid() >> 32 && owner->process.execs == execs && owner->sent_to == ends(sk) &&
	    now - owner->sent_at < REPEAT_NS)
		return 0;
	note_current(&owner->process, EXACT);
	owner->sent_to = ends(sk);
	owner->sent_at = now;
	learn_namespace(sk);
	tell(sk, &owner->process, KIND_SEND);
	return 0;
}

/* Whether a datagram was not sent because there is no way to where it should go, and not because of the call or for want of room. */
static __always_inline bool is_unreachable(__u32 error)
{
	return !goes_on(error) && error != EAGAIN && error != ENOMEM && error != ENOBUFS && error != EFAULT && error != EPIPE &&
	       error != EMSGSIZE && error != EDESTADDRREQ && error != EOPNOTSUPP;
}

/* A datagram could not be sent to the destination that the call named or, without one, to the other end of a connected socket. */
static __always_inline int not_sent(struct sock *sk, const struct owner *asked, __u32 error)
{
	struct sock_common *common = &sk->__sk_common;
	struct attempt attempt = { .family = common->skc_family, .protocol = IPPROTO_UDP, .local_port = common->skc_num };

	if (!is_unreachable(error))
		return 0;
	if (asked) {
		attempt.remote_port = asked->asked_port;
		attempt.family = asked->asked_family;
		__builtin_memcpy(attempt.remote, asked->asked, sizeof(attempt.remote));
	} else if (common->skc_dport && error != EINVAL) {
		attempt.remote_port = bpf_ntohs(common->skc_dport);
		if (attempt.family == AF_INET)
			*(__u32 *)attempt.remote = common->skc_daddr;
		else
			copy_words(attempt.remote, common->skc_v6_daddr.in6_u.u6_addr32, 4);
	} else {
		/* The call was wrong, before anybody noted where it goes. */
		return 0;
	}
	if (attempt.family == AF_INET)
		*(__u32 *)attempt.local = common->skc_rcv_saddr;
	else
		copy_words(attempt.local, common->skc_v6_rcv_saddr.in6_u.u6_addr32, 4);
	note_current(&attempt.process, EXACT);
	tell_failure(&attempt, bpf_get_socket_cookie(sk), common->skc_net.net->ns.inum, error);
	return 0;
}

/* A call that sends a datagram has ended. */
static __always_inline int sent(struct sock *sk, int result)
{
	struct owner *owner;
	bool named;

	if (sk->sk_protocol != IPPROTO_UDP || is_kernel_thread())
		return 0;
	owner = owner_of(sk);
	named = owner && owner->asked_by == (__u32)bpf_get_current_pid_tgid();
	if (result < 0)
		not_sent(sk, named ? owner : NULL, -result);
	if (named)
		owner->asked_by = 0;
	return result < 0 || !sk->__sk_common.skc_dport ? 0 : sent_connected(sk);
}

/* Linux 6.3 and later. */
SEC("tp_btf/sock_send_length")
int BPF_PROG(udp_sent, struct sock *sk, int result, int flags)
{
	/* TCP Fast Open connects by sending. */
	if (sk->sk_protocol == IPPROTO_TCP && result < 0 && result != -EAGAIN && result != -EPIPE)
		return connect_ended(sk, result);
	return sent(sk, result);
}

SEC("fexit/udp_sendmsg")
int BPF_PROG(udp_sent4, struct sock *sk, struct msghdr *message, unsigned long length, int result)
{
	return sent(sk, result);
}

SEC("fexit/udpv6_sendmsg")
int BPF_PROG(udp_sent6, struct sock *sk, struct msghdr *message, unsigned long length, int result)
{
	return sent(sk, result);
}

/* The record of a socket that got a port; the caller adds the address and finishes it. */
static __always_inline struct socket_record *begin_bind(struct bpf_sock *sk, __u8 family)
{
	struct socket_record *record;
	struct owner *owner;

	if (sk->protocol != IPPROTO_UDP)
		return NULL;
	owner = bpf_sk_storage_get(&owners, sk, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!owner) {
		COUNT(no_storage);
		return NULL;
	}
	note_current(&owner->process, EXACT);
	record = begin(KIND_BIND, IPPROTO_UDP, family);
	if (!record)
		return NULL;
	record->process = owner->process;
	record->cookie = bpf_get_socket_cookie(sk);
	record->network_namespace = namespace_of(bpf_get_netns_cookie(sk));
	record->local_port = sk->src_port;
	return record;
}

SEC("cgroup/post_bind4")
int udp_bind4(struct bpf_sock *sk)
{
	struct socket_record *record = begin_bind(sk, AF_INET);

	if (!record)
		return 1;
	*(__u32 *)record->local = sk->src_ip4;
	finish(record);
	return 1;
}

SEC("cgroup/post_bind6")
int udp_bind6(struct bpf_sock *sk)
{
	struct socket_record *record = begin_bind(sk, AF_INET6);

	if (!record)
		return 1;
	copy_words(record->local, sk->src_ip6, 4);
	finish(record);
	return 1;
}

/* UDP: reports the cookie alone, because the kernel gives nobody the ends here. */
SEC("cgroup/sock_release")
int socket_release(struct bpf_sock *sk)
{
	struct socket_record *record;

	end_unseen_attempt(sk, sk);
	if (sk->protocol != IPPROTO_UDP || !bpf_sk_storage_get(&owners, sk, NULL, 0))
		return 1;
	record = begin(KIND_RELEASE, IPPROTO_UDP, sk->family);
	if (!record)
		return 1;
	note_current(&record->process, EXACT);
	record->cookie = bpf_get_socket_cookie(sk);
	record->network_namespace = namespace_of(bpf_get_netns_cookie(sk));
	finish(record);
	return 1;
}
