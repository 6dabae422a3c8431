//! `marea migrate --rebuild`: what it says.

use crate::commands::{say, say_json};
use crate::config::Config;
use crate::run::{self, Failure, Rebuilt};
use marea_sinks::store::{Difference, LOGIC_VERSION};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How many differences are named.
const SHOWN: usize = 20;

/// Rows by table: only in the store, only computed anew, otherwise in both.
type Counts = BTreeMap<&'static str, [usize; 3]>;

/// Computes the state anew, takes it over if asked to, and says what differs.
pub(crate) fn rebuild(config: &Config, swap: bool, json: bool) -> Result<(), Failure> {
    let rebuilt = run::rebuild(config, run::market(config, 0), swap)?;
    let counts = counts(&rebuilt.differences);
    if !json {
        say(text(config, &rebuilt, &counts));
        return Ok(());
    }
    let tables: BTreeMap<_, _> = counts
        .iter()
        .map(|(table, [gone, new, changed])| {
            (table, json!({ "only_in_store": gone, "only_anew": new, "changed": changed }))
        })
        .collect();
    let first: Vec<String> = rebuilt.differences.iter().take(SHOWN).map(ToString::to_string).collect();
    say_json(&json!({
        "store": config.store.to_string(),
        "logic_version": { "store": rebuilt.logic_version, "marea": LOGIC_VERSION },
        "epoch": rebuilt.epoch,
        "sealed_bars": rebuilt.bars,
        "differences": rebuilt.differences.len(),
        "tables": tables,
        "first": first,
        "kept": rebuilt.kept,
    }));
    Ok(())
}

fn counts(differences: &[Difference]) -> Counts {
    let mut counts = Counts::new();
    for difference in differences {
        let kind = match (&difference.stood, &difference.should) {
            (_, None) => 0,
            (None, _) => 1,
            _ => 2,
        };
        counts.entry(difference.table()).or_default()[kind] += 1;
    }
    counts
}

fn text(config: &Config, rebuilt: &Rebuilt, counts: &Counts) -> String {
    let Rebuilt { logic_version, epoch, bars, differences, kept } = rebuilt;
    let mut out = format!(
        "store {}: computed by logic version {logic_version}; by version {LOGIC_VERSION} anew, as of epoch {epoch}, \
         from {bars} sealed bars and what the source has after them\n",
        config.store
    );
    if differences.is_empty() {
        out.push_str("  nothing differs\n");
    } else {
        let _ = writeln!(out, "  {:<20}{:>14}{:>14}{:>14}", "table", "only in store", "only anew", "changed");
        for (table, [gone, new, changed]) in counts {
            let _ = writeln!(out, "  {table:<20}{gone:>14}{new:>14}{changed:>14}");
        }
        for difference in differences.iter().take(SHOWN) {
            let _ = writeln!(out, "  {difference}");
        }
        if differences.len() > SHOWN {
            let _ = writeln!(out, "  and {} more", differences.len() - SHOWN);
        }
    }
    match kept {
        Some(kept) => out + &format!("taken over; what stood is kept as {kept}\n"),
        None => out + "no row was changed: `marea migrate --rebuild --swap` takes it over\n",
    }
}
