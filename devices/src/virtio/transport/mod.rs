//! How a driver reaches a device: registers. The device behind them is the same for all.

pub mod mmio;
