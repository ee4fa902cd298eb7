//! Any bytes as a datagram: no panic, an end, what the decoder promises of what it accepts, and the same from one that
//! remembers the layouts of the fixtures.
#![no_main]

use std::sync::LazyLock;

use ctnetlink::{DecodeError, Decoder, Message, messages};
use libfuzzer_sys::fuzz_target;

/// A decoder that knows the kinds that the seeds have.
static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let mut decoder = Decoder::default();
    for datagram in [
        &include_bytes!("../../ctnetlink/fixtures/tcp4-events.bin")[..],
        include_bytes!("../../ctnetlink/fixtures/tcp4-established-dump.bin"),
        include_bytes!("../../ctnetlink/fixtures/tcp6-udp6-icmp-events.bin"),
        include_bytes!("../../ctnetlink/fixtures/udp4-plain-events.bin"),
        include_bytes!("../../ctnetlink/fixtures/zones-events.bin"),
    ] {
        decoder.messages(datagram).for_each(drop);
    }
    decoder
});

fuzz_target!(|datagram: &[u8]| {
    let mut at = 0;
    for item in messages(datagram) {
        let rest = &datagram[at..];
        if matches!(item, Err(DecodeError::MessageLength { .. })) {
            at = datagram.len();
            continue;
        }
        let length = u32::from_ne_bytes(rest[..4].try_into().expect("the decoder saw a header")) as usize;
        assert!((16..=rest.len()).contains(&length), "a message has a header and ends in the datagram");
        // A message means the same whatever is before and behind it.
        let mut alone = messages(&rest[..length]);
        assert_eq!(alone.next(), Some(item.clone()));
        assert_eq!(alone.next(), None);
        at = (at + length.next_multiple_of(4)).min(datagram.len());

        if let Ok(Message::Flow(_, _, flow)) = item {
            let family = flow.original.family();
            assert!(flow.original.dst.is_ipv4() == flow.original.src.is_ipv4());
            assert!(flow.reply.family() == family && flow.reply.dst.is_ipv4() == flow.reply.src.is_ipv4());
            assert!(flow.labels.is_none_or(|labels| labels.len() <= 16));
            assert!(flow.helper.is_none_or(|name| !name.contains(&0)));
            assert!(flow.security_context.is_none_or(|context| !context.contains(&0)));
        }
    }
    assert_eq!(at, datagram.len(), "nothing is left over");

    let mut decoder = DECODER.clone();
    assert!(decoder.messages(datagram).eq(messages(datagram)), "layouts of the fixtures fit");
    assert!(decoder.messages(datagram).eq(messages(datagram)), "layouts of these messages fit");
});
