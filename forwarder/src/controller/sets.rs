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
}

impl Controller {
    /// Changes a set until the next reload. What cannot be applied changes nothing.
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
        };
        let ranges = after.ranges();
        self.config.firewall.sets[at].addresses = after;
        if let Err(error) = self.apply().await {
            self.config.firewall.sets[at].addresses = before;
            self.apply_again().await;
            return Err(one_line(&error));
        }
        tracing::info!("set {name} has {ranges} ranges now");
        Ok(format!("set {name} has {ranges} ranges now; the next reload reads it from the configuration again"))
    }
}
