//! Cuts a whole frame into fragments as a router (IPv4) or a sender (IPv6) does (RFC 791 3.2, RFC 8200 4.5).

use super::{ETHERNET, ip_packet, protocol};

/// The fragments of `frame`, in order, each with an IP packet of at most `mtu` bytes; `id` is used for IPv6 only, an IPv4
/// packet has its own. A frame that fits is returned as it is. IPv6 extension headers are not looked at: the fragment
/// header goes first.
///
/// Panics when `mtu` leaves no room for eight bytes of data, or the frame is not IP.
pub fn fragment(frame: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let packet = ip_packet(frame);
    assert!(!packet.is_empty(), "only IP can be fragmented");
    if packet.len() <= mtu {
        return vec![frame.to_vec()];
    }
    if packet[0] >> 4 == 4 { fragment_v4(frame, packet, mtu) } else { fragment_v6(frame, packet, mtu, id) }
}

fn fragment_v4(frame: &[u8], packet: &[u8], mtu: usize) -> Vec<Vec<u8>> {
    let (header, data) = packet.split_at(usize::from(packet[0] & 15) * 4);
    let room = (mtu.saturating_sub(header.len())) / 8 * 8;
    assert!(room > 0, "an MTU of {mtu} leaves no room");
    pieces(data, room)
        .map(|(offset, piece, more)| {
            let mut header = header.to_vec();
            let length = (header.len() + piece.len()) as u16;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[6..8].copy_from_slice(&((offset / 8) as u16 | u16::from(more) << 13).to_be_bytes());
            header[10..12].fill(0);
            let sum =
                etherparse::Ipv4Header::from_slice(&header).expect("the header was valid").0.calc_header_checksum();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            [&frame[..ETHERNET], &header, piece].concat()
        })
        .collect()
}

fn fragment_v6(frame: &[u8], packet: &[u8], mtu: usize, id: u32) -> Vec<Vec<u8>> {
    let (header, data) = packet.split_at(40);
    let room = (mtu.saturating_sub(40 + 8)) / 8 * 8;
    assert!(room > 0, "an MTU of {mtu} leaves no room");
    pieces(data, room)
        .map(|(offset, piece, more)| {
            let mut fragment = vec![header[6], 0];
            fragment.extend_from_slice(&(offset as u16 | u16::from(more)).to_be_bytes());
            fragment.extend_from_slice(&id.to_be_bytes());
            let mut header = header.to_vec();
            header[4..6].copy_from_slice(&((8 + piece.len()) as u16).to_be_bytes());
            header[6] = protocol::FRAGMENT;
            [&frame[..ETHERNET], &header, &fragment, piece].concat()
        })
        .collect()
}

/// (offset in bytes, bytes, more follow)
fn pieces(data: &[u8], room: usize) -> impl Iterator<Item = (usize, &[u8], bool)> {
    let last = data.len().div_ceil(room) - 1;
    data.chunks(room).enumerate().map(move |(at, piece)| (at * room, piece, at != last))
}

#[cfg(test)]
mod tests {
    use crate::packet::{Packet, Summary, fragment, verify_checksums};

    #[test]
    fn fragments_carry_all_bytes_once() {
        for whole in [
            Packet::between("10.0.0.1", "10.0.0.2").id(77).udp(1, 2).payload_of(3000).build(),
            Packet::between("2001:db8::1", "2001:db8::2").udp(1, 2).payload_of(3000).build(),
        ] {
            let fragments = fragment(&whole, 1280, 77);
            assert_eq!(fragments.len(), 3);
            let mut bytes = Vec::new();
            for (at, frame) in fragments.iter().enumerate() {
                verify_checksums(frame).unwrap();
                let summary = Summary::of(frame).unwrap();
                let (id, offset, more) = summary.fragment.unwrap();
                assert_eq!((id, usize::from(offset), more), (77, bytes.len(), at < 2));
                bytes.extend_from_slice(summary.segment(frame));
            }
            assert_eq!(bytes, Summary::of(&whole).unwrap().segment(&whole));
        }
    }

    #[test]
    fn what_fits_stays_whole() {
        let whole = Packet::between("10.0.0.1", "10.0.0.2").udp(1, 2).payload_of(100).build();
        assert_eq!(fragment(&whole, 128, 0), vec![whole]);
    }
}
