//! Sysctls that forwarding needs: set, remembered, put back.
//!
//! | sysctl | why |
//! | --- | --- |
//! | `net.ipv4.conf.IF.forwarding` = 1 | `bpf_fib_lookup` refuses what comes in elsewhere (FWD_DISABLED) |
//! | `net.ipv6.conf.IF.forwarding` = 1 | the same |
//! | `net.ipv6.conf.IF.accept_ra` 1 → 2, before that | a forwarding interface ignores router advertisements otherwise |
//! | `net.ipv4.ip_local_port_range`, when asked | NAT and the host's own connections share an address's ports |
//!
//! `all.forwarding` is left alone: it would turn the whole host into a router, write to every interface and the default
//! for new ones, and (IPv4) reset redirects, so that nobody could restore what was there. `bpf_fib_lookup` asks for the
//! ingress interface's only.
//!
//! # What writing `conf.IF.forwarding` does besides
//! Seen on Linux 6.18 in a namespace of veths, or, where it says so, read in the kernel's source.
//! - No other sysctl changes, in either family, in either direction.
//! - `ipv6…forwarding` 0 → 1 deletes the default routes that the kernel learnt from router advertisements on **every**
//!   interface of the namespace whose `accept_ra` is not 2 (`rt6_purge_dflt_routers`), also where nothing forwards.
//!   Their return waits for the next advertisement, minutes in a VPC. So `accept_ra` becomes 2 on all interfaces that
//!   take advertisements first, and 1 again where we do not forward. The tests hold this. Prefixes, addresses and
//!   routes that systemd-networkd or NetworkManager learnt (they take advertisements in user space, with `accept_ra` 0)
//!   stay. 1 → 0 deletes nothing.
//! - `ipv6…forwarding` = 1 joins ff02::2 and the like until it is 0 again; while it is 1, neighbour advertisements have
//!   the router flag and redirects are ignored (source). No proxy entry or proxy setting changes.
//! - `ipv4…forwarding` = 1 switches LRO off (source), which XDP needs anyway; nobody switches it on again.
//! - The kernel itself then forwards IPv4 that XDP passes to it and that is not for the host, untranslated; IPv6 it
//!   does not, for that asks for `all.forwarding`, too.
//!
//! # rp_filter is left alone
//! It drops a packet whose source, by the routing table, is not reached through the interface it came in on (strict),
//! or not at all (loose). The datapath does not ask it. What XDP passes is for the host itself and has the source it
//! had on the wire, so the answer is the one the host would have had without us. One-armed, clients and world are both
//! reached through the one interface: strict passes everything. Two-armed, a client that asks the host's outside
//! address comes in where its route points to. What strict drops then (two interfaces in one subnet, asymmetric routes)
//! it dropped before.

use super::journal::{Entry, Journal};
use super::{HostError, Result};
use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};

const ROOT: &str = "/proc/sys/net";

/// The sysctls that were changed, with what they were. Dropping it restores nothing: the datapath outlives the process,
/// and what it needs does so too.
#[derive(Debug)]
pub struct HostChanges {
    journal: Journal,
}

/// What a sysctl shall be.
struct Setting<'a> {
    /// Path below /proc/sys/net.
    key: String,
    interface: Option<&'a str>,
    to: String,
    why: &'static str,
    momentary: bool,
}

impl HostChanges {
    /// Takes over what an earlier process has changed and not restored, as `file` says (JSON, see the module
    /// `journal`). Its directory must exist.
    ///
    /// # Errors
    /// When the file cannot be read or is damaged.
    pub fn open(file: &Path) -> Result<Self> {
        let mut changes = Self { journal: Journal::open(file)? };
        if let Some(entry) = changes.journal.entries.iter().find(|entry| !is_inside(&entry.key)) {
            let source = serde::de::Error::custom(format!("{} is not below {ROOT}", entry.key));
            return Err(HostError::Journal { path: file.to_owned(), source });
        }
        if changes.journal.entries.iter().any(|entry| entry.momentary) {
            changes.restore_where(|entry| entry.momentary)?;
        }
        Ok(changes)
    }

