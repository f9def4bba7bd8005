//! `Frame` over a vector, with the headroom that XDP gives.

use crate::frame::Frame;
use crate::wire::ETHERNET;
use std::vec::Vec;

/// Bytes before the frame (`XDP_PACKET_HEADROOM`, linux/bpf.h).
const HEADROOM: usize = 256;
/// What unset bytes hold, so that they show.
const UNSET: u8 = 0xa5;

/// One frame in a buffer that can grow at its front.
#[derive(Clone, Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// A copy of `frame`.
    pub fn new(frame: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(HEADROOM + frame.len());
        bytes.resize(HEADROOM, UNSET);
        bytes.extend_from_slice(frame);
        Self { bytes, start: HEADROOM }
    }

    /// Puts another frame into the same memory.
    pub fn refill(&mut self, frame: &[u8]) {
        self.bytes.clear();
        self.bytes.resize(HEADROOM, UNSET);
        self.bytes.extend_from_slice(frame);
        self.start = HEADROOM;
    }

    /// The frame as it is now.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

impl Frame for Buffer {
    #[inline(always)]
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]> {
        self.bytes.get_mut(self.start.checked_add(offset)?..)?.first_chunk_mut()
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.bytes.len() - self.start
    }

    fn grow_front(&mut self, bytes: usize) -> bool {
        let Some(start) = self.start.checked_sub(bytes) else { return false };
        if let Some(new) = self.bytes.get_mut(start..self.start) {
            new.fill(UNSET);
        }
        self.start = start;
        true
    }

    fn cut_to(&mut self, length: usize) -> bool {
        // The kernel leaves no less than an Ethernet header (`bpf_xdp_adjust_tail`).
        if length > self.length() || length < ETHERNET {
            return false;
        }
        self.bytes.truncate(self.start + length);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_grows_at_its_front_and_shrinks_at_its_end() {
        let mut buffer = Buffer::new(&[7; 60]);
        assert!(buffer.cut_to(20) && buffer.grow_front(8));
        assert_eq!(buffer.bytes(), [&[UNSET; 8][..], &[7; 20]].concat());
        assert_eq!(buffer.at::<2>(7), Some(&mut [UNSET, 7]));
        assert_eq!(buffer.at::<2>(27), None);
        assert_eq!(buffer.at::<2>(usize::MAX), None);
        assert!(!buffer.grow_front(HEADROOM - 7) && !buffer.cut_to(29) && !buffer.cut_to(13));
    }
}
