//! The packet as the core touches it. Owns no policy and no layout; see `wire` for the meaning of bytes.

/// One frame, Ethernet header first.
///
/// Offsets count from the first byte of the Ethernet header. In the kernel only the linear part of a multi-buffer frame
/// can be touched; all headers lie in it.
pub trait Frame {
    /// The `N` bytes at `offset`, or `None` when they do not all lie inside the frame.
    fn at<const N: usize>(&mut self, offset: usize) -> Option<&mut [u8; N]>;

    /// Length of the whole frame in bytes, all buffers included.
    fn length(&self) -> usize;

    /// Makes the frame start `bytes` earlier; the new bytes are unspecified. False when there is no headroom.
    fn grow_front(&mut self, bytes: usize) -> bool;

    /// Cuts the frame to `length` bytes. False when it is shorter already or cannot be cut.
    fn cut_to(&mut self, length: usize) -> bool;
}
