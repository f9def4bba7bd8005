//! The packet core of forwarder: everything that a packet meets, written once for the kernel and for the host.
//!
//! ```text
//!            +------------------ pipeline::enter ------------------+
//! frame ---> | ours? -> parse -> flow lookup -> epoch, TTL, MTU ok |--> rewrite --> Forward(egress)
//!            +--------------------------+---------------------------+
//!                   not ours: Pass      | Next(stage)
//!                                       v
//!   Flow4 / Flow6   change of state, new epoch, options, fragments:  route -> firewall -> conntrack -> rewrite
//!   New4 / New6     first packet:  route -> firewall -> nat -> conntrack -> rewrite
//!   Firewall4 / 6   before both of these, where there are rules: the first that matches
//!   Related4 / 6    ICMP errors about a known flow: outer and quoted headers translated
//!   Answer4 / 6     the packet becomes an ICMP error to its sender
//!   Reset4 / 6      the packet becomes a TCP reset to its sender
//! ```
//!
//! Every stage is a BPF program of its own in the kernel (`bpf/`, tail calls) and a plain function call on the host
//! (`sim`). Both bodies implement two traits, [`frame::Frame`] and [`tables::Tables`]; time is an argument. So golden,
//! property and fuzz tests run the very code that the kernel runs, without root.
//!
//! # Words
//! `inside` and `outside` are NAT sides (a role of an interface); `ingress` and `egress` are the interfaces of one packet.
//! A connection is two entries of the flow table, one per direction: the `originator`'s and the `responder`'s. An entry's
//! key is the tuple as it arrives; its rewrite is the tuple as it leaves.
//!
//! # Invariants
//! - A known flow's packet costs one lookup, nearly always one access to memory. No timer, no lock, no clock helper.
//! - The responder's entry is inserted first, and only if its key is free: that insertion *is* the port allocation.
//! - Everything that changes in an entry after insertion is an atomic of its own; the rewrite never changes.
//! - A packet is written only after every decision about it has been taken; until then it can still be passed or answered.
//! - Every end is a [`verdict::Verdict`], and each has its own counter. Nothing is dropped without a named reason.
//!
//! # Why everything is `inline(always)`
//! A BPF function that is not inlined gets packet pointers as plain integers, and the verifier refuses arithmetic on them.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![deny(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg_attr(test, allow(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic))]

#[cfg(any(test, feature = "sim"))]
extern crate std;

pub mod abi;
pub mod conntrack;
pub mod flow_table;
pub mod frame;
pub mod pipeline;
pub mod tables;
pub mod verdict;
pub mod wire;

mod answer;
mod firewall;
mod flow;
mod fragment;
mod handshake;
mod limits;
mod nat;
mod related;
mod reset;
mod rewrite;
mod route;
mod sequence;

#[cfg(any(test, feature = "sim"))]
pub mod sim;
