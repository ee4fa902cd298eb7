/* SPDX-License-Identifier: MIT OR GPL-2.0 */
/* The addresses of a network namespace. A UDP socket without an address of its own sends from one of them, which the kernel chooses
 * after the last program that sees the datagram. */

/* The namespace whose flows are tracked, which the loader fills in: the reader knows its addresses. */
const volatile __u32 tracked_namespace;

/* At most this many interfaces and addresses are read, together. */
#define ADDRESS_STEPS 16

struct addresses4 {
	struct list_head *interfaces, *interface;
	struct in_ifaddr *address;
	bool all_read;
};

struct addresses6 {
	struct list_head *interfaces, *interface;
	struct list_head *addresses, *address;
	bool all_read;
};

/* The running process's namespace, where it is the one with this cookie and not the tracked one. */
static __always_inline struct net *other_namespace(__u64 cookie)
{
	struct net *own = bpf_get_current_task_btf()->nsproxy->net_ns;

	return own->net_cookie == cookie && own->ns.inum != tracked_namespace ? own : NULL;
}

static __always_inline struct net_device *interface_at(struct list_head *link)
{
	return (void *)link - bpf_core_field_offset(struct net_device, dev_list);
}

/* One step through the IPv4 addresses of a namespace: the next one, or 0 where the step led to another interface. */
static __always_inline __be32 next_address4(struct addresses4 *walk)
{
	/* What BPF_CORE_READ begins at is a variable: members on the way to it would be looked up in the kernel's types, too. */
	struct list_head *interface = walk->interface;
	struct in_ifaddr *address = walk->address;
	struct in_device *device;

	if (address) {
		walk->address = BPF_CORE_READ(address, ifa_next);
		return BPF_CORE_READ(address, ifa_local);
	}
	if (interface == walk->interfaces) {
		walk->all_read = true;
		return 0;
	}
	device = BPF_CORE_READ(interface_at(interface), ip_ptr);
	walk->address = device ? BPF_CORE_READ(device, ifa_list) : NULL;
	walk->interface = BPF_CORE_READ(interface, next);
	return 0;
}

/* One step through the IPv6 addresses of a namespace; false where the step led to another interface. */
static __always_inline bool next_address6(struct addresses6 *walk, struct in6_addr *address)
{
	struct list_head *interface = walk->interface, *link = walk->address;
	struct inet6_ifaddr *found;
	struct inet6_dev *device;

	if (link != walk->addresses) {
		found = (void *)link - bpf_core_field_offset(struct inet6_ifaddr, if_list);
		BPF_CORE_READ_INTO(address, found, addr);
		walk->address = BPF_CORE_READ(link, next);
		return true;
	}
	if (interface == walk->interfaces) {
		walk->all_read = true;
		return false;
	}
	device = BPF_CORE_READ(interface_at(interface), ip6_ptr);
	walk->addresses = device ? &device->addr_list : NULL;
	walk->address = device ? BPF_CORE_READ(device, addr_list.next) : NULL;
	walk->interface = BPF_CORE_READ(interface, next);
	return false;
}

static __always_inline bool is_loopback4(__be32 address)
{
	return bpf_ntohl(address) >> 24 == 127;
}

static __always_inline bool is_loopback6(const __be32 *address)
{
	return !address[0] && !address[1] && !address[2] && address[3] == bpf_htonl(1);
}

static __always_inline bool is_link_local6(const __be32 *address)
{
	return (address[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}
