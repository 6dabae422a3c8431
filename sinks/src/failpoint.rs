//! Moments at which a test lets the process die.
//!
//! `MAREA_FAILPOINT=commit.fenced:3` in the environment: SIGKILL when the third commit has moved the upper and written
//! nothing else. Nothing unwinds, nothing is flushed. The names stand where [`pass`] is called. In a release build there
//! is nothing of this.

#[cfg(debug_assertions)]
use std::sync::{
    OnceLock,
    atomic::{AtomicU64, Ordering},
};

/// The process comes to a moment that has a name.
#[cfg(debug_assertions)]
pub fn pass(name: &str) {
    static ASKED: OnceLock<Option<(String, AtomicU64)>> = OnceLock::new();
    let asked = ASKED.get_or_init(|| {
        let text = std::env::var("MAREA_FAILPOINT").ok()?;
        let (name, pass) = text.rsplit_once(':')?;
        Some((name.to_owned(), AtomicU64::new(pass.parse().ok()?)))
    });
    let Some((wanted, left)) = asked else { return };
    if wanted == name && left.fetch_sub(1, Ordering::SeqCst) == 1 {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

/// Nothing, in a release build.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn pass(_name: &str) {}
