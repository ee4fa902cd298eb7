//! What became of an expectation.

use ctnetlink::{EventKind, Tuple};
use flowbus_interfaces::{Expectation, Flow};

/// What became of an expectation. It is not a flow: it has no number, is not kept, and is sent to those who listen just then.
#[derive(Clone, Debug)]
pub(crate) struct ExpectationEvent {
    /// New or destroyed; the kernel sends no updates.
    pub(crate) kind: EventKind,
    tuple: Tuple,
    pub(crate) expectation: Expectation,
}

impl ExpectationEvent {
    pub(crate) fn new(kind: EventKind, expectation: &ctnetlink::Expectation<'_>) -> Self {
        Self { kind, tuple: expectation.tuple, expectation: expectation.into() }
    }

    /// The flow that is waited for, as far as it is known.
    pub(crate) fn flow(&self) -> Flow<'_> {
        Flow { helper: self.expectation.helper.as_deref(), ..Flow::new(0, self.tuple, self.tuple) }
    }
}
