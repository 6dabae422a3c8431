//! `marea policy`

use super::desk::{Change, EtcdDesk, account, failed};
use crate::commands::{say, say_json};
use crate::config::suggest;
use crate::run::Failure;
use marea_model::live::{DEFAULT_MAX_QUOTE_AGE_MS, PolicyState, Role, encode_segment};
use marea_model::{AccountId, ConfigUpdate, LiveConfig};
use marea_sources::etcd::{Answered, EtcdConfig, Stored, Tree};
use marea_sources::{Input, Stop, etcd};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

/// The keys of a policy, and what they are without a value.
pub(super) const KEYS: [(&str, Option<&str>); 13] = [
    ("max_spread", None),
    ("max_slippage", None),
    ("max_delay_ms", None),
    ("max_quote_age_ms", Some("5000")),
    ("copy_sl_tp", Some("true")),
    ("risk_per_trade", None),
    ("risk_fixed", None),
    ("enabled", Some("true")),
    ("max_drawdown_pct", None),
    ("sl_offset", Some("0")),
    ("tp_offset", Some("0")),
    ("catastrophic_sl", None),
    ("allow_short", Some("false")),
];
const _: () = assert!(DEFAULT_MAX_QUOTE_AGE_MS == 5_000);

const ROOT: &str = "/echo/policy/";

fn segment(account: Option<AccountId>) -> String {
    account.map_or("*".to_owned(), |account| encode_segment(account.as_str()))
}

fn folder(account: Option<AccountId>) -> String {
    format!("{ROOT}{}/", segment(account))
}

fn known(key: &str) -> Result<(), String> {
    let names = || KEYS.iter().map(|(name, _)| *name);
    if names().any(|name| name == key) {
        return Ok(());
    }
    let known = names().collect::<Vec<_>>().join(", ");
    Err(format!("{key:?} is not a key of a policy{}; known: {known}", suggest(key, names())))
}

/// What sets these keys.
pub(super) fn set(name: &str, settings: &[String], ttl: Option<Duration>) -> Result<Change, Failure> {
    let account = account(name)?;
    let (folder, mut faults) = (folder(account), Vec::new());
    let mut puts = BTreeMap::new();
    for setting in settings {
        let Some((key, value)) = setting.split_once('=') else {
            faults.push(format!("{setting:?} must be KEY=VALUE, such as max_spread=20"));
            continue;
        };
        faults.extend(known(key).err());
        if puts.insert(format!("{folder}{key}"), value.to_owned()).is_some() {
            faults.push(format!("{key:?} is set twice"));
        }
    }
    match faults {
        faults if faults.is_empty() => Ok(Change { puts, ttl, rests_on: vec![folder], ..Change::default() }),
        faults => Err(Failure::Refused(faults)),
    }
}

/// What deletes these keys, or all of them. A key that a policy cannot have may be deleted if it is there.
pub(super) fn delete(tree: &Tree, name: &str, keys: &[String]) -> Result<Change, Failure> {
    let folder = folder(account(name)?);
    let mut faults = Vec::new();
    let deletes: BTreeSet<String> = if keys.is_empty() {
        tree.below(&folder).map(|(key, _)| key.clone()).collect()
    } else {
        keys.iter().map(|key| format!("{folder}{key}")).collect()
    };
    for key in keys {
        if !tree.keys.contains_key(&format!("{folder}{key}")) {
            faults.push(known(key).err().unwrap_or_else(|| format!("{folder}{key} is not there")));
        }
    }
    if deletes.is_empty() {
        faults.push(format!("nothing is there below {folder}"));
    }
    match faults {
        faults if faults.is_empty() => Ok(Change { deletes, rests_on: vec![folder], ..Change::default() }),
        faults => Err(Failure::Refused(faults)),
    }
}

/// The value of a key that holds for an account, and where it is written; none where it is the default.
fn resolved<'a>(tree: &'a Tree, account: Option<AccountId>, name: &str) -> Option<(String, &'a Stored)> {
    let at = |account| {
        let key = format!("{}{name}", folder(account));
        tree.keys.get(&key).map(|stored| (key, stored))
    };
    at(account).or_else(|| at(None))
}

