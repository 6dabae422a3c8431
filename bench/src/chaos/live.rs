//! The live configuration: a file that is edited while the process runs, and ends as it was meant to (law L7).

use super::input::{FALLEN, IDLE, Random};
use marea_sources::{live_file, synthetic};
use std::path::Path;

/// What the configuration is in the end.
pub(super) fn last() -> String {
    let (accounts, quotes) = ("slave_accounts = [\"S1\", \"S2\"]", "max_quote_age_ms = 10000");
    let text = synthetic::LIVE_CONFIG;
    assert!(text.contains(accounts) && text.contains(quotes), "the demo's configuration is another one");
    let text = text.replace(accounts, &format!("slave_accounts = [\"S1\", \"S2\", \"{FALLEN}\"]"));
    // Ticks may be seconds apart.
    let text = text.replace(quotes, "max_quote_age_ms = 60000");
    format!("{text}\n[policy.{FALLEN}]\nmax_spread = 40\nmax_drawdown_pct = 10\n")
}

/// Another one, in which a thing or two are different.
fn other(random: &mut Random) -> String {
    let mut text = last();
    for _ in 0..=random.below(2) {
        let n = random.below(1_000);
        text = match random.below(6) {
            0 => text.replace("max_spread = 25", &format!("max_spread = {}", 1 + n % 40)),
            1 => text.replace("trading_enabled = true", "trading_enabled = false"),
            2 => text.replace("fast = 5\n", &format!("fast = {}\n", 2 + n % 12)),
            3 => format!(
                "{text}\n[strategies.chaos-{n}]\nkind = \"rsi_reversion\"\nperiod = {}\ntimeframe = \"1m\"\n",
                5 + n % 20
            ),
            4 => format!(
                "{text}\n[windows.\"*\".{IDLE}.w{n}]\nstart_utc = 2026-01-05T2{}:00:00Z\nend_utc = 2026-01-05T2{}:30:00Z\n",
                n % 4,
                n % 4
            ),
            // No TOML: everything is blocked until it is mended.
            _ => format!("{text}\n[policy\n"),
        };
    }
    // Edits may meet each other; one that makes the file unreadable is fine as well.
    text
}

/// Puts a text in the place of the file, whole.
fn put(file: &Path, text: &str) -> std::io::Result<()> {
    let new = file.with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(new, file)
}

pub(super) fn end(file: &Path) -> std::io::Result<()> {
    put(file, &last())
}

pub(super) fn edit(file: &Path, random: &mut Random) -> std::io::Result<()> {
    put(file, &other(random))
}

/// One that a process can start with.
pub(super) fn mend(file: &Path, random: &mut Random) -> std::io::Result<()> {
    loop {
        let text = other(random);
        if live_file::parse(file, text.as_bytes()).is_ok() {
            return put(file, &text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_edits_are_read_and_change_something() {
        let read = |text: &str| live_file::parse(Path::new("live.toml"), text.as_bytes());
        let end = read(&last()).unwrap();
        let mut random = Random(1);
        let edits: Vec<_> = (0..200).map(|_| read(&other(&mut random))).collect();
        let changed = edits.iter().flatten().filter(|tree| **tree != end).count();
        let unreadable = edits.iter().filter(|edit| edit.is_err()).count();
        assert!(changed > 100 && (10..80).contains(&unreadable), "{changed} changed, {unreadable} unreadable");
    }
}
