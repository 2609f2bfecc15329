//! What devices stand on, on the host's side: descriptors, later disk images, taps and sockets.

pub mod disk;
pub mod fd_sink;
pub mod unix_socket;
