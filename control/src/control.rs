//! The interface org.flowbus.FlowControl1.

use std::sync::{Arc, Mutex, PoisonError};

use ctnetlink::{EventMasks, Socket, SocketError, dump_request};
use flowbus_interfaces::{
    ChangeOptions, CpuStatistics, Error, Expectation, Filter, KernelState, RawQuery, Subject,
};
use zbus::message::Header;
use zbus::{Connection, interface};

use crate::caller::{Action, Caller, Permitted};
use crate::table::{self, Answer, Change};
use crate::wait::Wait;
use crate::worker::Worker;

/// The object that serves org.flowbus.FlowControl1.
#[derive(Clone, Debug)]
pub(crate) struct FlowControl {
    permitted: Permitted,
    worker: Worker,
    /// What is known of the kernel's rules.
    masks: Arc<Mutex<EventMasks>>,
    wait: Arc<Wait>,
}

impl FlowControl {
    pub(crate) fn new(permitted: Permitted, worker: Worker, wait: Arc<Wait>) -> Self {
        Self { permitted, worker, masks: Arc::default(), wait }
    }

    fn kernel_state(&self) -> KernelState {
        let mut masks = self.masks.lock().unwrap_or_else(PoisonError::into_inner);
        ctnetlink::KernelState::read(&mut masks).into()
    }

    /// Changes flows.
    async fn change(
        &self,
        connection: &Connection,
        header: &Header<'_>,
        action: Action,
        change: Change,
        [query, options]: [&RawQuery; 2],
    ) -> Result<Answer, Error> {
        let caller = Caller::of(connection, header).await?;
        // What cannot be done is refused before anybody is asked for a password.
        let filter = Filter::of_change(query, Subject::Flows)?;
        let options = ChangeOptions::parse(options)?;
        caller.authorize(connection, header, action).await?;
        let uid = caller.uid;
        self.worker.run(move |end| table::change_flows(&filter, change, options, uid, end)).await?
    }
}

#[interface(name = "org.flowbus.FlowControl1")]
impl FlowControl {
    /// Sends one request for a dump of the connection tracking table on the passed socket, a netlink socket of
    /// the netfilter protocol, with `sequence` as its nlmsg_seq. The replies come on the socket, and so does a
    /// refusal by the kernel (EBUSY while an earlier dump is not read to its end). For the daemon's user alone.
    ///
    /// `filter` has no key yet; an unknown one is InvalidArgument, as is any other kind of descriptor.
    async fn request_dump(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        socket: zbus::OwnedFd,
        sequence: u32,
        filter: RawQuery,
    ) -> Result<(), Error> {
        self.permitted.check_daemon(&Caller::of(connection, &header).await?)?;
        if let Some(key) = filter.keys().next() {
            return Err(Error::InvalidArgument(format!(
                "filter.{key}: no such key; the filter has to be empty"
            )));
        }
        // The descriptor comes from another process: nothing is written to it before it is known what it is.
        let socket = Socket::from_fd(socket.into())
            .map_err(|error| Error::InvalidArgument(format!("socket: {error}")))?;
        socket.send(&dump_request(sequence, None)).map_err(|error| not_sent(&error))?;
        tracing::debug!(sequence, "a dump was requested");
        Ok(())
    }

