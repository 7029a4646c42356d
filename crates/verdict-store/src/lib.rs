//! Verdicts and sightings that a fleet shares: one trait, several stores.
