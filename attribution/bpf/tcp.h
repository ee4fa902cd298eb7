/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* TCP: every change of state of a socket. The owner is noted while the process that asks is the one that runs; what happens to
 * the socket later, mostly in whatever process an interrupt meets, is reported for that owner. */

/* Processes that accepted, by the socket's cookie, where the program that saw it cannot reach the socket's own storage. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, struct process);
} acceptors SEC(".maps");

/* Which acceptor is known for a socket that came in; NULL where there is none, or another one is known. */
static __always_inline struct process *acceptor_of(struct sock *sk, const struct owner *owner)
{
	__u64 cookie = bpf_get_socket_cookie(sk);

	return owner->process.confidence == INHERITED ? bpf_map_lookup_elem(&acceptors, &cookie) : NULL;
}

/* A process connects or listens. */
static __always_inline int opened(struct sock *sk, int state)
{
	struct owner *owner = make_owner(sk);

	if (!owner)
		return 0;
	note_current(&owner->process, EXACT);
	/* A socket can connect anew after it was disconnected. */
	owner->closed = 0;
	owner->connect_usec = 0;
	owner->syn_at = bpf_ktime_get_ns();
	owner->opened = state == TCP_LISTEN ? UNKNOWN : OPENED;
	owner->is_attempt = state != TCP_LISTEN && is_attempt(sk);
	learn_namespace(sk);
	if (state == TCP_LISTEN)
		tell(sk, &owner->process, KIND_LISTEN);
	return 0;
}

static __always_inline int connected(struct sock *sk, struct owner *owner)
{
	struct process nobody = {};
	struct socket_record *record;

	if (!owner) {
		COUNT(no_owner);
	} else {
		owner->connect_usec = (bpf_ktime_get_ns() - owner->syn_at) / 1000;
		owner->is_attempt = 0;
	}
	forget_attempt(sk);
	record = begin_for(sk, owner ? &owner->process : &nobody, KIND_CONNECT);
	if (!record)
		return 0;
	if (owner)
		record->connect_usec = owner->connect_usec;
	finish(record);
	return 0;
}

static __always_inline int established(struct sock *sk, int old)
{
	struct process nobody = {};
	struct owner *owner = owner_of(sk);

	/* Where both ends connect at once the state before it is that of a connection that comes in. */
	if (old == TCP_SYN_SENT || (owner && owner->opened == OPENED))
		return connected(sk, owner);
	if (!owner || owner->process.confidence == NOBODY)
		COUNT(no_owner);
	else if (owner->opened != ACCEPTED)
		owner->process.confidence = INHERITED;
	if (owner)
		owner->opened = ACCEPTED;
	tell(sk, owner ? &owner->process : &nobody, KIND_INCOMING);
	return 0;
}

static __always_inline bool is_shut_down(struct sock *sk)
{
	return (sk->sk_shutdown & SHUTDOWN_MASK) == SHUTDOWN_MASK;
}

static __always_inline int connect_failed(struct sock *sk, struct owner *owner)
{
	struct process nobody = {};
	struct socket_record *record;

	if (!owner)
		COUNT(no_owner);
	/* No error came from the network, and the process does not close the socket: the call that runs now has given up. */
	if (owner && owner->is_attempt && !sk->sk_err && !is_shut_down(sk)) {
		await_error(sk, &owner->process);
		return 0;
	}
	record = begin_for(sk, owner ? &owner->process : &nobody, KIND_CONNECT_FAILED);
	if (!record)
		return 0;
	record->error = sk->sk_err;
	finish(record);
	forget_attempt(sk);
	return 0;
}

/* The owner as it is known best: an inherited one gives way to the process that accepted. */
static __always_inline void best_owner(struct sock *sk, struct owner *owner, struct process *process)
{
	__u64 cookie = bpf_get_socket_cookie(sk);
	struct process *acceptor = acceptor_of(sk, owner);

	*process = owner->process;
	if (!acceptor)
		return;
	*process = *acceptor;
	bpf_map_delete_elem(&acceptors, &cookie);
}

