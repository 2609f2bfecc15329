//! What a guest finds when it wakes.