/// `marea policy get`
pub(super) fn get(desk: &EtcdDesk<'_>, name: Option<&str>, json: bool) -> Result<(), Failure> {
    let (tree, live) = (desk.tree(), desk.live());
    let accounts: BTreeSet<Option<AccountId>> = match name {
        Some(name) => BTreeSet::from([account(name)?]),
        None => {
            let written = tree.below(ROOT).filter_map(|(key, _)| {
                let segment = key.strip_prefix(ROOT)?.split('/').next()?;
                account(&marea_model::live::decode_segment(segment)?).ok()
            });
            written.chain(live.accounts().keys().copied().map(Some)).collect()
        }
    };
    let mut all = Vec::new();
    for account in accounts {
        all.push(shown(desk, &live, account)?);
    }
    if json {
        let trading = live.trading_enabled();
        say_json(&json!({ "revision": tree.revision, "trading_enabled": trading, "policies": all }));
    } else {
        let mut text = String::new();
        if !live.trading_enabled() {
            text.push_str("the kill switch is on: no entries, for nobody\n\n");
        }
        for policy in &all {
            text.push_str(&words(policy));
        }
        if all.is_empty() {
            text.push_str("no account is listed, and no policy is written\n");
        }
        say(text);
    }
    Ok(())
}

/// A policy as JSON.
fn shown(desk: &EtcdDesk<'_>, live: &LiveConfig, account: Option<AccountId>) -> Result<Value, Failure> {
    let tree = desk.tree();
    let mut written = Vec::new();
    let folders = if account.is_some() { vec![folder(account), folder(None)] } else { vec![folder(None)] };
    for (key, stored) in folders.iter().flat_map(|folder| tree.below(folder)) {
        let mut row = json!({ "key": key, "value": stored.value, "revision": stored.revision });
        if stored.lease != 0 {
            let left = desk.client.left(stored.lease).map_err(failed)?;
            row["seconds_left"] = json!(left.map_or(0, |left| left.as_secs()));
        }
        written.push(row);
    }
    let mut resolution = Map::new();
    for (name, default) in KEYS {
        let (value, from) = match resolved(tree, account, name) {
            Some((key, stored)) => (Some(stored.value.as_str()), Some(key)),
            None => (default, None),
        };
        resolution.insert(name.to_owned(), json!({ "value": value, "from": from }));
    }
    let (state, details) = match account.map(|account| live.policy(account)) {
        None => ("pattern", Vec::new()),
        Some(PolicyState::Absent) => ("absent", Vec::new()),
        Some(PolicyState::Valid(_)) => ("valid", Vec::new()),
        Some(PolicyState::Invalid(details)) => ("invalid", details),
    };
    let role = account.and_then(|account| live.accounts().get(&account)).map(|role| match role {
        Role::Master => "master",
        Role::Slave => "slave",
    });
    Ok(json!({
        "account": account.map_or("*".to_owned(), |account| account.to_string()),
        "role": role,
        "state": state,
        "details": details,
        "revision": tree.revision_of(&folders[..1]),
        "resolved": resolution,
        "written": written,
    }))
}

/// The same in words.
fn words(policy: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut out = text(&policy["account"]);
    let role = text(&policy["role"]);
    let state = match policy["state"].as_str() {
        Some("absent") => "no policy: blocked",
        Some("invalid") => "invalid: blocked",
        Some("valid") => "valid",
        _ => "holds for every account that does not say otherwise",
    };
    if policy["account"] != "*" {
        let _ = write!(out, " ({})", if role.is_empty() { "not listed" } else { &role });
    }
    let _ = writeln!(out, ", revision {}: {state}", policy["revision"]);
    for detail in policy["details"].as_array().into_iter().flatten() {
        let _ = writeln!(out, "  ! {}", text(detail));
    }
    let written = |key: &str| {
        let row = policy["written"].as_array().into_iter().flatten().find(|row| row["key"] == key)?;
        let left = row["seconds_left"].as_i64().map_or(String::new(), |left| format!(", {left} s left"));
        Some(format!("{key}, revision {}{left}", row["revision"]))
    };
    for (name, _) in KEYS {
        let row = &policy["resolved"][name];
        let value = row["value"].as_str().unwrap_or("-");
        let from = row["from"].as_str().and_then(written).unwrap_or_else(|| "default".to_owned());
        let _ = writeln!(out, "  {name:17} {value:12} {from}");
    }
    out.push('\n');
    out
}

