//! `marea window`

use super::desk::{Change, EtcdDesk, account, failed, symbol};
use crate::commands::{say, say_json};
use crate::run::Failure;
use marea_model::live::{decode_segment, encode_segment};
use marea_sources::etcd::Tree;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;

const ROOT: &str = "/echo/windows/";
/// The window of a path without an id.
const DEFAULT: &str = "default";

/// A window as it is named: account or `*`, symbol or `*`, id.
type Name = (String, String, String);

/// Which window a key belongs to, and as what. Keys that mean the same window may be spelt in several ways.
fn named(key: &str) -> Option<(Name, &str)> {
    let mut parts = key.strip_prefix(ROOT)?.split('/');
    let (account, symbol) = (decode_segment(parts.next()?)?, decode_segment(parts.next()?)?);
    let symbol = self::symbol(&symbol).ok()?.map_or("*".to_owned(), |symbol| symbol.to_string());
    let rest: Vec<&str> = parts.collect();
    match rest.as_slice() {
        [field] => Some(((account, symbol, DEFAULT.to_owned()), field)),
        [id, field] => Some(((account, symbol, decode_segment(id)?), field)),
        _ => None,
    }
}

/// The keys of each window.
fn windows(tree: &Tree) -> BTreeMap<Name, Vec<(&String, &str)>> {
    let mut windows: BTreeMap<Name, Vec<(&String, &str)>> = BTreeMap::new();
    for (key, _) in tree.below(ROOT) {
        if let Some((name, field)) = named(key) {
            windows.entry(name).or_default().push((key, field));
        }
    }
    windows
}

fn name_of(of: &str, on: &str, id: Option<&str>) -> Result<Name, Failure> {
    let (account, symbol) = (account(of)?, symbol(on)?);
    let id = id.unwrap_or(DEFAULT);
    if id.is_empty() {
        return Err(Failure::refused("--id: must not be empty"));
    }
    let all = || "*".to_owned();
    Ok((account.map_or_else(all, |a| a.to_string()), symbol.map_or_else(all, |s| s.to_string()), id.to_owned()))
}

fn segment(name: &str) -> String {
    if name == "*" { name.to_owned() } else { encode_segment(name) }
}

fn folder((account, symbol, _): &Name) -> String {
    format!("{ROOT}{}/{}/", segment(account), segment(symbol))
}

/// What adds a window of these fields.
pub(super) fn add(
    tree: &Tree,
    account: &str,
    symbol: &str,
    id: Option<&str>,
    fields: &[(&str, Option<String>)],
    replace: bool,
) -> Result<Change, Failure> {
    let name = name_of(account, symbol, id)?;
    let folder = folder(&name);
    let path = if name.2 == DEFAULT { folder.clone() } else { format!("{folder}{}/", encode_segment(&name.2)) };
    let written = fields.iter().filter_map(|(field, value)| Some((format!("{path}{field}"), value.clone()?)));
    let puts: BTreeMap<String, String> = written.collect();
    let windows = windows(tree);
    let standing = windows.get(&name).map(Vec::as_slice).unwrap_or_default();
    if !standing.is_empty() && !replace {
        let (account, symbol, id) = &name;
        return Err(Failure::refused(format!(
            "the window {id:?} of {account} {symbol} stands already; --replace it, or name another one with --id"
        )));
    }
    let deletes = standing.iter().map(|(key, _)| (*key).clone()).filter(|key| !puts.contains_key(key)).collect();
    Ok(Change { puts, deletes, rests_on: vec![folder], ..Change::default() })
}

