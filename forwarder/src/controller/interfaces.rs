//! Interfaces come, go and change: attached and told to the datapath, or taken out of it.

use super::{Controller, ControllerError};
use crate::datapath::{DatapathError, Mode};
use crate::error::one_line;
use crate::plan::{Plan, PlannedInterface};
use crate::status::Served;
use forwarder_ebpf::abi::Side;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, Ipv6Addr};

impl Controller {
    /// Serves what the plan says, and nothing else.
    pub(super) fn apply_interfaces(&mut self, plan: &Plan) -> Result<(), ControllerError> {
        self.remove_unplanned(plan)?;
        let (mut served, mut refused) = self.attach_all(plan, Mode::Native);
        let generic = served.iter().filter(|served| served.mode == Mode::Generic).count();
        if generic > 0 && generic < served.len() {
            // A frame that a native program redirects can leave only by a driver that knows XDP frames.
            tracing::warn!("one driver has no native XDP, so all interfaces use the generic path");
            (served, refused) = self.attach_all(plan, Mode::Generic);
        }
        // Last, or the kernel would forward by itself, untranslated and unfiltered, until the datapath is there.
        served.retain(|interface| match self.have_forward(interface) {
            Ok(()) => true,
            Err(error) => {
                refused.insert(interface.name.clone(), one_line(&error));
                false
            }
        });
        refused.extend(plan.missing.iter().map(|missing| (missing.name.clone(), missing.why.clone())));
        self.publish(served, refused);
        Ok(())
    }

    /// What can be attached, and why the rest cannot.
    fn attach_all(&mut self, plan: &Plan, mode: Mode) -> (Vec<Served>, BTreeMap<String, String>) {
        let (mut served, mut refused) = (Vec::new(), BTreeMap::new());
        for interface in &plan.interfaces {
            match self.attach(interface, mode) {
                Ok(mode) => served.push(describe(interface, mode)),
                Err(error) => {
                    refused.insert(interface.name.clone(), one_line(&error));
                }
            }
        }
        (served, refused)
    }

    /// What an earlier plan, or an earlier controller, served and this one does not.
    fn remove_unplanned(&mut self, plan: &Plan) -> Result<(), DatapathError> {
        let planned: BTreeSet<u32> = plan.interfaces.iter().map(|interface| interface.ifindex).collect();
        // Before the datapath leaves them, or the kernel would forward there by itself.
        let restored = self.changes.restore_all_but(&planned);
        self.log_failure("put back the sysctls of an interface that is served no more", restored);
        let datapath = self.live.datapath();
        // Detached first: a frame that comes in between would be counted in another interface's slot.
        for ifindex in datapath.pinned_interfaces()? {
            if !planned.contains(&ifindex) {
                datapath.detach(ifindex)?;
            }
        }
        let served = datapath.read_ifaces()?;
        for (ifindex, _) in &served {
            if !planned.contains(ifindex) {
                datapath.remove_iface(*ifindex)?;
            }
        }
        let slot_of =
            |ifindex| plan.interfaces.iter().find(|interface| interface.ifindex == ifindex).map(|own| own.slot);
        if served.iter().any(|(ifindex, config)| slot_of(*ifindex).is_some_and(|slot| slot != config.slot)) {
            tracing::warn!("the interfaces are in another order than before: their counters begin at zero");
            datapath.clear_counters()?;
        }
        Ok(())
    }

    fn attach(&mut self, interface: &PlannedInterface, mode: Mode) -> Result<Mode, ControllerError> {
        let PlannedInterface { name, ifindex, config, .. } = interface;
        let datapath = self.live.datapath();
        datapath.write_iface(*ifindex, config)?;
        match datapath.attach((*ifindex, name), config.mtu, mode) {
            Ok(mode) => Ok(mode),
            Err(error) => {
                datapath.remove_iface(*ifindex)?;
                self.changes.restore_interface(name)?;
                Err(error.into())
            }
        }
    }

    /// The datapath asks the kernel's FIB, which refuses for interfaces that do not forward.
    fn have_forward(&mut self, interface: &Served) -> Result<(), ControllerError> {
        let Served { name, ifindex, .. } = interface;
        if let Err(error) = self.changes.apply_forwarding(name) {
            self.live.datapath().detach(*ifindex)?;
            self.live.datapath().remove_iface(*ifindex)?;
            self.changes.restore_interface(name)?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Network managers set an interface's sysctls anew when they restart; without forwarding the FIB gives no answer.
    pub(super) fn keep_forwarding(&mut self) {
        let served = self.live.view().served.clone();
        for Served { name, .. } in served {
            let applied = self.changes.apply_forwarding(&name);
            self.log_failure(&format!("have {name} forward"), applied);
        }
    }

    /// Says what is new, and shows it to those who ask.
    fn publish(&mut self, served: Vec<Served>, not_served: BTreeMap<String, String>) {
        let before = self.live.view().clone();
        for interface in &served {
            let known =
                before.served.iter().any(|other| other.name == interface.name && other.ifindex == interface.ifindex);
            if !known {
                let Served { name, role, mode, mtu, .. } = interface;
                tracing::info!("{name} is served: {role}, {} XDP, MTU {mtu}", mode.name());
                if *mode == Mode::Generic {
                    tracing::warn!("{name} uses the generic path, which is several times slower than native XDP");
                }
            }
        }
        for (name, why) in &not_served {
            if before.not_served.get(name) != Some(why) {
                tracing::warn!("{name} is not served: {why}");
            }
        }
        let mut view = self.live.view();
        view.slots = served.iter().map(|interface| u32::from(interface.slot) + 1).max().unwrap_or(0).max(before.slots);
        view.served = served;
        view.not_served = not_served;
    }
}

fn describe(interface: &PlannedInterface, mode: Mode) -> Served {
    let role = match interface.side {
        Side::Inside => "inside",
        Side::Outside => "outside",
        Side::Both => "both",
    };
    let PlannedInterface { name, ifindex, slot, config, .. } = interface;
    let address4 = Some(config.address4.into()).filter(|address: &Ipv4Addr| !address.is_unspecified());
    let address6 = Some(config.address6.into()).filter(|address: &Ipv6Addr| !address.is_unspecified());
    let (slot, mac, addresses) = (*slot, config.mac, (address4, address6));
    Served { name: name.clone(), ifindex: *ifindex, role, slot, mode, mtu: config.mtu, mac, addresses }
}
