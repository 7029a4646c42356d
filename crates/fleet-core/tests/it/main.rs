//! The controller's picture of the fleet, seen from outside.

mod inventory;
mod scene;
mod turns;