/// What removes a window, however its keys are spelt.
pub(super) fn remove(tree: &Tree, account: &str, symbol: &str, id: Option<&str>) -> Result<Change, Failure> {
    let name = name_of(account, symbol, id)?;
    let windows = windows(tree);
    let Some(keys) = windows.get(&name) else {
        let (account, symbol, id) = &name;
        let others = windows.keys().filter(|other| (&other.0, &other.1) == (account, symbol));
        let others: Vec<String> = others.map(|other| format!("{:?}", other.2)).collect();
        let there =
            if others.is_empty() { "there is none".to_owned() } else { format!("there is {}", others.join(", ")) };
        return Err(Failure::refused(format!("there is no window {id:?} of {account} {symbol}; {there}")));
    };
    let deletes = keys.iter().map(|(key, _)| (*key).clone()).collect();
    Ok(Change { deletes, rests_on: vec![folder(&name)], ..Change::default() })
}

/// `marea window list`
pub(super) fn list(desk: &EtcdDesk<'_>, of: Option<&str>, on: Option<&str>, json: bool) -> Result<(), Failure> {
    let of = of.map(account).transpose()?.map(|a| a.map_or("*".to_owned(), |a| a.to_string()));
    let on = on.map(symbol).transpose()?.map(|s| s.map_or("*".to_owned(), |s| s.to_string()));
    let tree = desk.tree();
    let problems = desk.live().problems();
    let (mut rows, mut text) = (Vec::new(), String::new());
    for (name, keys) in windows(tree) {
        let (account, symbol, id) = &name;
        if of.as_ref().is_some_and(|of| of != account) || on.as_ref().is_some_and(|on| on != symbol) {
            continue;
        }
        let revision = keys.iter().map(|(key, _)| tree.keys[*key].revision).max().unwrap_or(0);
        let mut row = json!({ "account": account, "symbol": symbol, "id": id, "revision": revision });
        let _ = write!(text, "{account} {symbol} {id}, revision {revision}:");
        for (key, field) in &keys {
            let stored = &tree.keys[*key];
            row[*field] = json!(stored.value);
            let _ = write!(text, " {field}={}", stored.value);
            if stored.lease != 0 {
                let left = desk.client.left(stored.lease).map_err(failed)?.map_or(0, |left| left.as_secs());
                row["seconds_left"] = json!(left);
                let _ = write!(text, " ({left} s left)");
            }
        }
        text.push('\n');
        let wrong = problems.iter().filter(|p| keys.iter().any(|(key, _)| **key == p.key));
        let wrong: Vec<String> = wrong.map(|p| format!("{}; {}", p.detail(), p.effect.as_str())).collect();
        for problem in &wrong {
            let _ = writeln!(text, "  ! {problem}");
        }
        row["problems"] = json!(wrong);
        rows.push(row);
    }
    if json {
        say_json(&json!({ "revision": tree.revision, "windows": rows }));
    } else {
        say(if rows.is_empty() { "no windows\n".to_owned() } else { text });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_sources::etcd::Stored;

    fn tree(keys: &[&str]) -> Tree {
        let stored = Stored { value: "x".into(), revision: 3, lease: 0 };
        Tree { revision: 9, keys: keys.iter().map(|key| ((*key).to_owned(), stored.clone())).collect() }
    }

    #[test]
    fn a_window_is_found_however_it_is_spelt() {
        let keys = ["/echo/windows/M1/eur%2fusd/start_utc", "/echo/windows/M1/EUR%2FUSD/default/end_utc"];
        let change = remove(&tree(&keys), "M1", "eur/usd", None).unwrap();
        assert_eq!(change.deletes.len(), 2);
        let fields = [("active", Some("true".to_owned())), ("end_utc", None)];
        assert!(add(&tree(&keys), "M1", "EUR/USD", None, &fields, false).is_err());
        let change = add(&tree(&keys), "M1", "EUR/USD", None, &fields, true).unwrap();
        assert_eq!(change.puts.keys().collect::<Vec<_>>(), ["/echo/windows/M1/EUR%2FUSD/active"]);
        assert_eq!(change.deletes.len(), 2);
        let change = add(&tree(&keys), "*", "*", Some("a b"), &fields, false).unwrap();
        assert_eq!(change.puts.keys().collect::<Vec<_>>(), ["/echo/windows/*/*/a%20b/active"]);
        assert!(remove(&tree(&keys), "M1", "IBM", None).is_err());
    }
}