    /// The state of the kernel's connection tracking, in the host's network namespace. For the daemon's user alone.
    ///
    /// Keys: `count` u and `maximum` u (flows in the table), `accounting` b and `timestamping` b (new flows count
    /// packets, note their time), `events` y (nf_conntrack_events: 0 none, 1 all flows, 2 those made while somebody
    /// listens), `early_drop`, `drop`, `insert_failed`, `clash_resolve` and `chain_toolong` t (as GetCpuStatistics counts
    /// them since boot, of all CPUs), `event_masks` s (where a rule masks events). What is not known is absent, as is
    /// `event_masks` where no rule does.
    #[zbus(out_args("state"))]
    async fn get_kernel_state(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<KernelState, Error> {
        self.permitted.check_daemon(&Caller::of(connection, &header).await?)?;
        Ok(self.kernel_state())
    }

    /// The state that GetKernelState returns, once flows may exist that no event reports: where nf_conntrack_events is 0 or
    /// a rule masks events. For the daemon's user alone.
    ///
    /// The answer comes after 300 s at the latest, or when this method is called again: there is one waiting call. Waiting
    /// takes no CPU time. Unavailable where settings and rules cannot be watched.
    #[zbus(out_args("state"))]
    async fn await_kernel_state(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<KernelState, Error> {
        self.permitted.check_daemon(&Caller::of(connection, &header).await?)?;
        self.wait.until(|| self.kernel_state().may_hide_flows()).await?;
        Ok(self.kernel_state())
    }

    /// Ends the flows that match, in the host's network namespace. For root, and users to whom polkit grants
    /// org.flowbus.control.delete.
    ///
    /// `query` is a query as ListActive takes it, without the keys that only the daemon knows (`id`, `pid`, `comm`, `uid`,
    /// `unit`, `container`, `pod`, `exe`, `since`, `until`, `interface`) and those that are no filter; `source` takes
    /// patchpanel's names and numbers. An empty one is InvalidArgument. `options`: `dry_run` b (false) changes nothing;
    /// `limit` u (10000, at most 1000000) is the most flows that are changed.
    ///
    /// `result`: `matched` u is the sum of `deleted` u, `gone` u and `failed` u, but in a dry run; `more` b is true where the
    /// limit was met, else absent; `flows` aa{sv}, of a dry run, are those that matched, without `id`, at most 1000. A flow
    /// is `gone` if it ended meanwhile, also if another flow has its tuple by then, which is left alone. If that flow got
    /// the same conntrack_id, as often happens when a tuple is reused at once, the kernel cannot distinguish the two. A flow
    /// is `failed` if the kernel refuses. If flowbus-control is terminated meanwhile, as by an upgrade, it stops at the next
    /// flow: Unavailable says how many were done and how many are left.
    #[zbus(out_args("result"))]
    async fn delete_flows(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
        options: RawQuery,
    ) -> Result<Answer, Error> {
        self.change(connection, &header, Action::Delete, Change::Delete, [&query, &options]).await
    }

    /// Sets bits of the mark of the flows that match: those of `mask` become those of `mark`, the others stay. For root,
    /// and users to whom polkit grants org.flowbus.control.set-mark.
    ///
    /// `query`, `options` and `result` are as those of DeleteFlows, with `changed` u in place of `deleted`. InvalidArgument if
    /// `mask` is 0 or `mark` has bits outside it. Just before each change, flowbus-control checks that the flow is still the
    /// one that matched: the kernel does not compare the id of a change.
    #[zbus(out_args("result"))]
    async fn set_mark(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
        mark: u32,
        mask: u32,
        options: RawQuery,
    ) -> Result<Answer, Error> {
        if mask == 0 {
            return Err(Error::InvalidArgument("mask takes 1 to 4294967295: 0 would change nothing".into()));
        }
        if mark & !mask != 0 {
            let text = format!("mark takes bits of the mask alone, {mark:#x} has others than {mask:#x}");
            return Err(Error::InvalidArgument(text));
        }
        let change = Change::Mark { value: mark, mask };
        self.change(connection, &header, Action::SetMark, change, [&query, &options]).await
    }

    /// Sets the timeout of the flows that match: the seconds without traffic after which they end. The next packet sets a new
    /// one. For root, and users to whom polkit grants org.flowbus.control.set-timeout.
    ///
    /// `query`, `options` and `result` are as those of SetMark. 0 ends a flow at once, or at the kernel's next round.
    #[zbus(out_args("result"))]
    async fn set_timeout(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
        seconds: u32,
        options: RawQuery,
    ) -> Result<Answer, Error> {
        let change = Change::Timeout { seconds };
        self.change(connection, &header, Action::SetTimeout, change, [&query, &options]).await
    }

    /// Ends every flow of the host's network namespace. `confirm` must be true. For root, and users to whom polkit grants
    /// org.flowbus.control.flush.
    async fn flush_flows(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        confirm: bool,
    ) -> Result<(), Error> {
        let caller = Caller::of(connection, &header).await?;
        if !confirm {
            return Err(Error::InvalidArgument("confirm takes true: this ends every flow".into()));
        }
        caller.authorize(connection, &header, Action::Flush).await?;
        let uid = caller.uid;
        self.worker.run(move |_| table::flush(uid)).await?
    }

    /// The expectations of the host's network namespace that match: connections that a helper expects because another
    /// one, their master, announced them, and that have not begun yet. For root, and users to whom polkit grants
    /// org.flowbus.control.list-expectations. More than 10000 are LimitExceeded.
    ///
    /// `query` takes `family`, `protocol`, `src`, `dst`, `sport`, `dport` (of the connection that is waited for), `zone` and
    /// `helper`, as ListActive does; empty, all are listed.
    ///
    /// Keys: `expectation_id` u; `family` s, `protocol` s, `protocol_number` y, `src` s, `sport` q, `dst` s, `dport` q: what the
    /// first packet looks like, where `mask_src` s, `mask_sport` q, `mask_dst` s and `mask_dport` q have ones;
    /// `master_protocol` s, `master_src` s, `master_sport` q, `master_dst` s, `master_dport` q: the master's original
    /// direction; `zone` q; `timeout` u (s, left); `helper` s; `flags` as (permanent, inactive, userspace); `class` u; `function` s;
    /// `nat_direction` s (original, reply), `nat_src` s, `nat_sport` q: the translation that is prepared for it.
    #[zbus(out_args("expectations"))]
    async fn list_expectations(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
    ) -> Result<Vec<Expectation>, Error> {
        let caller = Caller::of(connection, &header).await?;
        let filter = Filter::of_kernel(&query, Subject::Expectations)?;
        caller.authorize(connection, &header, Action::ListExpectations).await?;
        self.worker.run(move |_| table::list_expectations(&filter)).await?
    }

    /// Deletes the expectations that match: connections that were expected become ordinary ones. For root, and users to whom
    /// polkit grants org.flowbus.control.delete-expectations.
    ///
    /// `query` is as that of ListExpectations, but an empty one is InvalidArgument; `options` and `result` are as those of
    /// DeleteFlows, but a dry run has no `flows`.
    #[zbus(out_args("result"))]
    async fn delete_expectations(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
        query: RawQuery,
        options: RawQuery,
    ) -> Result<Answer, Error> {
        let caller = Caller::of(connection, &header).await?;
        let filter = Filter::of_change(&query, Subject::Expectations)?;
        let options = ChangeOptions::parse(&options)?;
        caller.authorize(connection, &header, Action::DeleteExpectations).await?;
        let uid = caller.uid;
        self.worker.run(move |end| table::delete_expectations(&filter, options, uid, end)).await?
    }

    /// What each CPU has counted since boot, in the host's network namespace. For root and the group of the daemon's user.
    ///
    /// Keys, all u: `cpu` (its number), `found`, `invalid`, `insert`, `insert_failed`, `drop`, `early_drop`, `error`,
    /// `search_restart`, `clash_resolve`, `chain_toolong`. They wrap at 2^32; what the kernel does not count is 0.
    #[zbus(out_args("statistics"))]
    async fn get_cpu_statistics(
        &self,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<CpuStatistics>, Error> {
        self.permitted.check_reader(&Caller::of(connection, &header).await?)?;
        self.worker.run(|_| table::cpu_statistics()).await?
    }
}

fn not_sent(error: &SocketError) -> Error {
    Error::Unavailable(format!("the dump request could not be sent: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::object_server::Interface;

    #[tokio::test]
    async fn the_published_xml_is_what_the_object_says_of_itself() {
        let worker = Worker::start(1).await.unwrap();
        let wait = Arc::new(Wait::new());
        let control = FlowControl::new(Permitted::named("root").unwrap(), worker, wait);
        let mut said = String::new();
        control.introspect_to_writer(&mut said, 2);
        // The published one has annotations for generators besides.
        let published: Vec<_> = flowbus_interfaces::FLOW_CONTROL_XML
            .lines()
            .filter(|line| !line.contains("<annotation name=\"org."))
            .collect();
        assert!(published.join("\n").contains(said.trim_end()), "{said}");
    }
}
