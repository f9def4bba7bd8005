//! Which interfaces run the datapath: attached natively where the driver can, generically otherwise, and taken over from
//! an earlier controller without a gap.

use super::load::{ENTER, maps_directory, xdp};
use super::{Datapath, DatapathError, Result, sys};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{ProgramError, Xdp};
use std::fs;
use std::path::{Path, PathBuf};

/// Largest MTU in bytes for which ENA, with its 4,096-byte pages, takes XDP (drivers/net/ethernet/amazon/ena/ena_netdev.h).
const ENA_XDP_MTU: u32 = 3498;

/// How XDP runs on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver, before the kernel makes a socket buffer.
    Native,
    /// In the kernel's generic receive path: works everywhere, at a fraction of the speed.
    Generic,
}

impl Mode {
    const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name in JSON and among the pins.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn flags(self) -> XdpMode {
        match self {
            Self::Native => XdpMode::Driver,
            Self::Generic => XdpMode::Skb,
        }
    }
}

/// A link that is held open, and its pin.
#[derive(Debug)]
pub(super) struct Attached {
    mode: Mode,
    link: FdLink,
}

impl Datapath {
    /// Has the datapath run on an interface, replacing an earlier controller's program if there is one. With
    /// `Mode::Native` it is generic where the driver has no XDP, or where it is generic already; with `Mode::Generic` it
    /// never is native afterwards.
    ///
    /// # Errors
    /// When the kernel or the driver refuses; says what to do where that is known.
    pub fn attach(&self, (ifindex, name): (u32, &str), mtu: u32, mode: Mode) -> Result<Mode> {
        if mode == Mode::Generic {
            self.detach_mode(ifindex, Mode::Native)?;
        }
        let mut links = self.links.lock().expect("no thread panics while it holds the links");
        if let Some(attached) = links.get(&ifindex) {
            return Ok(attached.mode);
        }
        let mut programs = self.programs.lock().expect("no thread panics while it holds the programs");
        let program = xdp(&mut programs, ENTER)?;
        let attached = match self.take_over(program, ifindex) {
            Some(attached) => attached,
            None => self.attach_anew(program, ifindex, mode).map_err(|source| refused(name, mtu, source))?,
        };
        let mode = attached.mode;
        links.insert(ifindex, attached);
        Ok(mode)
    }

    /// Ends the datapath on an interface, at once; nothing happens when it did not run there.
    ///
    /// # Errors
    /// When the kernel refuses, or the pin cannot be removed.
    pub fn detach(&self, ifindex: u32) -> Result<()> {
        Mode::ALL.into_iter().try_for_each(|mode| self.detach_mode(ifindex, mode))
    }