    /// Has an interface forward: IPv4, and IPv6 if it has that. An interface that is not there is left out.
    ///
    /// # Errors
    /// When the name is none, a sysctl cannot be changed, or the old value cannot be remembered (then nothing is
    /// changed).
    pub fn apply_forwarding(&mut self, interface: &str) -> Result<()> {
        check_name(interface)?;
        let why = "the kernel answers the datapath's routing questions only for interfaces that forward";
        let forwarding = |family| Setting {
            key: format!("{family}/conf/{interface}/forwarding"),
            interface: Some(interface),
            to: "1".to_owned(),
            why,
            momentary: false,
        };
        self.apply(&[forwarding("ipv4")])?;
        let v6 = forwarding("ipv6");
        if read(&v6.key)?.is_none_or(|value| value != "0") {
            return Ok(());
        }
        let listening = interfaces_with_advertisements()?;
        let raise: Vec<_> = listening.iter().map(|name| accept_ra(name, name != interface)).collect();
        self.apply(&raise)?;
        let result = self.apply(&[v6]);
        // Also when that failed: the others have nothing to do with us.
        result.and(self.restore_where(|entry| entry.momentary))
    }

    /// Sets the range that outgoing connections of the host get their ports from (`net.ipv4.ip_local_port_range`).
    ///
    /// # Errors
    /// When the kernel refuses the range, or the old one cannot be remembered.
    pub fn apply_local_port_range(&mut self, (first, last): (u16, u16)) -> Result<()> {
        self.apply(&[Setting {
            key: "ipv4/ip_local_port_range".to_owned(),
            interface: None,
            to: format!("{first} {last}"),
            why: "the ports outside it are NAT's",
            momentary: false,
        }])
    }

    /// Puts back what was changed for one interface, which is served no more.
    ///
    /// # Errors
    /// As `restore`.
    pub fn restore_interface(&mut self, interface: &str) -> Result<()> {
        self.restore_where(|entry| interface_of(&entry.key) == Some(interface))
    }

    /// Puts back what was changed for interfaces other than these, by index: they are served no more, and are found by
    /// whatever name they have now.
    ///
    /// # Errors
    /// As `restore`.
    pub fn restore_all_but(&mut self, served: &BTreeSet<u32>) -> Result<()> {
        let is_other = |entry: &Entry| entry.ifindex != 0 && !served.contains(&entry.ifindex);
        if self.journal.entries.iter().any(is_other) { self.restore_where(is_other) } else { Ok(()) }
    }

    /// Puts everything back, last change first, and removes the file. What somebody else has set since stays as it is,
    /// and the log says so; an interface that is gone has nothing to restore.
    ///
    /// # Errors
    /// The first failure; the others were tried, and what failed is still remembered.
    pub fn restore(&mut self) -> Result<()> {
        self.restore_where(|_| true)
    }