/* Whether the process that runs now closes the connection: close, exit, or shutdown of what was still open. */
static __always_inline bool closes_itself(struct sock *sk, int old, int state)
{
	return is_shut_down(sk) && (state != TCP_CLOSE || old == TCP_ESTABLISHED || old == TCP_CLOSE_WAIT);
}

/* What the other end has acknowledged and, where the connection ends in order, what is still on its way to it. The kernel counts a
 * SYN and a FIN as a byte each. */
static __always_inline __u64 payload_sent(struct tcp_sock *tcp, const struct owner *owner, int old, int state)
{
	__u32 unacknowledged = tcp->write_seq - tcp->snd_una;
	bool fin_sent = old != TCP_ESTABLISHED && old != TCP_CLOSE_WAIT && old != TCP_SYN_RECV;
	__u64 sent = tcp->bytes_acked;

	if (owner->opened == OPENED && sent)
		sent--;
	if (state != TCP_CLOSE)
		return sent + unacknowledged;
	return sent && fin_sent && !unacknowledged ? sent - 1 : sent;
}

static __always_inline __u64 payload_received(struct sock *sk, struct tcp_sock *tcp)
{
	bool fin = sk->__sk_common.skc_flags & (1UL << SOCK_DONE);

	return fin && tcp->bytes_received ? tcp->bytes_received - 1 : tcp->bytes_received;
}

static __always_inline void tell_close(struct sock *sk, const struct owner *owner, const struct process *process, int old,
				       int state, int error)
{
	struct tcp_sock *tcp = bpf_skc_to_tcp_sock(sk);
	struct socket_record *record = begin_for(sk, process, KIND_CLOSE);

	if (!record)
		return;
	record->error = error;
	record->opened = owner->opened;
	record->connect_usec = owner->connect_usec;
	if (tcp) {
		record->sent = payload_sent(tcp, owner, old, state);
		record->received = payload_received(sk, tcp);
		record->rtt_usec = tcp->srtt_us >> 3;
		record->retransmissions = tcp->total_retrans;
	}
	finish(record);
}

/* A connection ends, which is reported once: by the first change of state that shows it.
 *
 * Who ended it is seen from sk_shutdown, because the process that runs may be anybody's. close(), exit and a shutdown of both directions
 * set both bits first and then change the state, in the process that asks for it: to FIN_WAIT1 or LAST_ACK, or to CLOSE at once where data
 * was left unread or nothing shall linger. The process that runs is the one that closes then. When the other end, the network or a timer
 * ends the connection, an interrupt changes the state to CLOSE before the bits are set (tcp_done), and the owner is reported.
 *
 * A shutdown of sending alone ends nothing. Once the other end's FIN has come both bits are set in an interrupt, too: what tells that
 * change to CLOSE from a close is the state before, which is neither ESTABLISHED nor CLOSE_WAIT.
 *
 * `closed` keeps later changes, such as FIN_WAIT1 to CLOSE, from being reported again. It lies with the owner, so a socket that has none
 * gets an empty one here. */
