//! Sockets: to the host, and those that set up the network.

use core::ffi::{CStr, c_char};

use super::{CLOSE_ON_EXEC, Fd, Result, call, control};

/// A stream to a port of the host.
pub(crate) fn connect_host(port: u32) -> Result<Fd> {
    let socket = socket(40, 1, 0)?;
    let mut address = [0; 16];
    address[0] = 40;
    address[4..8].copy_from_slice(&port.to_ne_bytes());
    address[8] = 2; // the host
    call!(42, socket.0, address.as_ptr(), address.len())?;
    Ok(socket)
}

/// Listens on a port of this machine's, for the host and for itself.
pub(crate) fn listen(port: u32) -> Result<Fd> {
    let socket = socket(40, 1, 0)?;
    let mut address = [0; 16];
    address[0] = 40;
    address[4..8].copy_from_slice(&port.to_ne_bytes());
    address[8..12].fill(0xff); // whichever this machine is
    call!(49, socket.0, address.as_ptr(), address.len())?;
    call!(50, socket.0, 128)?;
    Ok(socket)
}

/// Waits for a connection.
pub(crate) fn accept(listener: &Fd) -> Result<Fd> {
    call!(288, listener.0, 0, 0, CLOSE_ON_EXEC).map(Fd::new)
}

fn socket(family: usize, kind: u32, protocol: u16) -> Result<Fd> {
    call!(41, family, kind | CLOSE_ON_EXEC, protocol).map(Fd::new)
}

/// Of IPv4 datagrams; it is here to ask the kernel about interfaces.
pub(crate) fn ip_socket() -> Result<Fd> {
    socket(2, 2, 0)
}

/// Of IPv4 packets as an interface sends and receives them, without its own header.
pub(crate) fn packet_socket(interface: u32) -> Result<Fd> {
    let socket = socket(17, 2, 0)?;
    let address = link_address(interface);
    call!(49, socket.0, address.as_ptr(), address.len())?;
    Ok(socket)
}

/// Sends to everybody on the interface's network.
pub(crate) fn broadcast(socket: &Fd, interface: u32, packet: &[u8]) -> Result<()> {
    let address = link_address(interface);
    let (to, size) = (address.as_ptr(), address.len());
    call!(44, socket.0, packet.as_ptr(), packet.len(), 0, to, size).map(drop)
}

fn link_address(interface: u32) -> [u8; 20] {
    let mut address = [0; 20];
    address[0] = 17;
    address[2..4].copy_from_slice(&0x0800u16.to_be_bytes());
    address[4..8].copy_from_slice(&interface.to_ne_bytes());
    address[11] = 6;
    address[12..18].fill(0xff);
    address
}

/// An IPv4 address as the kernel's structures have it.
fn ip_address(address: [u8; 4]) -> [u8; 16] {
    let mut it = [0; 16];
    it[0] = 2;
    it[4..8].copy_from_slice(&address);
    it
}

/// The requests about interfaces.
#[derive(Clone, Copy)]
pub(crate) enum Interface<'a> {
    Up,
    Address(&'a [u8; 4]),
    Mask(&'a [u8; 4]),
    Mtu(u32),
}

pub(crate) fn configure(socket: &Fd, name: &CStr, what: Interface<'_>) -> Result<()> {
    let mut request = interface_request(name);
    let number = match what {
        Interface::Up => {
            control(socket, 0x8913, request.as_mut_ptr() as usize)?;
            request[16] |= 1;
            0x8914
        }
        Interface::Address(address) => {
            request[16..32].copy_from_slice(&ip_address(*address));
            0x8916
        }
        Interface::Mask(mask) => {
            request[16..32].copy_from_slice(&ip_address(*mask));
            0x891c
        }
        Interface::Mtu(mtu) => {
            request[16..20].copy_from_slice(&mtu.to_ne_bytes());
            0x8922
        }
    };
    control(socket, number, request.as_mut_ptr() as usize).map(drop)
}

/// An interface's number.
pub(crate) fn interface_index(socket: &Fd, name: &CStr) -> Result<u32> {
    let mut request = interface_request(name);
    control(socket, 0x8933, request.as_mut_ptr() as usize)?;
    Ok(u32::from_ne_bytes([
        request[16],
        request[17],
        request[18],
        request[19],
    ]))
}

/// An Ethernet interface's address.
pub(crate) fn hardware_address(socket: &Fd, name: &CStr) -> Result<[u8; 6]> {
    let mut request = interface_request(name);
    control(socket, 0x8927, request.as_mut_ptr() as usize)?;
    let mut address = [0; 6];
    address.copy_from_slice(&request[18..24]);
    Ok(address)
}

fn interface_request(name: &CStr) -> [u8; 40] {
    let mut request = [0; 40];
    for (to, from) in request[..15].iter_mut().zip(name.to_bytes()) {
        *to = *from;
    }
    request
}

/// A route to a network, by a gateway or (all zero) right there.
pub(crate) fn add_route(
    socket: &Fd,
    interface: &CStr,
    network: [u8; 4],
    mask: [u8; 4],
    gateway: [u8; 4],
) -> Result<()> {
    #[repr(C)]
    struct Route {
        pad: u64,
        network: [u8; 16],
        gateway: [u8; 16],
        mask: [u8; 16],
        flags: u16,
        pad2: [u64; 2],
        metric: i16,
        interface: *const c_char,
        mtu: [u64; 2],
        irtt: u16,
    }
    let by_gateway = if gateway == [0; 4] { 0 } else { 2 };
    let one_host = if mask == [255; 4] { 4 } else { 0 };
    let route = Route {
        pad: 0,
        network: ip_address(network),
        gateway: ip_address(gateway),
        mask: ip_address(mask),
        flags: 1 | by_gateway | one_host,
        pad2: [0; 2],
        metric: 0,
        interface: interface.as_ptr(),
        mtu: [0; 2],
        irtt: 0,
    };
    control(socket, 0x890b, &raw const route as usize).map(drop)
}