    fn apply(&mut self, settings: &[Setting<'_>]) -> Result<()> {
        let mut due = Vec::new();
        for setting in settings {
            let Some(from) = read(&setting.key)?.filter(|from| *from != setting.to) else { continue };
            let ifindex = match setting.interface.map(index_of) {
                Some(None) => continue,
                index => index.flatten().unwrap_or(0),
            };
            let (key, to) = (setting.key.clone(), setting.to.clone());
            self.journal.remember(Entry { key, ifindex, from: from.clone(), to, momentary: setting.momentary });
            due.push((setting, from));
        }
        if due.is_empty() {
            return Ok(());
        }
        self.journal.save()?;
        for (Setting { key, to, why, momentary, .. }, from) in due {
            if !write(key, to)? {
                continue;
            }
            // What is put back before anybody could look is of no interest.
            if *momentary {
                tracing::debug!("set sysctl net/{key} from {from} to {to} for a moment: {why}");
            } else {
                tracing::info!("set sysctl net/{key} from {from} to {to}: {why}");
            }
        }
        Ok(())
    }

    fn restore_where(&mut self, select: impl Fn(&Entry) -> bool) -> Result<()> {
        let mut failure = Ok(());
        let mut kept = Vec::new();
        for entry in std::mem::take(&mut self.journal.entries).into_iter().rev() {
            let result = if select(&entry) { restore_entry(&entry).map(|()| true) } else { Ok(false) };
            if !matches!(result, Ok(true)) {
                kept.push(entry);
            }
            failure = failure.and(result.map(drop));
        }
        kept.reverse();
        self.journal.entries = kept;
        failure.and(self.journal.save())
    }
}

fn restore_entry(Entry { key, ifindex, from, to, momentary, .. }: &Entry) -> Result<()> {
    let Some(key) = &key_now(key, *ifindex) else { return Ok(()) };
    let Some(now) = read(key)? else { return Ok(()) };
    if now == *from {
        return Ok(());
    }
    if now != *to {
        tracing::warn!("left sysctl net/{key} at {now}: it was {from}, we set {to}, and somebody has changed it since");
        return Ok(());
    }
    if !write(key, from)? {
        return Ok(());
    }
    if *momentary {
        tracing::debug!("set sysctl net/{key} from {to} back to {from}, as it was before");
    } else {
        tracing::info!("set sysctl net/{key} from {to} back to {from}, as it was before");
    }
    Ok(())
}

fn accept_ra(interface: &str, momentary: bool) -> Setting<'_> {
    let why = if momentary {
        "the kernel would forget its IPv6 default route when another interface begins to forward"
    } else {
        "an interface that forwards would ignore router advertisements and lose its IPv6 default route"
    };
    let key = format!("ipv6/conf/{interface}/accept_ra");
    Setting { key, interface: Some(interface), to: "2".to_owned(), why, momentary }
}

/// The interfaces where the kernel takes router advertisements as long as they do not forward.
fn interfaces_with_advertisements() -> Result<Vec<String>> {
    let path = Path::new(ROOT).join("ipv6/conf");
    let failed = |error| HostError::file("list", &path, error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&path).map_err(failed)? {
        // A name that is not UTF-8 is left out: it could not be served either.
        let Ok(name) = entry.map_err(failed)?.file_name().into_string() else { continue };
        let value = |leaf| read(&format!("ipv6/conf/{name}/{leaf}"));
        let is_interface = name != "all" && name != "default";
        if is_interface && value("accept_ra")?.as_deref() == Some("1") && value("forwarding")?.as_deref() == Some("0") {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// The value, its parts separated by one space; `None` if there is no such sysctl.
fn read(key: &str) -> Result<Option<String>> {
    let path = path_of(key);
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.split_ascii_whitespace().collect::<Vec<_>>().join(" "))),
        Err(error) if is_gone(&error) => Ok(None),
        Err(error) => Err(HostError::file("read", &path, error)),
    }
}

/// Whether there was such a sysctl.
fn write(key: &str, value: &str) -> Result<bool> {
    let path = path_of(key);
    // Not `fs::write`, which would create.
    let result = std::fs::File::options().write(true).open(&path);
    match result.and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes())) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Ok(false),
        Err(error) => Err(HostError::file("write", &path, error)),
    }
}

/// An interface may go away between any two steps. A sysctl that was opened before says ENOENT, too.
fn is_gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

fn path_of(key: &str) -> PathBuf {
    Path::new(ROOT).join(key)
}

fn index_of(interface: &str) -> Option<u32> {
    nix::net::if_::if_nametoindex(interface).ok()
}

/// What a sysctl is called by now, whose interface may have another name. `None`: that is gone.
fn key_now(key: &str, ifindex: u32) -> Option<String> {
    let Some(name) = interface_of(key).filter(|name| index_of(name) != Some(ifindex)) else {
        return Some(key.to_owned());
    };
    let name_now = nix::net::if_::if_indextoname(ifindex).ok()?.into_string().ok()?;
    Some(key.replacen(&format!("/conf/{name}/"), &format!("/conf/{name_now}/"), 1))
}

