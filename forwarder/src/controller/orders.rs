//! What others ask of the loop, which alone changes what is configured: from the control socket, or by a signal.

use super::{Controller, SetChange};
use crate::config;
use crate::error::one_line;
use crate::firewall::ranges::Addresses;
use crate::unreachable::Budget;
use std::time::Instant;
use tokio::sync::oneshot;

/// What became of an order: a sentence, either way.
pub type Done = Result<String, String>;

/// Something that is to be done.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again.
    Reload(oneshot::Sender<Done>),
    /// Change a set: its name, how, and by which addresses.
    Set(String, SetChange, Addresses, oneshot::Sender<Done>),
}

impl Controller {
    pub(super) async fn handle_order(&mut self, order: Order) {
        match order {
            Order::Reload(reply) => {
                let done = self.reload().await;
                // Who asked may have gone.
                let _ = reply.send(done);
            }
            Order::Set(name, change, addresses, reply) => {
                let done = self.change_set(&name, change, addresses).await;
                let _ = reply.send(done);
            }
        }
    }

    /// Reads the configuration again and applies it. What cannot be applied changes nothing.
    pub(super) async fn reload(&mut self) -> Done {
        let done = self.try_reload().await;
        match &done {
            Ok(said) => tracing::info!("{said}"),
            Err(why) => tracing::error!("the configuration stays as it was: {why}"),
        }
        done
    }

    async fn try_reload(&mut self) -> Done {
        let mut config = config::read(self.path.as_deref()).map_err(|error| one_line(&error))?;
        let live_sets = self.live_sets.clone();
        let notices = self.live_sets.apply(&mut config.firewall.sets);
        let flows = (config.flows.max, config.flows.max_ipv6);
        let keeps_size = flows != (self.config.flows.max, self.config.flows.max_ipv6);
        let keeps_logs = config.flow_logs != self.config.flow_logs;
        let before = std::mem::replace(&mut self.config, config);
        if let Err(error) = self.apply().await {
            (self.config, self.live_sets) = (before, live_sets);
            self.apply_again().await;
            return Err(one_line(&error));
        }
        self.save_live_sets();
        notices.iter().for_each(|notice| tracing::info!("{notice}"));
        self.live.set_timeouts(self.config.timeouts.clone());
        self.answers = Budget::new(self.config.icmp.errors_per_second_per_cpu, Instant::now());
        let mut said = format!("reloaded {}", self.config.origin);
        if keeps_size {
            said += "; the flow tables keep their size until forwarder is stopped and started again";
        }
        if keeps_logs {
            said += "; flow logs go where they went until forwarder starts again";
        }
        notices.iter().for_each(|notice| said += &format!("; {notice}"));
        Ok(said)
    }
}
