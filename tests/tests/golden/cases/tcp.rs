//! The life of a TCP connection, seen from its middle.

use forwarder_ebpf::verdict::Drop;
use forwarder_golden::case::{Case, case, out, out6};
use forwarder_golden::world::{CLIENT, CLIENT6, IN, OUT, PUBLIC, SERVER, SERVER6, World, arriving, leaving};
use forwarder_kit::Packet;
use forwarder_kit::packet::flag::{ACK, FIN, PSH, RST, SYN};

/// One segment of the connection, with its way through.
trait Dialogue {
    /// From the client.
    fn says(self, flags: u8) -> Self;
    /// From the server.
    fn hears(self, flags: u8) -> Self;
}

impl Dialogue for Case {
    fn says(self, flags: u8) -> Self {
        let out = out().tcp(4000, 80, flags, 1).payload_of(3);
        self.forwards(IN, out, OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, flags, 1).payload_of(3))
    }

    fn hears(self, flags: u8) -> Self {
        let back = arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, flags, 1).payload_of(3);
        self.forwards(OUT, back, IN, leaving(IN, SERVER, CLIENT).tcp(80, 4000, flags, 1).payload_of(3))
    }
}

macro_rules! left {
    ($state:literal) => {
        &[concat!("tcp 10.0.1.10:4000 > 203.0.113.10:80 as 198.51.100.1:4000, ", $state)]
    };
}

pub fn cases() -> Vec<Case> {
    let handshake = |sentence| case(sentence).says(SYN).hears(SYN | ACK).says(ACK);
    let mut cases = vec![
        case("SYN and SYN-ACK alone are an opening").says(SYN).hears(SYN | ACK).leaves(left!("opening, 1+1")),
        handshake("three segments are a handshake, and data follows")
            .says(PSH | ACK)
            .hears(ACK)
            .leaves(left!("established, 3+2")),
        case("a SYN that is sent again changes nothing").says(SYN).says(SYN).leaves(left!("unreplied, 2+0")),
        case("an ACK before any answer proves nothing").says(SYN).says(ACK).leaves(left!("unreplied, 2+0")),
        case("a SYN from both is an answer").says(SYN).hears(SYN).says(ACK).leaves(left!("established, 2+1")),
        handshake("one FIN closes half").says(FIN | ACK).hears(ACK).leaves(left!("half-closed, 3+2")),
        handshake("a FIN from each closes, and the last ACK passes")
            .says(FIN | ACK)
            .hears(FIN | ACK)
            .says(ACK)
            .leaves(left!("closing, 4+2")),
        handshake("a RST closes").hears(RST).leaves(left!("closing, 2+2")),
        handshake("a RST is not taken back by the other end").hears(RST).says(PSH | ACK).leaves(left!("closing, 3+2")),
        handshake("a RST is taken back by who goes on after it")
            .hears(RST)
            .hears(ACK)
            .says(PSH | ACK)
            .leaves(left!("established, 3+3")),
        handshake("a SYN opens a closed connection again")
            .hears(FIN | ACK)
            .says(FIN | ACK)
            .says(SYN)
            .leaves(left!("unreplied, 4+2")),
        handshake("a connection that was opened again is a whole one")
            .says(RST)
            .says(SYN)
            .hears(SYN | ACK)
            .says(ACK)
            .leaves(left!("established, 5+2")),
        handshake("a SYN from outside opens nothing again where the outside may begin nothing")
            .hears(FIN | ACK)
            .says(FIN | ACK)
            .drops(OUT, turned(), Drop::Policy)
            .says(ACK)
            .leaves(left!("closing, 4+2")),
        handshake("a SYN from outside opens a closed connection again where the outside may")
            .world(World::default().with(|control| control.outside_allowed = 1))
            .hears(FIN | ACK)
            .says(FIN | ACK)
            .hears(SYN)
            .says(SYN | ACK)
            .hears(ACK)
            .leaves(left!("established, 4+4")),
        handshake("a SYN in the middle of an open connection changes nothing")
            .says(SYN)
            .leaves(left!("established, 3+1")),
    ];
    cases.extend(beginnings());
    cases.extend(resets());
    cases
}