static __always_inline int closed(struct sock *sk, int old, int state)
{
	struct owner *owner = make_owner(sk);
	struct process process;

	if (!owner || owner->closed)
		return 0;
	/* Nobody saw that it was established. */
	if (owner->is_attempt) {
		owner->is_attempt = 0;
		forget_attempt(sk);
	}
	if (closes_itself(sk, old, state)) {
		best_owner(sk, owner, &process);
		/* A thread of the kernel closes for the process that had it. */
		if (!is_kernel_thread())
			note_current(&process, EXACT);
		owner->closed = 1;
		tell_close(sk, owner, &process, old, state, 0);
	} else if (state == TCP_CLOSE) {
		/* Reset, given up, or half closed before and now ended by the other side. */
		best_owner(sk, owner, &process);
		owner->closed = 1;
		tell_close(sk, owner, &process, old, state, sk->sk_err);
	}
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(tcp_state, struct sock *sk, int old, int state)
{
	struct owner *owner;

	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (state == TCP_SYN_SENT || state == TCP_LISTEN)
		return opened(sk, state);
	if (state == TCP_ESTABLISHED)
		return established(sk, old);
	if (state != TCP_FIN_WAIT1 && state != TCP_LAST_ACK && state != TCP_CLOSE)
		return 0;
	if (old == TCP_LISTEN) {
		struct process process;

		note_current(&process, EXACT);
		tell(sk, &process, KIND_RELEASE);
		return 0;
	}
	if (old == TCP_SYN_SENT)
		return connect_failed(sk, owner_of(sk));
	if (old == TCP_SYN_RECV && state == TCP_CLOSE) {
		owner = owner_of(sk);
		if (owner && owner->opened == OPENED)
			return connect_failed(sk, owner);
	}
	/* Never established, as far as anything was reported. */
	if (old == TCP_CLOSE || (old == TCP_SYN_RECV && state == TCP_CLOSE))
		return 0;
	return closed(sk, old, state);
}

/* MPTCP adds subflows by itself, in a thread of the kernel or in an interrupt: they are of the process that has the first one. */
static __always_inline bool note_first_subflows(struct owner *owner, struct bpf_sock *sk)
{
	struct mptcp_sock *connection = bpf_skc_to_mptcp_sock(sk);
	struct process *acceptor;
	struct owner *other;
	struct sock *first;

	if (!connection)
		return false;
	first = connection->first;
	if (!first)
		return false;
	other = bpf_sk_storage_get(&owners, first, NULL, 0);
	if (!other || other == owner || other->process.confidence == NOBODY)
		return false;
	acceptor = NULL;
	if (other->process.confidence == INHERITED) {
		__u64 cookie = first->__sk_common.skc_cookie.counter;

		acceptor = bpf_map_lookup_elem(&acceptors, &cookie);
	}
	owner->process = acceptor ? *acceptor : other->process;
	return true;
}

/* The SYN is about to leave. At ->SYN_SENT the port was not chosen yet. */
SEC("sockops")
int tcp_connect(struct bpf_sock_ops *ops)
{
	struct bpf_sock *sk = ops->sk;
	struct socket_record *record;
	struct owner *owner;

	if ((ops->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ops->op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) || !sk)
		return 1;
	owner = bpf_sk_storage_get(&owners, sk, NULL, 0);
	if (ops->op == BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB) {
		/* It is established right after. */
		if (owner && owner->opened == UNKNOWN && note_first_subflows(owner, sk))
			owner->opened = ACCEPTED;
		return 1;
	}
	if (!owner) {
		COUNT(no_owner);
		return 1;
	}
	owner->syn_at = bpf_ktime_get_ns();
	if (owner->process.confidence == NOBODY)
		note_first_subflows(owner, sk);
	record = begin(KIND_SYN, IPPROTO_TCP, ops->family);
	if (!record)
		return 1;
	record->cookie = bpf_get_socket_cookie(ops);
	record->network_namespace = namespace_of(bpf_get_netns_cookie(ops));
	record->process = owner->process;
	record->local_port = ops->local_port;
	record->remote_port = bpf_ntohl(ops->remote_port);
	if (ops->family == AF_INET) {
		*(__u32 *)record->local = ops->local_ip4;
		*(__u32 *)record->remote = ops->remote_ip4;
	} else {
		__u32 *local = (__u32 *)record->local, *remote = (__u32 *)record->remote;

		/* One by one: the verifier takes members of a context by constant offsets only. */
		local[0] = ops->local_ip6[0];
		local[1] = ops->local_ip6[1];
		local[2] = ops->local_ip6[2];
		local[3] = ops->local_ip6[3];
		remote[0] = ops->remote_ip6[0];
		remote[1] = ops->remote_ip6[1];
		remote[2] = ops->remote_ip6[2];
		remote[3] = ops->remote_ip6[3];
	}
	note_local_end(record);
	finish(record);
	return 1;
}
