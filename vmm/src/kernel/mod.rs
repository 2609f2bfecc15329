//! Kernel images.