/// `marea policy watch`
pub(super) fn watch(config: &EtcdConfig, name: Option<&str>, json: bool) -> Result<(), Failure> {
    let only = name.map(account).transpose()?.map(|account| [folder(account), folder(None)]);
    let ours = |key: &str| match &only {
        Some(folders) => folders.iter().any(|folder| key.starts_with(folder.as_str())),
        None => key.starts_with(ROOT),
    };
    let stop = Stop::new();
    stop_at_signal(&stop)?;
    let from = match etcd::load(config, &stop) {
        Err(etcd::EtcdError::Stopped) => return Ok(()),
        from => from.map_err(failed)?,
    };
    if json {
        say(json!({ "revision": from.revision, "watching": name.unwrap_or("*") }).to_string() + "\n");
    } else {
        say(format!("watching from revision {}; Ctrl-C ends it\n", from.revision));
    }
    let (out, input) = crossbeam_channel::bounded(64);
    std::thread::scope(|scope| {
        let watching = scope.spawn(|| {
            // Moved, so that the loop below ends with it.
            let out = out.into();
            etcd::watch(config, from, &Answered::new(), &out, &stop)
        });
        for input in input {
            let Input::Config(updates) = input else { continue };
            for update in updates.iter().filter(|update| update.key().is_none_or(ours)) {
                say(if json { change_json(update).to_string() + "\n" } else { change_words(update) });
            }
        }
        let ended = watching.join().map_err(|_| Failure::failed("the watch has panicked"))?;
        ended.map_err(failed)
    })
}

fn change_words(update: &ConfigUpdate) -> String {
    match update {
        ConfigUpdate::Put { key, value, revision } => format!("{revision}  {key} = {value}\n"),
        ConfigUpdate::Delete { key, revision } => format!("{revision}  {key} deleted\n"),
        ConfigUpdate::Stale(true) => "etcd does not answer\n".to_owned(),
        ConfigUpdate::Stale(false) => "etcd answers again\n".to_owned(),
    }
}

fn change_json(update: &ConfigUpdate) -> Value {
    match update {
        ConfigUpdate::Put { key, value, revision } => json!({ "revision": revision, "key": key, "value": value }),
        ConfigUpdate::Delete { key, revision } => json!({ "revision": revision, "key": key, "value": null }),
        ConfigUpdate::Stale(stale) => json!({ "stale": stale }),
    }
}

fn stop_at_signal(stop: &Stop) -> Result<(), Failure> {
    let stop = stop.clone();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::failed)?;
    let wait = move || {
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
        });
        stop.stop();
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop).map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use marea_model::Instruments;

    #[test]
    fn the_keys_are_those_of_the_reader() {
        let live = LiveConfig::new(&Instruments::default());
        let why = live.validate("/echo/policy/M1/x", "1").unwrap_err();
        let names: Vec<&str> = KEYS.iter().map(|(name, _)| *name).collect();
        assert_eq!(why, format!("unknown key of a policy; known: {}", names.join(", ")));
        for (name, default) in KEYS {
            if let Some(default) = default {
                assert_eq!(live.validate(&format!("/echo/policy/M1/{name}"), default), Ok(()), "{name}");
            }
        }
    }

    #[test]
    fn what_is_wrong_with_a_setting_is_listed_whole() {
        let settings = ["max_spred=1", "enabled", "max_spread=1", "max_spread=2"].map(str::to_owned);
        let Err(Failure::Refused(faults)) = set("M1", &settings, None) else { panic!() };
        assert!(faults[0].starts_with("\"max_spred\" is not a key of a policy; did you mean \"max_spread\"?; known: "));
        assert_eq!(
            faults[1..],
            ["\"enabled\" must be KEY=VALUE, such as max_spread=20", "\"max_spread\" is set twice"]
        );
        let change = set("a:b", &["max_spread=1=2".to_owned()], None).unwrap();
        assert_eq!(change.puts, BTreeMap::from([("/echo/policy/a%3Ab/max_spread".to_owned(), "1=2".to_owned())]));
        assert!(set("M 1", &["max_spread=1".to_owned()], None).is_err());
    }
}
