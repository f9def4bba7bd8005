//! Frames that wait for their next hop's link-layer address, as the datapath hands them over.

use super::ring::Ring;
use super::{Datapath, Result};
use forwarder_ebpf::abi::{HELD_FRAME_BYTES, HeldFrame, names};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use zerocopy::{FromBytes, IntoBytes};

/// One frame that waits.
#[derive(Clone, Debug)]
pub struct Held {
    /// Interface that it came by.
    pub ingress: u32,
    /// Interface that it is to leave by.
    pub egress: u32,
    /// Whose link-layer address is needed.
    pub next_hop: IpAddr,
    /// As it came.
    pub frame: Vec<u8>,
}

/// The ring that they come through.
#[derive(Debug)]
pub struct HeldFrames(Ring);

impl Datapath {
    /// The ring of held frames; there is one reader. To be called on a runtime with I/O.
    ///
    /// # Errors
    /// When it was taken before, or cannot be mapped into memory.
    pub fn take_held_frames(&self) -> Result<HeldFrames> {
        Ring::take(self, names::HELD).map(HeldFrames)
    }
}

impl HeldFrames {
    /// Waits for a frame. May be cancelled.
    ///
    /// # Errors
    /// When the ring cannot be waited for.
    pub async fn next_frame(&mut self) -> Result<Held> {
        self.0.next(parse).await
    }
}

fn parse(record: &[u8]) -> Option<Held> {
    let record = HeldFrame::read_from_bytes(record).ok()?;
    let length = usize::try_from(record.length).ok().filter(|length| *length <= HELD_FRAME_BYTES)?;
    let address = record.next_hop.as_bytes();
    let next_hop = match record.family {
        6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(address).ok()?)),
        _ => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(address.get(..4)?).ok()?)),
    };
    let frame = record.frame.get(..length)?.to_vec();
    Some(Held { ingress: record.ingress, egress: record.egress, next_hop, frame })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_gives_frame_and_next_hop() {
        let mut record = HeldFrame {
            ingress: 2,
            length: 3,
            next_hop: [u32::from_ne_bytes([192, 0, 2, 1]), 0, 0, 0],
            egress: 3,
            family: 4,
            frame: [7; HELD_FRAME_BYTES],
        };
        let held = parse(record.as_bytes()).expect("a whole record");
        assert_eq!((held.next_hop, held.frame.as_slice()), ("192.0.2.1".parse().expect("an address"), &[7, 7, 7][..]));
        record.length = HELD_FRAME_BYTES as u32 + 1;
        assert!(parse(record.as_bytes()).is_none());
        assert!(parse(&record.as_bytes()[1..]).is_none());
    }
}
