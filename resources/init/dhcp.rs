//! The client's half of DHCP (RFC 2131, options of RFC 2132): messages, whole IPv4 packets. No I/O.
//!
//! A lease is taken once: a guest of `ampoule run IMAGE` that outlives it keeps its address, as passt's leases never end.

use alloc::vec::Vec;

/// A server's offer, or its word that it holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lease {
    pub(crate) is_final: bool,
    pub(crate) address: [u8; 4],
    pub(crate) server: [u8; 4],
    pub(crate) mask: [u8; 4],
    pub(crate) gateway: Option<[u8; 4]>,
    pub(crate) dns: Vec<[u8; 4]>,
    pub(crate) mtu: Option<u16>,
}

const MAGIC: [u8; 4] = [99, 130, 83, 99];
/// Of BOOTP's fixed fields, up to the magic number.
const FIXED: usize = 236;

const OFFER: u8 = 2;
const ACK: u8 = 5;

/// What a client sends: that it looks for an address (DISCOVER), or that it wants the one offered (REQUEST).
pub(crate) fn message(hardware: [u8; 6], transaction: u32, offer: Option<&Lease>) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend([1, 1, 6, 0]); // a request, over Ethernet
    body.extend(transaction.to_be_bytes());
    body.extend([0, 0, 0x80, 0]); // the answer is to go to everybody
    body.resize(28, 0);
    body.extend(hardware);
    body.resize(FIXED, 0);
    body.extend(MAGIC);
    body.extend([53, 1, if offer.is_some() { 3 } else { 1 }]);
    if let Some(offer) = offer {
        body.extend([50, 4]);
        body.extend(offer.address);
        body.extend([54, 4]);
        body.extend(offer.server);
    }
    body.extend([55, 4, 1, 3, 6, 26]); // mask, router, name servers, MTU
    body.push(255);
    // Some servers drop what is shorter than BOOTP's messages.
    body.resize(body.len().max(300), 0);
    packet(&body)
}

/// Around it: IPv4 and UDP, from nobody to everybody, port 68 to 67.
fn packet(body: &[u8]) -> Vec<u8> {
    let udp = body.len() as u16 + 8;
    let mut packet = Vec::new();
    packet.extend([0x45, 0]);
    packet.extend((udp + 20).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend([0; 4]);
    packet.extend([255; 4]);
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend([0, 68, 0, 67]);
    packet.extend(udp.to_be_bytes());
    packet.extend([0, 0]); // no checksum, as UDP over IPv4 may
    packet.extend_from_slice(body);
    packet
}

fn checksum(header: &[u8]) -> u16 {
    let words = header.chunks_exact(2);
    let mut sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The lease in a packet, if it is a server's answer to this client.
pub(crate) fn answer(packet: &[u8], hardware: [u8; 6], transaction: u32) -> Option<Lease> {
    let header = usize::from(packet.first()? & 15) * 4;
    if packet.first()? >> 4 != 4 || *packet.get(9)? != 17 || header < 20 {
        return None;
    }
    let udp = packet.get(header..)?;
    let body = udp.get(8..)?;
    let is_ours = udp.get(2..4)? == [0, 68]
        && body.first() == Some(&2)
        && body.get(4..8)? == transaction.to_be_bytes()
        && body.get(28..34)? == hardware
        && body.get(FIXED..FIXED + 4)? == MAGIC;
    if !is_ours {
        return None;
    }
    let mut lease = Lease {
        address: body.get(16..20)?.try_into().ok()?,
        mask: [255, 255, 255, 0],
        ..Lease::default()
    };
    let mut kind = 0;
    let mut options = body.get(FIXED + 4..)?;
    while let Some((&code, rest)) = options.split_first() {
        match code {
            0 => {
                options = rest;
                continue;
            }
            255 => break,
            _ => {}
        }
        let (&length, rest) = rest.split_first()?;
        let (value, rest) = rest.split_at_checked(length.into())?;
        let first = value.first_chunk();
        match (code, first) {
            (1, Some(mask)) => lease.mask = *mask,
            (3, Some(gateway)) => lease.gateway = Some(*gateway),
            (6, _) => lease.dns = value.as_chunks().0.to_vec(),
            (54, Some(server)) => lease.server = *server,
            (26, _) => lease.mtu = value.first_chunk().map(|it| u16::from_be_bytes(*it)),
            (53, _) => kind = *value.first()?,
            _ => {}
        }
        options = rest;
    }
    lease.is_final = kind == ACK;
    matches!(kind, OFFER | ACK).then_some(lease)
}
