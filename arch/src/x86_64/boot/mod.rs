//! Boot protocols: what a kernel finds in memory when it is entered.

pub mod linux;
pub mod pvh;
pub mod reset;
