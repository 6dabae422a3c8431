//! The sinks from outside: what a reader of the dump, of the store's file and of the feed finds.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod dump;
mod feed;
mod fixture;
mod store;
