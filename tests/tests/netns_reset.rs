//! Resets that somebody invents who sees neither end of a connection: nearly all are refused by name, and the connection
//! lives through the others. Resets of the ends themselves do what they should.

use anyhow::{Context, Result, ensure};
use forwarder_kit::packet::{Packet, flag};
use forwarder_kit::run::{PATIENCE, wait_until};
use forwarder_kit::serve;
use forwarder_kit::sniff::{Sniffer, mac};
use forwarder_kit::topology::Options;
use forwarder_tests::{EchoConnection, Family, Lab, SMALL_TABLE};
use std::net::{SocketAddr, TcpStream};

/// Sequence numbers that are tried, over the whole space.
const TRIED: u32 = 512;

/// The state of the connection from this port, as the appliance sees it.
fn state(lab: &Lab, from: SocketAddr) -> Result<String> {
    let flows = lab.appliance.flows()?;
    let flow = flows.into_iter().find(|flow| flow.source == from).context("the flow is gone")?;
    Ok(flow.state)
}

fn refused(lab: &Lab) -> Result<u64> {
    Ok(lab.appliance.status()?.drops()?.get("reset_window").copied().unwrap_or(0))
}

/// A RST of the server's from the world, for each of many sequence numbers.
fn forge(lab: &Lab, family: Family, (server, client): (SocketAddr, u16)) -> Result<()> {
    let (world, to) = (Sniffer::open(&lab.net.world, "app")?, mac(&lab.net.appliance, "outside")?);
    let own = mac(&lab.net.world, "app")?;
    for at in 0..TRIED {
        // Not 0: who has lost a connection says so with it.
        let sequence = at.wrapping_mul(u32::MAX / TRIED + 1) + 12_345;
        let packet = Packet::between(&server.ip().to_string(), &lab.seen(family).to_string()).macs(own, to);
        world.inject(&packet.tcp(server.port(), client, flag::RST, sequence).build())?;
    }
    Ok(())
}

#[test]
fn a_connection_lives_through_resets_that_somebody_invents() -> Result<()> {
    let lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    for (nth, family) in (1..).zip(Family::BOTH) {
        let server = SocketAddr::new(lab.server(family), 7);
        let mut stream = EchoConnection::open(lab.client(), server)?;
        for _ in 0..100 {
            stream.ping()?;
        }
        let local = stream.local()?;
        forge(&lab, family, (server, local.port()))?;
        let most = u64::from(TRIED) * nth;
        wait_until("the resets to be refused", PATIENCE, || Ok(refused(&lab)? >= most - 6 * nth))?;
        let count = refused(&lab)?;
        // 32 MiB of 4 GiB are taken to be near: 4 of 512, give or take one at each end.
        ensure!((most - 6 * nth..most).contains(&count), "{family:?}: {count} of {most} were refused");
        for _ in 0..10 {
            stream.ping().context("the connection was reset by somebody else")?;
        }
        ensure!(state(&lab, local)? == "established", "{family:?}: {}", state(&lab, local)?);
    }
    Ok(())
}

/// What a connection has moved does not make it easier to reset: the appliance looks again where each direction stands.
#[test]
fn a_busy_connection_is_as_safe_as_a_quiet_one() -> Result<()> {
    const MIB: usize = 2500;
    let lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 4)?;
    let server = SocketAddr::new(lab.server(Family::V4), 7);
    let mut stream = EchoConnection::open(lab.client(), server)?;
    stream.stream(MIB)?;
    // A sweep asks the directions that are to be placed, and their next packets answer.
    for _ in 0..2 {
        lab.appliance.wait_for_sweep()?;
        stream.ping()?;
    }
    let local = stream.local()?;
    forge(&lab, Family::V4, (server, local.port()))?;
    // From the first packet's place alone, an eighth of what was sent would count as near: 40 of 512.
    wait_until("the resets to be refused", PATIENCE, || Ok(refused(&lab)? >= u64::from(TRIED - 12)))
        .with_context(|| format!("{:?} of {TRIED} were refused", refused(&lab)))?;
    stream.ping().context("the connection was reset by somebody else")?;
    stream.stream(10)?;
    let before = refused(&lab)?;
    stream.abort()?;
    wait_until("its own reset to have closed the flow", PATIENCE, || Ok(state(&lab, local)? == "closing"))?;
    ensure!(refused(&lab)? == before, "its own reset was refused");
    Ok(())
}

#[test]
fn the_ends_own_resets_arrive() -> Result<()> {
    let lab = Lab::with_config(Options::default(), SMALL_TABLE)?;
    let _tcp = serve::tcp_echo(&lab.net.server, &[7], 8)?;
    for family in Family::BOTH {
        // Nobody listens: a reset is the answer to a SYN.
        let nobody = SocketAddr::new(lab.server(family), 8);
        let answer = lab.client().enter(|| Ok(TcpStream::connect_timeout(&nobody, PATIENCE)))?;
        ensure!(answer.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused), "{family:?}");
        // The client gives up.
        let mut stream = EchoConnection::open(lab.client(), SocketAddr::new(lab.server(family), 7))?;
        stream.ping()?;
        let local = stream.local()?;
        stream.abort()?;
        wait_until("the reset to have closed the flow", PATIENCE, || Ok(state(&lab, local)? == "closing"))?;
    }
    ensure!(refused(&lab)? == 0, "{:?}", lab.appliance.status()?.drops()?);
    Ok(())
}
