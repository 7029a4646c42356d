//! What the unpackers promise, on containers made here, on bombs, on damage, and on the samples
//! of ClamAV.

mod bombs;
mod clamav;
mod damage;
mod detection;
mod fixtures;
mod formats;
mod glimpses;
mod guess;
mod handmade;
mod limits;
mod mutation;
mod nesting;
mod samples;
mod walked;
