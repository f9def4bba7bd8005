//! What others ask of the loop, which alone changes what is configured: from the control socket, or by a signal.

use super::{Controller, SetChange};
use crate::config::{self, Config};
use crate::error::one_line;
use crate::firewall::ranges::Addresses;
use crate::flowlog::change::Prepared;
use crate::unreachable::Budget;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// How long all else waits for the pass that changes flow logs. With millions of flows it takes a second.
const LONG_PASS: Duration = Duration::from_secs(10);

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
        // First: nothing has changed yet when that is refused.
        let mut flow_logs = self.prepare_flow_logs(&config).await?;
        let live_sets = self.live_sets.clone();
        let notices = self.live_sets.apply(&mut config.firewall.sets);
        let flows = (config.flows.max, config.flows.max_ipv6);
        let keeps_size = flows != (self.config.flows.max, self.config.flows.max_ipv6);
        let before = std::mem::replace(&mut self.config, config);
        if let Err(error) = self.apply().await {
            (self.config, self.live_sets) = (before, live_sets);
            self.apply_again().await;
            if let Some(prepared) = flow_logs.take() {
                self.live.flow_logs().abandon(prepared);
            }
            return Err(one_line(&error));
        }
        let flow_logs_follow = match flow_logs {
            Some(prepared) => !self.change_flow_logs(prepared).await?,
            None => false,
        };
        self.save_live_sets();
        notices.iter().for_each(|notice| tracing::info!("{notice}"));
        self.live.set_timeouts(self.config.timeouts.clone());
        self.answers = Budget::new(self.config.icmp.errors_per_second_per_cpu, Instant::now());
        let mut said = format!("reloaded {}", self.config.origin);
        if keeps_size {
            said += "; the flow tables keep their size until forwarder is stopped and started again";
        }
        if flow_logs_follow {
            said += "; flow logs follow when the sweeper has been through the flow table";
        }
        notices.iter().for_each(|notice| said += &format!("; {notice}"));
        Ok(said)
    }

    /// Opens what flow logs need that they have not yet.
    async fn prepare_flow_logs(&mut self, config: &Config) -> Result<Option<Prepared>, String> {
        if config.flow_logs == self.config.flow_logs {
            return Ok(None);
        }
        let (live, wanted) = (self.live.clone(), config.flow_logs.clone());
        let prepared = tokio::task::spawn_blocking(move || live.flow_logs().prepare(&wanted)).await;
        prepared.map_err(|error| one_line(&error))?.map(Some).map_err(|error| one_line(&error))
    }

    /// The windows in progress end in the old destinations, and from the same packet on records go to the new ones. `false`: the
    /// pass that does it takes long, and is not waited for.
    async fn change_flow_logs(&mut self, prepared: Prepared) -> Result<bool, String> {
        let live = self.live.clone();
        let change = tokio::task::spawn_blocking(move || live.change_flow_logs(prepared));
        match tokio::time::timeout(LONG_PASS, change).await {
            Ok(done) => done.map(|()| true).map_err(|error| one_line(&error)),
            Err(_) => Ok(false),
        }
    }
}
