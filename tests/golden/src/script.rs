//! Any bytes as a play of frames and changes in the world of the golden cases. Fuzzer and property tests share it: the one
//! mutates bytes, the other draws them. Most of what is read makes sense, so that flows come to be; the rest does not.

use crate::case::Change;
use crate::world::{ARM, ARM_PUBLIC, ARM_SERVER, CLIENT, CLIENT6, GUEST, IN, OTHER, OUT, PUBLIC, Port};
use crate::world::{SECOND, SERVER, SERVER6, Way, arriving};
use forwarder_ebpf::abi::Control;
use forwarder_ebpf::abi::firewall::switch;
use forwarder_ebpf::tables::Fate;
use forwarder_kit::Packet;
use forwarder_kit::packet::{Summary, fragment, ip_packet, protocol};
use std::net::IpAddr;

/// What happens next.
#[derive(Clone, Debug)]
pub enum Event {
    /// A frame comes in.
    Frame(u32, Vec<u8>),
    /// Something changes.
    Change(Change),
    /// Time goes by.
    Wait(u32),
}

/// Bytes that are read from the front; zeros when they have run out.
pub struct Script<'a> {
    bytes: &'a [u8],
}

impl<'a> Script<'a> {
    /// A script of these bytes.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// Whether all of them were read.
    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.bytes.split_first().unwrap_or((&0, &[]));
        self.bytes = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[usize::from(self.byte()) % all.len()]
    }

    /// The next events. `last` is the last frame that came in, `out` what became of it and where it left.
    pub fn events(&mut self, last: &(u32, Vec<u8>), out: &(u32, Vec<u8>), control: &Control) -> Vec<Event> {
        let (ingress, frame) = last;
        match self.byte() % 16 {
            0 => vec![self.noise()],
            1 => vec![Event::Frame(*ingress, self.damaged(frame))],
            2 => vec![Event::Frame(*ingress, frame.clone())],
            3 | 4 => self.answer(out).into_iter().collect(),
            5 => self.error_about(out).into_iter().collect(),
            6 => self.fragments(last),
            7 => vec![self.change(control)],
            8 => vec![Event::Wait(u32::from(self.byte()))],
            _ => vec![self.packet()],
        }
    }

    /// Bytes that were never a packet, addressed to us.
    fn noise(&mut self) -> Event {
        let ingress = self.one_of(&[IN, OUT, ARM, OTHER]);
        let mut frame = Port::of(ingress).mac(1).to_vec();
        frame.extend_from_slice(&[2; 6]);
        frame.extend_from_slice(&self.one_of(&[[8, 0], [0x86, 0xdd], [8, 6]]));
        frame.push(self.one_of(&[0x45, 0x60, 0x46, 0x4f, 0]));
        let length = usize::from(self.byte());
        frame.extend((0..length).map(|_| self.byte()));
        Event::Frame(ingress, frame)
    }

    fn damaged(&mut self, frame: &[u8]) -> Vec<u8> {
        let mut frame = frame.to_vec();
        for _ in 0..self.byte() % 4 {
            let at = 12 + usize::from(self.byte());
            let byte = self.byte();
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        if self.byte().is_multiple_of(4) {
            frame.truncate(14 + usize::from(self.byte()));
        }
        frame
    }

    /// A packet that may begin a flow.
    fn packet(&mut self) -> Event {
        let ends = [
            (IN, CLIENT, SERVER),
            (IN, SECOND, SERVER),
            (IN, CLIENT, "203.0.113.70"),
            (OUT, SERVER, PUBLIC),
            (OUT, SERVER, CLIENT),
            (ARM, GUEST, ARM_SERVER),
            (ARM, ARM_SERVER, ARM_PUBLIC),
            (IN, CLIENT, "10.0.1.1"),
            (IN, GUEST, "198.51.100.77"),
            (IN, CLIENT6, SERVER6),
            (OUT, SERVER6, CLIENT6),
            (IN, CLIENT, "203.0.113.133"),
            (ARM, GUEST, SERVER),
            (IN, CLIENT, ARM_SERVER),
            (IN, CLIENT6, "2001:db8:40::1"),
            (ARM, GUEST, CLIENT),
        ];
        let (ingress, source, destination) = self.one_of(&ends);
        let mut packet = arriving(ingress, source, destination).ttl(self.one_of(&[64, 64, 64, 1, 2, 255, 0]));
        let v6 = source.contains(':');
        match self.byte() % 8 {
            0 if v6 => packet = packet.extension(self.one_of(&[0, 60, 43]), &[0; 6]),
            1 if v6 => packet = packet.fragment(u32::from(self.byte()), 0, self.byte().is_multiple_of(2)),
            0 => packet = packet.options(&[1; 8]),
            1 => packet = packet.df(),
            2 => packet = packet.trailing(usize::from(self.byte())),
            _ => {}
        }
        if !v6 {
            packet = packet.id(self.word());
        }
        let length = usize::from(self.byte()) * self.one_of(&[0, 1, 6]);
        Event::Frame(ingress, self.transport(packet).payload_of(length).build())
    }

    fn transport(&mut self, packet: Packet) -> Packet {
        let (source, destination) = (self.port(), self.port());
        match self.byte() % 8 {
            0..=2 => packet.udp(source, destination),
            3..=5 => packet.tcp(source, destination, self.byte() & 0x1f, u32::from(self.word())),
            6 if self.byte().is_multiple_of(2) => packet.echo_request(source, self.word()),
            6 => packet.echo_reply(source, self.word()),
            _ => {
                let number = self.one_of(&[50, 47, 132, 136, 33, 1, 58, 6, 17, 0, 44]);
                packet.protocol(number)
            }
        }
    }

    /// Few, so that flows meet.
    fn port(&mut self) -> u16 {
        self.one_of(&[4000, 4001, 4002, 53, 0, 65_535])
    }

    /// What the other end of the last frame that left might say: addresses and ports change places.
    fn answer(&mut self, out: &(u32, Vec<u8>)) -> Option<Event> {
        let (egress, frame) = out;
        let seen = Summary::of(frame)?;
        let packet = arriving(*egress, &seen.destination.to_string(), &seen.source.to_string());
        let packet = match (seen.protocol, seen.ports, seen.icmp) {
            (protocol::TCP, Some((source, destination)), _) => {
                packet.tcp(destination, source, self.byte() & 0x1f, u32::from(self.word()))
            }
            (_, Some((source, destination)), _) => packet.udp(destination, source),
            (_, _, Some((8 | 128, _, rest))) => packet.echo_reply((rest >> 16) as u16, rest as u16),
            (_, _, Some((kind, code, rest))) => packet.icmp(kind, code, rest),
            (number, ..) => packet.protocol(number),
        };
        let length = usize::from(self.byte());
        Some(Event::Frame(*egress, packet.payload_of(length).build()))
    }

    /// An ICMP error about the last frame that left, from its receiver or somebody on the way.
    fn error_about(&mut self, out: &(u32, Vec<u8>)) -> Option<Event> {
        let (egress, frame) = out;
        let seen = Summary::of(frame)?;
        let speaker = match (self.byte() % 2, seen.source) {
            (0, _) => seen.destination.to_string(),
            (_, IpAddr::V4(_)) => "192.0.9.1".to_owned(),
            (_, IpAddr::V6(_)) => "2001:db8:9999::1".to_owned(),
        };
        let packet = ip_packet(frame);
        let quoted = &packet[..packet.len().min(usize::from(self.byte()) * 4 + usize::from(self.byte() % 2))];
        let error = arriving(*egress, &speaker, &seen.source.to_string());
        let error = match self.byte() % 3 {
            0 => error.too_big(1280, quoted),
            1 => error.time_exceeded(quoted),
            _ => error.unreachable(self.byte() % 16, quoted),
        };
        Some(Event::Frame(*egress, error.build()))
    }

    /// The last frame in pieces, perhaps not all, perhaps the last first.
    fn fragments(&mut self, (ingress, frame): &(u32, Vec<u8>)) -> Vec<Event> {
        let fragmentable = Summary::of(frame).is_some_and(|summary| summary.fragment.is_none());
        if !fragmentable || ip_packet(frame).len() < 200 {
            return Vec::new();
        }
        let mut pieces = fragment(frame, 120, u32::from(self.byte()));
        if self.byte().is_multiple_of(4) {
            pieces.reverse();
        }
        pieces.truncate(usize::from(self.byte() % 8));
        pieces.into_iter().map(|piece| Event::Frame(*ingress, piece)).collect()
    }

    fn change(&mut self, control: &Control) -> Event {
        let mut control = Control { epoch: control.epoch.wrapping_add(1), ..*control };
        match self.byte() % 8 {
            0 => control.inside_allowed ^= 1,
            1 => control.outside_allowed ^= 1,
            2 => control.loose_tcp ^= 1,
            3 => control.nat_rules ^= 2,
            4 => return Event::Change(Change::Route("203.0.113.0/24", self.way())),
            5 => return Event::Change(Change::Route("2001:db8:3::/48", self.way())),
            6 => {
                let ports = [(4000, 4001), (1024, 65_535), (4000, 4000), (0, 65_535)];
                (control.port_first, control.port_last) = self.one_of(&ports);
            }
            _ => {
                let slots = u32::from(self.byte());
                (control.reverse_path_strict, control.reverse_path_loose) = (slots & 15, slots >> 4);
                control.firewall =
                    control.firewall & !switch::REVERSE_PATH | if slots == 0 { 0 } else { switch::REVERSE_PATH };
            }
        }
        Event::Change(Change::Control(control))
    }

    fn way(&mut self) -> Way {
        let ways = [Way::Via(OUT, 1500), Way::Via(OUT, 1280), Way::Via(ARM, 1500), Way::Via(OTHER, 1500)];
        match self.byte() % 6 {
            4 => Way::Refused(Fate::Blackhole),
            5 => Way::Refused(Fate::Unreachable),
            at => ways[usize::from(at)],
        }
    }
}
