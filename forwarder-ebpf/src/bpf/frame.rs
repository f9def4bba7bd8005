//! `Frame` over an XDP buffer.

use aya_ebpf::bindings::xdp_md;
use aya_ebpf::helpers::generated::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len};
use forwarder_ebpf::frame::Frame;

/// The frame that a program was called with. `WHOLE` tells whether `length` asks the kernel for all buffers of a
/// multi-buffer frame, or is content with the first: the fast path is, and leaves longer frames to the slow one.
pub struct XdpFrame<const WHOLE: bool> {
    ctx: *mut xdp_md,
    data: usize,
    data_end: usize,
}

impl<const WHOLE: bool> XdpFrame<WHOLE> {
    /// The frame of `ctx`, which must be the context that the kernel called the program with.
    #[inline(always)]
    pub fn new(ctx: *mut xdp_md) -> Self {
        let mut frame = Self { ctx, data: 0, data_end: 0 };
        frame.reload();
        frame
    }

    #[inline(always)]
    fn reload(&mut self) {
        // SAFETY: `ctx` is the program's own context, readable for as long as the program runs.
        let (data, data_end) = unsafe { ((*self.ctx).data, (*self.ctx).data_end) };
        self.data = data as usize;
        self.data_end = data_end as usize;
    }
}

/// A value that the compiler knows nothing about. It costs a move: the kernel takes no line information without an
/// instruction.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: a register is moved to itself; nothing else changes.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags)) };
    value
}

impl<const WHOLE: bool> Frame for XdpFrame<WHOLE> {
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        // The verifier knows a pointer as checked only while it stays in the register, or one copied from it, that was
        // compared; the compiler would compute it again for every use.
        let start = if offset == 0 { self.data } else { opaque(self.data + offset) };
        if start + N > self.data_end {
            return None;
        }
        // SAFETY: `start..start + N` lies between data and data_end, which the kernel gave us as the writable linear part
        // of this frame; the verifier proves the same. Bytes have no alignment and no invalid values, and `&mut self`
        // makes this the only reference into the frame.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        if WHOLE {
            // SAFETY: `ctx` is the program's own context.
            return unsafe { bpf_xdp_get_buff_len(self.ctx) } as usize;
        }
        // Or the compiler proves bounds by the length, in a way that the verifier cannot follow.
        opaque(self.data_end) - self.data
    }

    #[inline(always)]
    fn grow_front(&mut self, bytes: usize) -> bool {
        // SAFETY: `ctx` is the program's own context; every pointer into the frame is gone, `&mut self` says.
        let failed = unsafe { bpf_xdp_adjust_head(self.ctx, -(bytes as i32)) } != 0;
        self.reload();
        !failed
    }

    #[inline(always)]
    fn cut_to(&mut self, length: usize) -> bool {
        let now = self.length();
        if now < length {
            return false;
        }
        // SAFETY: `ctx` is the program's own context; every pointer into the frame is gone, `&mut self` says.
        let failed = unsafe { bpf_xdp_adjust_tail(self.ctx, length as i32 - now as i32) } != 0;
        self.reload();
        !failed
    }
}