    /// Indexes of the interfaces that an earlier controller left attached.
    ///
    /// # Errors
    /// When the pins cannot be listed.
    pub fn pinned_interfaces(&self) -> Result<Vec<u32>> {
        let Some(pins) = &self.pins else { return Ok(Vec::new()) };
        let failed = |source| DatapathError::Pin { action: "list", path: pins.clone(), source: Box::new(source) };
        let directory = match fs::read_dir(pins) {
            // Somebody has removed it under us; then nothing is there.
            Err(source) if source.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(failed)?,
        };
        let names = directory.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| name.split_once('-')?.1.parse().ok().filter(|_| !name.starts_with("abi-")))
            .collect())
    }

    /// Whether interfaces run another version's datapath, and none of them has been taken over.
    pub fn is_beside_another(&self) -> bool {
        let links = self.links.lock().expect("no thread panics while it holds the links");
        !self.adopted && links.is_empty() && self.pinned_interfaces().is_ok_and(|pinned| !pinned.is_empty())
    }

    /// Removes the pins of this version's maps, or those of all others.
    ///
    /// # Errors
    /// When a pin cannot be removed.
    pub fn remove_maps(&self, own: bool) -> Result<()> {
        let Some(pins) = &self.pins else { return Ok(()) };
        let failed = |source| DatapathError::Pin { action: "list", path: pins.clone(), source: Box::new(source) };
        for entry in fs::read_dir(pins).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with("abi-") && (name == maps_directory()) == own {
                remove_pins(&path)?;
            }
        }
        Ok(())
    }

    /// Ends forwarding: every link, every pin. Everything is tried; the first failure is returned.
    ///
    /// # Errors
    /// When the kernel refuses, or a pin cannot be removed.
    pub fn remove(&self) -> Result<()> {
        let links = std::mem::take(&mut *self.links.lock().expect("no thread panics while it holds the links"));
        let ended = links.values().map(|attached| end(&attached.link)).fold(Ok(()), Result::and);
        drop(links);
        ended.and(self.pins.as_ref().map_or(Ok(()), |pins| remove_pins(pins)))
    }

    /// The program of a pinned link is replaced. `None` when there is none, or its interface is gone.
    fn take_over(&self, program: &mut Xdp, ifindex: u32) -> Option<Attached> {
        Mode::ALL.into_iter().find_map(|mode| {
            let pin = self.link_pin(ifindex, mode)?;
            let link = PinnedLink::from_pin(&pin).ok()?;
            let replaced = XdpLink::try_from(FdLink::from(link)).ok().and_then(|link| {
                let id = program.attach_to_link(link).ok()?;
                FdLink::try_from(program.take_link(id).ok()?).ok()
            });
            match replaced {
                Some(link) => Some(Attached { mode, link }),
                None => {
                    // A link whose interface has gone cannot be updated; it has no use any more.
                    let _ = fs::remove_file(&pin);
                    None
                }
            }
        })
    }

    fn detach_mode(&self, ifindex: u32, mode: Mode) -> Result<()> {
        let mut links = self.links.lock().expect("no thread panics while it holds the links");
        let pin = self.link_pin(ifindex, mode);
        let link = match links.get(&ifindex) {
            Some(attached) if attached.mode == mode => links.remove(&ifindex).map(|attached| attached.link),
            _ => pin.as_ref().and_then(|pin| Some(PinnedLink::from_pin(pin).ok()?.into())),
        };
        link.map_or(Ok(()), |link| end(&link))?;
        pin.map_or(Ok(()), |pin| remove_file(&pin))
    }

    fn attach_anew(&self, program: &mut Xdp, ifindex: u32, mode: Mode) -> std::result::Result<Attached, ProgramError> {
        let (mode, id) = match program.attach_to_if_index(ifindex, mode.flags()) {
            Ok(id) => (mode, id),
            Err(error) if mode == Mode::Native && is_unsupported(&error) => {
                (Mode::Generic, program.attach_to_if_index(ifindex, Mode::Generic.flags())?)
            }
            Err(error) => return Err(error),
        };
        // Not a link: the kernel was asked over netlink because it refused one; dropping it detaches.
        let link = FdLink::try_from(program.take_link(id)?).map_err(|_| ProgramError::NotAttached)?;
        let Some(pin) = self.link_pin(ifindex, mode) else { return Ok(Attached { mode, link }) };
        let _ = fs::remove_file(&pin);
        let pinned = link.pin(&pin).map_err(|source| ProgramError::IOError(std::io::Error::other(source)))?;
        Ok(Attached { mode, link: pinned.into() })
    }

    fn link_pin(&self, ifindex: u32, mode: Mode) -> Option<PathBuf> {
        Some(self.pins.as_ref()?.join(format!("{}-{ifindex}", mode.name())))
    }
}

/// Has a link's program run no more, now. When only the last descriptor and pin go, the kernel does so some milliseconds
/// later, and until then refuses to attach in the other mode.
fn end(link: &FdLink) -> Result<()> {
    let info = link.info().map_err(|source| DatapathError::Detach(Box::new(source)))?;
    sys::detach_link(info.id()).map_err(|source| DatapathError::Detach(Box::new(source)))
}

/// Removes the pins of an instance; whatever of it is attached, ends.
///
/// # Errors
/// When a file cannot be removed.
pub(super) fn remove_pins(pins: &Path) -> Result<()> {
    match fs::remove_dir_all(pins) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DatapathError::Pin { action: "remove", path: pins.to_owned(), source: Box::new(source) })
        }
        _ => Ok(()),
    }
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(DatapathError::Pin { action: "remove", path: path.to_owned(), source: Box::new(source) })
        }
        _ => Ok(()),
    }
}

/// The driver has no XDP; the generic path does it instead.
fn is_unsupported(error: &ProgramError) -> bool {
    os_error(error) == Some(libc::EOPNOTSUPP)
}

fn os_error(error: &ProgramError) -> Option<i32> {
    match error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        _ => None,
    }
}

fn refused(interface: &str, mtu: u32, source: ProgramError) -> DatapathError {
    let hint = match os_error(&source) {
        Some(libc::EBUSY) => {
            ": another XDP program is attached to it; remove that (`ip link set dev ".to_owned()
                + interface
                + " xdp off`)"
        }
        // `dev_xdp_attach`: not below a device that has a program.
        Some(libc::EEXIST) => {
            ": an interface on top of it (VLAN, macvlan or the like) has an XDP program; serve only one of them"
                .to_owned()
        }
        Some(libc::EINVAL | libc::ERANGE | libc::E2BIG) | None if mtu > ENA_XDP_MTU => format!(
            ": its MTU of {mtu} is more than the driver takes with XDP; run `ip link set dev {interface} mtu {ENA_XDP_MTU}` or less"
        ),
        _ => String::new(),
    };
    DatapathError::Attach { interface: interface.to_owned(), hint, source: Box::new(source) }
}