/// The interface that a sysctl belongs to.
fn interface_of(key: &str) -> Option<&str> {
    let (name, _) = key.strip_prefix("ipv4/conf/").or(key.strip_prefix("ipv6/conf/"))?.split_once('/')?;
    Some(name)
}

fn is_inside(key: &str) -> bool {
    Path::new(key).components().all(|part| matches!(part, Component::Normal(_)))
}

/// As the kernel's `dev_valid_name`, and not one of the two that mean more than an interface.
fn check_name(interface: &str) -> Result<()> {
    let is_forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    let is_name = (1..16).contains(&interface.len())
        && !interface.contains(is_forbidden)
        && !matches!(interface, "." | ".." | "all" | "default");
    if is_name { Ok(()) } else { Err(HostError::InterfaceName(interface.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Netns;
    use super::*;
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn6, sendto, setsockopt,
    };
    use std::net::{Ipv6Addr, SocketAddrV6};
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};
    use tempfile::TempDir;

    /// Two interfaces, one with a dot in its name, and their other ends.
    struct Host {
        netns: Netns,
        world: Netns,
        directory: TempDir,
    }

    impl Host {
        fn new() -> Self {
            let host = Self { netns: Netns::new(), world: Netns::new(), directory: tempfile::tempdir().unwrap() };
            for netns in [&host.netns, &host.world] {
                netns.set_sysctl("ipv6/conf/default/accept_dad", "0");
            }
            host.netns.join("eth0", &host.world, "p0");
            host.netns.join("eth1.5", &host.world, "p1");
            host
        }

        fn file(&self) -> PathBuf {
            self.directory.path().join("sysctls.json")
        }

        /// Runs a closure on the changes as a process in the namespace would.
        fn change(&self, change: impl FnOnce(&mut HostChanges) + Send) {
            self.netns.enter(|| change(&mut HostChanges::open(&self.file()).unwrap()));
        }

        fn forwarding(&self, interface: &str) -> [String; 3] {
            ["ipv4/conf/IF/forwarding", "ipv6/conf/IF/forwarding", "ipv6/conf/IF/accept_ra"]
                .map(|key| self.netns.sysctl(&key.replace("IF", interface)))
        }

        /// Has the world's ends advertise themselves as routers, and waits until both are default routes.
        fn advertise(&self) {
            let begun = Instant::now();
            while self.default_routes() != 2 {
                // Again and again, for a link begins to carry, and gets the address that routers speak from, in its
                // time.
                self.world.enter(|| ["p0", "p1"].map(send_advertisement));
                assert!(begun.elapsed() < Duration::from_secs(5), "{} default routes", self.default_routes());
                std::thread::sleep(Duration::from_millis(10));
            }
        }

        fn default_routes(&self) -> usize {
            self.netns.ip("-6 route show default proto ra").lines().count()
        }
    }

    /// An ICMPv6 router advertisement (RFC 4861 §4.2): hop limit 64, lifetime 1,800 s, no prefix.
    fn send_advertisement(interface: &str) {
        let socket =
            nix::sys::socket::socket(AddressFamily::Inet6, SockType::Raw, SockFlag::empty(), SockProtocol::IcmpV6);
        let socket = socket.unwrap();
        setsockopt(&socket, nix::sys::socket::sockopt::Ipv6MulticastHops, &255).unwrap();
        let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
        let to = SockaddrIn6::from(SocketAddrV6::new(all_nodes, 0, 0, index_of(interface).unwrap()));
        let message = [134, 0, 0, 0, 64, 0, 1800u16.to_be_bytes()[0], 1800u16.to_be_bytes()[1], 0, 0, 0, 0, 0, 0, 0, 0];
        let _ = sendto(socket.as_raw_fd(), &message, &to, MsgFlags::empty());
    }

    /// Without what counts or moves by itself.
    fn stable(netns: &Netns) -> Vec<(String, String)> {
        let mut all = netns.sysctls();
        all.retain(|(path, _)| !["nf_conntrack_count", "stable_secret"].iter().any(|name| path.contains(name)));
        all
    }

    #[test]
    fn forwarding_changes_what_it_says_and_nothing_is_left() {
        let host = Host::new();
        let before = stable(&host.netns);
        host.change(|changes| changes.apply_forwarding("eth1.5").unwrap());
        let during = stable(&host.netns);
        let changed: Vec<_> = before.iter().zip(&during).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
        let expected = [
            ("/proc/sys/net/ipv4/conf/eth1.5/forwarding", "1"),
            ("/proc/sys/net/ipv6/conf/eth1.5/accept_ra", "2"),
            ("/proc/sys/net/ipv6/conf/eth1.5/forwarding", "1"),
        ];
        assert_eq!(
            changed,
            expected.map(|(path, value)| (path.to_owned(), value.to_owned())).iter().collect::<Vec<_>>()
        );
        host.change(|changes| {
            changes.apply_forwarding("eth0").unwrap();
            changes.apply_local_port_range((61_000, 65_000)).unwrap();
        });
        assert_eq!(host.netns.sysctl("ipv4/ip_local_port_range"), "61000\t65000");
        host.change(|changes| changes.restore_interface("eth1.5").unwrap());
        assert_eq!(
            (host.forwarding("eth1.5"), host.forwarding("eth0")),
            (["0", "0", "1"].map(Into::into), ["1", "1", "2"].map(Into::into))
        );
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(stable(&host.netns), before);
        assert!(!host.file().exists());
    }

    #[test]
    fn an_interface_with_another_name_gets_back_what_it_had() {
        let host = Host::new();
        host.change(|changes| {
            changes.apply_forwarding("eth0").unwrap();
            changes.apply_forwarding("eth1.5").unwrap();
        });
        host.netns.ip("link set eth0 down");
        host.netns.ip("link set eth0 name conf");
        host.change(|changes| {
            let other = BTreeSet::from([index_of("eth1.5").unwrap()]);
            changes.restore_all_but(&other).unwrap();
        });
        assert_eq!(
            (host.forwarding("conf"), host.forwarding("eth1.5")),
            (["0", "0", "1"].map(Into::into), ["1", "1", "2"].map(Into::into))
        );
    }

    #[test]
    fn default_routes_from_advertisements_stay_everywhere() {
        let host = Host::new();
        host.advertise();
        host.change(|changes| {
            changes.apply_forwarding("eth0").unwrap();
            assert!(changes.journal.entries.iter().all(|entry| !entry.momentary));
        });
        assert_eq!(host.default_routes(), 2);
        assert_eq!(host.forwarding("eth1.5"), ["0", "0", "1"]);
        host.change(|changes| changes.apply_forwarding("eth1.5").unwrap());
        assert_eq!(host.default_routes(), 2);
        host.netns.ip("-6 route flush proto ra");
        host.advertise();
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(host.default_routes(), 2);
    }

    /// Why `apply_forwarding` does what it does; should this fail, a kernel behaves better.
    #[test]
    fn forwarding_alone_deletes_default_routes() {
        let host = Host::new();
        host.advertise();
        host.netns.set_sysctl("ipv6/conf/eth0/forwarding", "1");
        assert_eq!(host.default_routes(), 0);
    }

    #[test]
    fn a_killed_process_left_the_first_values() {
        let host = Host::new();
        let before = stable(&host.netns);
        // Each one ends without restoring.
        for _ in 0..3 {
            host.change(|changes| changes.apply_forwarding("eth0").unwrap());
            host.change(|changes| changes.apply_local_port_range((50_000, 51_000)).unwrap());
            host.netns.set_sysctl("ipv4/conf/eth0/forwarding", "0");
            host.change(|changes| changes.apply_local_port_range((60_000, 61_000)).unwrap());
            host.change(|changes| changes.apply_forwarding("eth0").unwrap());
        }
        // Killed after it had written the file and before it changed anything, and amid raising accept_ra.
        host.change(|changes| {
            let entry = |key: &str, momentary| Entry {
                key: key.into(),
                ifindex: index_of("eth1.5").unwrap(),
                from: if momentary { "1".into() } else { "0".into() },
                to: if momentary { "2".into() } else { "1".into() },
                momentary,
            };
            changes.journal.remember(entry("ipv4/conf/eth1.5/forwarding", false));
            changes.journal.remember(entry("ipv6/conf/eth1.5/accept_ra", true));
            changes.journal.save().unwrap();
        });
        host.netns.set_sysctl("ipv6/conf/eth1.5/accept_ra", "2");
        host.change(|_| {});
        assert_eq!(host.forwarding("eth1.5"), ["0", "0", "1"]);
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(stable(&host.netns), before);
    }

    #[test]
    fn what_others_set_since_is_theirs() {
        let host = Host::new();
        host.netns.set_sysctl("ipv6/conf/eth0/accept_ra", "0");
        host.change(|changes| {
            changes.apply_forwarding("eth0").unwrap();
            changes.apply_local_port_range((60_000, 61_000)).unwrap();
        });
        host.netns.set_sysctl("ipv4/ip_local_port_range", "1024 2048");
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(host.netns.sysctl("ipv4/ip_local_port_range"), "1024\t2048");
        assert_eq!(host.forwarding("eth0"), ["0", "0", "0"]);
        assert!(!host.file().exists());
    }

    #[test]
    fn interfaces_come_and_go() {
        let host = Host::new();
        host.change(|changes| {
            changes.apply_forwarding("eth0").unwrap();
            changes.apply_forwarding("eth1.5").unwrap();
            changes.apply_forwarding("nowhere0").unwrap();
        });
        host.netns.ip("link del eth0");
        host.netns.ip("link del eth1.5");
        // Another of the same name, that forwards by somebody else's will.
        host.netns.join("eth0", &host.world, "p0");
        host.netns.set_sysctl("ipv4/conf/eth0/forwarding", "1");
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(host.forwarding("eth0"), ["1", "0", "1"]);
        assert!(!host.file().exists());
    }

    #[test]
    fn an_interface_without_ipv6_is_no_error() {
        let host = Host::new();
        host.netns.ip("link set eth0 mtu 1000");
        assert!(host.netns.enter(|| read("ipv6/conf/eth0/forwarding").unwrap().is_none()));
        host.change(|changes| changes.apply_forwarding("eth0").unwrap());
        assert_eq!(host.netns.sysctl("ipv4/conf/eth0/forwarding"), "1");
        host.change(|changes| changes.restore().unwrap());
        assert_eq!(host.netns.sysctl("ipv4/conf/eth0/forwarding"), "0");
    }

    #[test]
    fn what_cannot_be_remembered_is_not_changed() {
        let host = Host::new();
        let error = host.netns.enter(|| {
            let mut changes = HostChanges::open(Path::new("/nowhere/sysctls.json")).unwrap();
            changes.apply_forwarding("eth0").unwrap_err()
        });
        assert_eq!(error.to_string(), "cannot write /nowhere/sysctls.json");
        assert_eq!(host.forwarding("eth0"), ["0", "0", "1"]);
    }

    #[test]
    fn names_are_checked() {
        let host = Host::new();
        for name in ["", "..", "all", "default", "a/b", "a b", "a:b", "0123456789abcdef"] {
            host.change(|changes| {
                assert!(matches!(changes.apply_forwarding(name), Err(HostError::InterfaceName(_))), "{name}")
            });
        }
        assert_eq!(interface_of("ipv6/conf/eth1.5/accept_ra"), Some("eth1.5"));
        assert_eq!(interface_of("ipv4/ip_local_port_range"), None);
        assert!(is_inside("ipv4/conf/eth1.5/forwarding") && !is_inside("../kernel/x") && !is_inside("/etc/passwd"));
    }
}