/// The server begins a connection on the tuple of the client's.
fn turned() -> Packet {
    arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, SYN, 1).payload_of(3)
}

/// Somebody who sees neither end invents resets.
fn resets() -> [Case; 3] {
    const FAR: u32 = 0x4000_0000;
    let shake = |sentence| case(sentence).says(SYN).hears(SYN | ACK).says(ACK);
    let forged = |sequence: u32| arriving(OUT, SERVER, PUBLIC).tcp(80, 4000, RST, sequence);
    let own = |sequence: u32| out().tcp(4000, 80, RST | ACK, sequence);
    let come = |flags, sequence: u32| arriving(OUT, SERVER6, CLIENT6).tcp(80, 4000, flags, sequence);
    let came = |flags, sequence: u32| leaving(IN, SERVER6, CLIENT6).tcp(80, 4000, flags, sequence);
    [
        shake("a RST far from what its sender has sent ends nothing, whichever end it names, and a near one does")
            .drops(OUT, forged(FAR), Drop::ResetWindow)
            .drops(OUT, forged(0xc000_0000), Drop::ResetWindow)
            .drops(IN, own(FAR), Drop::ResetWindow)
            .says(PSH | ACK)
            .forwards(OUT, forged(5), IN, leaving(IN, SERVER, CLIENT).tcp(80, 4000, RST, 5))
            .leaves(left!("closing, 3+2")),
        shake("a SYN in the middle of a connection does not make its RST a near one, on a new one it does")
            .forwards(IN, out().tcp(4000, 80, SYN, FAR), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, FAR))
            .drops(IN, own(FAR), Drop::ResetWindow)
            .says(RST)
            .forwards(IN, out().tcp(4000, 80, SYN, FAR), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, SYN, FAR))
            .drops(IN, own(1), Drop::ResetWindow)
            .forwards(IN, own(FAR), OUT, leaving(OUT, PUBLIC, SERVER).tcp(4000, 80, RST | ACK, FAR))
            .forwards(OUT, forged(FAR), IN, leaving(IN, SERVER, CLIENT).tcp(80, 4000, RST, FAR))
            .leaves(left!("closing, 6+2")),
        case("a RST far from what its sender has sent ends nothing over IPv6 either")
            .forwards(IN, out6().tcp(4000, 80, SYN, FAR), OUT, leaving(OUT, CLIENT6, SERVER6).tcp(4000, 80, SYN, FAR))
            .forwards(OUT, come(SYN | ACK, 7), IN, came(SYN | ACK, 7))
            .drops(OUT, come(RST, FAR), Drop::ResetWindow)
            .drops(IN, out6().tcp(4000, 80, RST, 7), Drop::ResetWindow)
            .forwards(OUT, come(RST, 8), IN, came(RST, 8))
            .leaves(&["tcp [2001:db8:1::10]:4000 > [2001:db8:3::10]:80, closing, 1+2"]),
    ]
}

fn beginnings() -> [Case; 4] {
    let loose = World::default().with(|control| control.loose_tcp = 1);
    [
        case("nothing but a SYN begins a connection")
            .drops(IN, out().tcp(4000, 80, ACK, 1), Drop::NoFlow)
            .drops(IN, out().tcp(4000, 80, SYN | ACK, 1), Drop::NoFlow)
            .drops(IN, out().tcp(4000, 80, RST, 1), Drop::NoFlow)
            .drops(IN, out().tcp(4000, 80, FIN | ACK, 1), Drop::NoFlow)
            .drops(IN, out().tcp(4000, 80, PSH | ACK, 1), Drop::NoFlow),
        case("what is under way may be picked up, if that is wanted")
            .world(loose.clone())
            .says(PSH | ACK)
            .leaves(left!("unreplied loose, 1+0")),
        case("what was picked up is established by the answer")
            .world(loose.clone())
            .says(ACK)
            .hears(ACK)
            .says(ACK)
            .leaves(left!("established loose, 2+1")),
        case("only an ACK is picked up").world(loose).drops(IN, out().tcp(4000, 80, RST, 1), Drop::NoFlow).drops(
            IN,
            out().tcp(4000, 80, FIN | ACK, 1),
            Drop::NoFlow,
        ),
    ]
}
