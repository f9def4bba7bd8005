//! What a record says in each of its fields: what formats write and filters look at.

use super::{Direction, Field, Interface, Interfaces, Place, Tuple, Window};
use std::net::IpAddr;

/// One field of one record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// It does not apply, or is not known: `-`.
    None,
    /// A number.
    Number(i64),
    /// An address.
    Address(IpAddr),
    /// A text, never empty.
    Text(&'a str),
}

/// One record of packets.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// Its packets.
    pub window: &'a Window,
    /// Which way they passed the interface.
    pub direction: Direction,
    /// The interface that it is about.
    pub interface: &'a Interface,
    /// What the window's numbers mean.
    pub names: &'a Interfaces,
}

impl<'a> Line<'a> {
    /// The packet as it is at this interface.
    pub fn tuple(&self) -> &'a Tuple {
        match self.direction {
            Direction::Ingress => &self.window.arrived,
            Direction::Egress => &self.window.left,
        }
    }

    /// What a field says, for all but `version`, which is the format's.
    pub fn value(&self, field: Field) -> Value<'a> {
        let (window, tuple) = (self.window, self.tuple());
        match field {
            Field::SrcAddr => Value::Address(shown_source(tuple, self.direction, self.interface)),
            Field::DstAddr => Value::Address(shown_destination(tuple, self.direction, self.interface)),
            // What stands there for ICMP is its identifier; AWS has no ports for it.
            Field::SrcPort | Field::DstPort if matches!(window.protocol, 1 | 58) => Value::Number(0),
            Field::SrcPort => Value::Number(tuple.source_port.into()),
            Field::DstPort => Value::Number(tuple.destination_port.into()),
            Field::Protocol => Value::Number(window.protocol.into()),
            Field::Packets => Value::Number(window.packets as i64),
            Field::Bytes => Value::Number(window.bytes as i64),
            Field::Start => Value::Number(window.first_ms.div_euclid(1000)),
            Field::End => Value::Number(window.last_ms.div_euclid(1000)),
            Field::Action => Value::Text(if window.refused.is_none() { "ACCEPT" } else { "REJECT" }),
            Field::LogStatus => Value::Text("OK"),
            Field::TcpFlags => Value::Number(window.tcp_flags.into()),
            Field::Type => Value::Text(if tuple.source.is_ipv4() { "IPv4" } else { "IPv6" }),
            Field::PktSrcAddr => Value::Address(tuple.source),
            Field::PktDstAddr => Value::Address(tuple.destination),
            Field::FlowDirection => {
                Value::Text(if self.direction == Direction::Ingress { "ingress" } else { "egress" })
            }
            other => self.own_value(other),
        }
    }

    fn own_value(&self, field: Field) -> Value<'a> {
        let window = self.window;
        let (before, after) = (&window.arrived, &window.left);
        let translated = window.refused.is_none() && window.is_translated();
        match field {
            Field::ForwarderDirection => Value::Text(self.sides()),
            Field::InitiatedBy if window.refused.is_none() => {
                Value::Text(if window.originator { "source" } else { "destination" })
            }
            Field::OrigSrcAddr => Value::Address(before.source),
            Field::OrigSrcPort => Value::Number(before.source_port.into()),
            Field::OrigDstAddr => Value::Address(before.destination),
            Field::OrigDstPort => Value::Number(before.destination_port.into()),
            Field::NatSrcAddr if translated => Value::Address(after.source),
            Field::NatSrcPort if translated => Value::Number(after.source_port.into()),
            Field::NatDstAddr if translated => Value::Address(after.destination),
            Field::NatDstPort if translated => Value::Number(after.destination_port.into()),
            Field::RuleName => self.names.rule(window.rule).map_or(Value::None, Value::Text),
            Field::DropReason => window.refused.map_or(Value::None, |reason| Value::Text(reason.name())),
            Field::FlowDuration if window.begun_ms != 0 => Value::Number((window.last_ms - window.begun_ms).max(0)),
            Field::RttSrc if window.rtt_source_us != 0 => Value::Number(window.rtt_source_us.into()),
            Field::RttDst if window.rtt_destination_us != 0 => Value::Number(window.rtt_destination_us.into()),
            other => of_interface(self.interface, other),
        }
    }

    fn sides(&self) -> &'static str {
        let place = |number| self.names.at(number).map(|interface| interface.place).unwrap_or_default();
        match (place(self.window.ingress), place(self.window.egress)) {
            (Place::Inside, Place::Outside) => "outbound",
            (Place::Outside, Place::Inside) => "inbound",
            (Place::Inside, Place::Inside) => "internal",
            (Place::Outside, Place::Outside) => "external",
            _ => "-",
        }
    }
}

/// `srcaddr`: leaving, AWS shows the interface's own address whatever the packet's is ("Flow log limitations").
pub fn shown_source(tuple: &Tuple, direction: Direction, interface: &Interface) -> IpAddr {
    if direction == Direction::Egress { own(tuple.source, interface) } else { tuple.source }
}

/// `dstaddr`: entering, the same.
pub fn shown_destination(tuple: &Tuple, direction: Direction, interface: &Interface) -> IpAddr {
    if direction == Direction::Ingress { own(tuple.destination, interface) } else { tuple.destination }
}

fn own(packets: IpAddr, interface: &Interface) -> IpAddr {
    if packets.is_ipv4() { interface.address4 } else { interface.address6 }.unwrap_or(packets)
}

/// What is known of the interface; all other fields have no value.
pub fn of_interface(interface: &Interface, field: Field) -> Value<'_> {
    let known = match field {
        Field::AccountId => &interface.account_id,
        Field::InterfaceId => &interface.interface_id,
        Field::VpcId => &interface.vpc_id,
        Field::SubnetId => &interface.subnet_id,
        Field::InstanceId => &interface.instance_id,
        Field::Region => &interface.region,
        Field::AzId => &interface.az_id,
        Field::InterfaceName => &interface.name,
        _ => return Value::None,
    };
    match known.as_str() {
        "" if field == Field::AccountId => Value::Text("unknown"),
        "" => Value::None,
        known => Value::Text(known),
    }
}
