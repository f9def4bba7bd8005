//! Integers in map values that several CPUs change at once.
//!
//! `core` has no 16 and 32-bit atomics, and no read-modify-write at all, for the BPF target, though the instructions exist
//! (64 and 32-bit add, and, or, compare-and-exchange since kernel 5.12). So these stand in: the BPF instructions in the
//! kernel, the standard atomics on the host. All orderings are relaxed but that of `exchange`, by which entries are published.
#![expect(unsafe_code, reason = "atomic access to shared memory; see the SAFETY notes")]

use core::cell::UnsafeCell;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

macro_rules! shared {
    ($(#[$doc:meta])* $name:ident, $int:ty, $atomic:ident) => {
        $(#[$doc])*
        #[derive(Default, FromBytes, IntoBytes, KnownLayout)]
        #[repr(transparent)]
        pub struct $name(UnsafeCell<$int>);

        // SAFETY: every access goes through the methods below, each a single atomic access of naturally aligned memory.
        unsafe impl Sync for $name {}

        impl $name {
            /// With this value to begin with.
            #[inline(always)]
            pub const fn new(value: $int) -> Self {
                Self(UnsafeCell::new(value))
            }

            /// The value now.
            #[inline(always)]
            pub fn load(&self) -> $int {
                #[cfg(target_arch = "bpf")]
                // SAFETY: the pointer is to our own, aligned field; a volatile load of this width is one instruction.
                return unsafe { self.0.get().read_volatile() };
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the pointer is to our own, aligned field and lives as long as `self`; all accesses are atomic.
                return unsafe { core::sync::atomic::$atomic::from_ptr(self.0.get()) }
                    .load(core::sync::atomic::Ordering::Relaxed);
            }

            /// Replaces the value.
            #[inline(always)]
            pub fn store(&self, value: $int) {
                #[cfg(target_arch = "bpf")]
                // SAFETY: the pointer is to our own, aligned field; a volatile store of this width is one instruction.
                unsafe {
                    self.0.get().write_volatile(value)
                };
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the pointer is to our own, aligned field and lives as long as `self`; all accesses are atomic.
                unsafe { core::sync::atomic::$atomic::from_ptr(self.0.get()) }
                    .store(value, core::sync::atomic::Ordering::Relaxed);
            }
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                self.load().fmt(f)
            }
        }

        impl Clone for $name {
            #[inline(always)]
            fn clone(&self) -> Self {
                Self::new(self.load())
            }
        }
    };
}

shared! {
    /// A shared `u64`.
    SharedU64, u64, AtomicU64
}
shared! {
    /// A shared `u32`.
    SharedU32, u32, AtomicU32
}
shared! {
    /// A shared `u16`.
    SharedU16, u16, AtomicU16
}

macro_rules! exchange {
    ($type:ty, $int:ty, $atomic:ident, $class:ident, $register:tt, $instruction:literal) => {
        impl $type {
            /// Replaces `old` by `new`; false when the value is not `old`. A full barrier: what was written before is seen by
            /// who sees `new`.
            #[inline(always)]
            pub fn exchange(&self, old: $int, new: $int) -> bool {
                #[cfg(target_arch = "bpf")]
                {
                    let mut seen = old;
                    // SAFETY: one atomic instruction on our own, aligned field; it changes nothing else but its register,
                    // and memory that was written before stays before it.
                    unsafe {
                        core::arch::asm!(
                            $instruction,
                            in(reg) self.0.get(), in($class) new, inout($register) seen, options(nostack, preserves_flags)
                        )
                    };
                    seen == old
                }
                #[cfg(not(target_arch = "bpf"))]
                {
                    use core::sync::atomic::Ordering::SeqCst;
                    // SAFETY: the pointer is to our own, aligned field and lives as long as `self`; all accesses are atomic.
                    unsafe { core::sync::atomic::$atomic::from_ptr(self.0.get()) }
                        .compare_exchange(old, new, SeqCst, SeqCst)
                        .is_ok()
                }
            }
        }
    };
}

exchange!(SharedU32, u32, AtomicU32, wreg, "w0", "w0 = cmpxchg32_32({0} + 0, w0, {1})");
exchange!(SharedU64, u64, AtomicU64, reg, "r0", "r0 = cmpxchg_64({0} + 0, r0, {1})");

macro_rules! modify {
    ($type:ty, $name:ident, $doc:literal, $int:ty, $atomic:ident, $method:ident, $class:ident, $instruction:literal) => {
        impl $type {
            #[doc = $doc]
            #[inline(always)]
            pub fn $name(&self, value: $int) {
                #[cfg(target_arch = "bpf")]
                // SAFETY: one atomic instruction on our own, aligned field; it changes nothing else.
                unsafe {
                    core::arch::asm!($instruction, in(reg) self.0.get(), in($class) value, options(nostack, preserves_flags))
                };
                #[cfg(not(target_arch = "bpf"))]
                // SAFETY: the pointer is to our own, aligned field and lives as long as `self`; all accesses are atomic.
                unsafe { core::sync::atomic::$atomic::from_ptr(self.0.get()) }
                    .$method(value, core::sync::atomic::Ordering::Relaxed);
            }
        }
    };
}

modify!(SharedU64, add, "Adds, wrapping.", u64, AtomicU64, fetch_add, reg, "lock *(u64 *)({0} + 0) += {1}");
modify!(SharedU64, or, "Sets the bits of `value`.", u64, AtomicU64, fetch_or, reg, "lock *(u64 *)({0} + 0) |= {1}");
modify!(
    SharedU64,
    and,
    "Keeps only the bits of `value`.",
    u64,
    AtomicU64,
    fetch_and,
    reg,
    "lock *(u64 *)({0} + 0) &= {1}"
);
modify!(SharedU32, add, "Adds, wrapping.", u32, AtomicU32, fetch_add, wreg, "lock *(u32 *)({0} + 0) += {1}");
modify!(SharedU32, or, "Sets the bits of `value`.", u32, AtomicU32, fetch_or, wreg, "lock *(u32 *)({0} + 0) |= {1}");
modify!(
    SharedU32,
    and,
    "Keeps only the bits of `value`.",
    u32,
    AtomicU32,
    fetch_and,
    wreg,
    "lock *(u32 *)({0} + 0) &= {1}"
);
