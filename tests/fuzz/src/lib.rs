//! What the fuzz targets of the devices share: the table of devices, back ends in memory, and a driver that lays out chains.

pub mod backends;
pub mod devices;
pub mod guest;
