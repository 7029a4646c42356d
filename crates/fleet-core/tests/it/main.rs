//! The controller's picture of the fleet, seen from outside.

mod binding;
mod channels;
mod identity;
mod inventory;
mod scene;
mod turns;
