//! Why bytes could not be decoded.

/// What is wrong with one message. It costs that message only: [`Messages`](crate::Messages) goes on with the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// `nlmsg_len` is shorter than its own header or longer than the datagram: what follows cannot be found.
    #[error("nlmsghdr: nlmsg_len is {length}, it has to be 16 to {available}, what the datagram has left")]
    MessageLength {
        /// `nlmsg_len`.
        length: u32,
        /// Bytes left in the datagram, this header included.
        available: usize,
    },
    /// `nla_len` is shorter than its own header or longer than what it is nested in.
    #[error("{within}: nla_len is {length}, it has to be 4 to {available}, what is left")]
    AttributeLength {
        /// The attribute (or message) that holds the broken one.
        within: &'static str,
        /// `nla_len`.
        length: u16,
        /// Bytes left, this header included.
        available: usize,
    },
    /// A payload or a header ends too early.
    #[error("{attribute}: need {need} bytes, got {got}")]
    Truncated {
        /// The attribute, by its name in the kernel's headers.
        attribute: &'static str,
        /// What its type takes.
        need: usize,
        /// What was there.
        got: usize,
    },
    /// A payload is longer than the kernel allows.
    #[error("{attribute}: at most {most} bytes, got {got}")]
    TooLong {
        /// The attribute, by its name in the kernel's headers.
        attribute: &'static str,
        /// What the kernel allows.
        most: usize,
        /// What was there.
        got: usize,
    },
    /// An attribute without which the rest means nothing.
    #[error("{within}: no {attribute}")]
    Missing {
        /// The attribute (or message) that should hold it.
        within: &'static str,
        /// The name of what is not there.
        attribute: &'static str,
    },
    /// IPv4 and IPv6 addresses in one flow.
    #[error("{within}: IPv4 and IPv6 addresses, a flow has one family")]
    MixedFamilies {
        /// The attribute (or message) that holds both.
        within: &'static str,
    },
}

/// An attribute that a message has to have.
#[inline]
pub(crate) fn present<T>(
    value: Option<T>,
    within: &'static str,
    attribute: &'static str,
) -> Result<T, DecodeError> {
    value.ok_or(DecodeError::Missing { within, attribute })
}
