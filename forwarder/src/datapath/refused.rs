//! Refused packets by their ends, as the datapath counts them for flow logs.
//!
//! There are two banks. Only one is counted in; it is changed for the other, and read when no program uses it any more: so
//! what is read is final, and what is removed had been read.

use super::table::{PerCpu, Table};
use super::{Result, wait_for_programs};
use forwarder_ebpf::abi::{Counter, FlowKey4, FlowKey6, Refused, RefusedKey, Refusing};

/// The tables.
#[derive(Debug)]
pub struct RefusedTables {
    pub(super) refusing: Table<u32, Refusing>,
    pub(super) v4: Table<FlowKey4, Refused>,
    pub(super) v6: Table<FlowKey6, Refused>,
    pub(super) lost: PerCpu<Counter>,
}

/// What one bank had. It is still there; see [`RefusedTables::remove`].
#[derive(Debug, Default)]
pub struct Bank {
    /// IPv4 packets.
    pub v4: Vec<(FlowKey4, Refused)>,
    /// IPv6 packets.
    pub v6: Vec<(FlowKey6, Refused)>,
}

impl RefusedTables {
    /// Says whether refused packets are counted.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_wanted(&self, wanted: bool) -> Result<()> {
        let known = self.refusing.read(&0)?.unwrap_or_default();
        let refusing = Refusing { wanted: u32::from(wanted), ..known };
        if refusing == known { Ok(()) } else { self.refusing.write(&0, &refusing) }
    }

    /// Changes the bank, and reads the one that was counted in.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn read(&self) -> Result<Bank> {
        if self.is_empty()? {
            return Ok(Bank::default());
        }
        let refusing = self.refusing.read(&0)?.unwrap_or_default();
        self.refusing.write(&0, &Refusing { bank: 1 - (refusing.bank & 1), ..refusing })?;
        wait_for_programs();
        Ok(Bank { v4: of_bank(&self.v4, refusing.bank)?, v6: of_bank(&self.v6, refusing.bank)? })
    }

    /// Removes what was read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove(&self, bank: &Bank) -> Result<()> {
        bank.v4.iter().try_for_each(|(key, _)| self.v4.remove(key).map(drop))?;
        bank.v6.iter().try_for_each(|(key, _)| self.v6.remove(key).map(drop))
    }

    /// Packets since the last call that there was no room for.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn take_lost(&self) -> Result<u64> {
        let lost = self.lost.read_folded(1, |sum, counter| sum.packets += counter.packets)?;
        let packets = lost.first().map_or(0, |counter| counter.packets);
        if packets > 0 {
            self.lost.clear()?;
        }
        Ok(packets)
    }

    fn is_empty(&self) -> Result<bool> {
        let mut count = 0;
        self.v4.visit(|_, _| {
            count += 1;
            Ok(())
        })?;
        self.v6.visit(|_, _| {
            count += 1;
            Ok(())
        })?;
        Ok(count == 0)
    }
}

fn of_bank<K: RefusedKey + super::Element>(table: &Table<K, Refused>, bank: u32) -> Result<Vec<(K, Refused)>> {
    let mut found = Vec::new();
    table.visit(|key, refused| {
        if u32::from(key.by().bank) == bank {
            found.push((*key, refused.clone()));
        }
        Ok(())
    })?;
    Ok(found)
}
