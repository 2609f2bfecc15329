//! What devices stand on, on the host's side: descriptors, disk images, networks, sockets.

pub mod disk;
pub mod fd_sink;
pub mod frame_stream;
pub mod net;
pub mod tap;
pub mod unix_socket;
pub mod vhost_net;
