//! Redis from outside: what its readers find there, whatever happens to it.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod desk;
mod early;
mod faults;
mod keys;
mod places;

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../sinks/fixture.rs"]
mod fixture;
