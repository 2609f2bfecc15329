//! What devices stand on, on the host's side: descriptors, disk images, taps, later sockets.

pub mod disk;
pub mod fd_sink;
pub mod pty;
pub mod tap;
pub mod unix_socket;
