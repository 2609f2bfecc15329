//! What devices stand on, on the host's side: descriptors, disk images, networks, sockets.

mod direct;
pub mod disk;
pub mod fault;
pub mod fault_block;
pub mod fault_net;
pub mod fd_sink;
pub mod frame_stream;
pub mod net;
pub mod pty;
#[cfg(feature = "qcow2")]
pub mod qcow2;
pub mod tap;
pub mod unix_socket;
#[cfg(not(feature = "io-uring"))]
#[path = "no_uring.rs"]
pub mod uring;
#[cfg(feature = "io-uring")]
pub mod uring;
pub mod vhost_net;
pub mod vhost_user;
