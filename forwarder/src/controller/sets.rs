//! Sets that change while everything runs: compiled anew and exchanged at once, as a reload is, but without the file.

use super::{Controller, Done};
use crate::error::one_line;
use crate::firewall::ranges::Addresses;

/// How a set changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetChange {
    /// These come in.
    Add,
    /// These go out.
    Remove,
    /// It has these and no others.
    Replace,
    /// It is as configured again.
    Reset,
}

impl Controller {
    /// Changes a set; see `firewall::live_sets` for how long. What cannot be applied changes nothing.
    pub(super) async fn change_set(&mut self, name: &str, change: SetChange, addresses: Addresses) -> Done {
        let Some(at) = self.config.firewall.sets.iter().position(|set| set.name == name) else {
            let names: Vec<_> = self.config.firewall.sets.iter().map(|set| set.name.as_str()).collect();
            return Err(format!("there is no set `{name}`; sets are: {}", names.join(", ")));
        };
        let before = self.config.firewall.sets[at].addresses.clone();
        let after = match change {
            SetChange::Add => Addresses::union([&before, &addresses].into_iter()),
            SetChange::Remove => before.without(&addresses),
            SetChange::Replace => addresses,
            SetChange::Reset => self.live_sets.configured(name),
        };
        let (ranges, live_sets) = (after.ranges(), self.live_sets.clone());
        self.live_sets.note(name, &after);
        self.config.firewall.sets[at].addresses = after;
        if let Err(error) = self.apply().await {
            self.config.firewall.sets[at].addresses = before;
            self.live_sets = live_sets;
            self.apply_again().await;
            return Err(one_line(&error));
        }
        self.save_live_sets();
        let differs = match self.live_sets.differences().get(name) {
            Some(_) => "; so it stays until its text in the configuration changes, `forwarder sets reset`, or a stop",
            None => ", as configured",
        };
        tracing::info!("set {name} has {ranges} ranges now");
        Ok(format!("set {name} has {ranges} ranges now{differs}"))
    }

    /// Writes down how sets differ from the configuration.
    pub(super) fn save_live_sets(&self) {
        let saved = self.live_sets.save();
        self.log_failure("write down how sets were changed", saved);
    }
}
