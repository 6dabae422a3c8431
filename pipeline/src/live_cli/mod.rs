//! `marea policy`, `marea window` and `marea kill`: the live configuration in etcd, read and written by hand or script.
//!
//! Nothing is asked and nothing is guessed. A change is applied to the tree as it stands, read by the same reader as the
//! pipeline's; if that finds anything wrong that was not wrong before, all of it is listed and nothing is written (exit
//! 2). What is written is one transaction, and only if what it was judged by still stands; `--if-revision` says what it
//! must be (a conflict is exit 1, and names the revision that stands).

mod desk;
mod policy;
mod rehearse;
mod window;

use crate::config::{Config, duration};
use crate::run::Failure;
use clap::{Args, Subcommand, ValueEnum};
use desk::{Change, EtcdDesk};
use marea_model::time::parse_rfc3339;
use marea_sources::etcd::EtcdConfig;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Where etcd is.
#[derive(Clone, Debug, Args)]
pub struct At {
    /// Addresses of etcd, http://HOST:PORT, separated by commas [default: etcd.endpoints of the configuration]
    #[arg(long, global = true, value_name = "URL", value_delimiter = ',')]
    pub endpoints: Vec<String>,
}

/// How a change is made.
#[derive(Clone, Debug, Args)]
pub struct How {
    /// Write only if what is changed stands at this revision; 0: only if nothing is there
    #[arg(long, value_name = "REVISION")]
    pub if_revision: Option<i64>,
    /// Write nothing; list the verdicts that would change, as the running feed knows the market
    #[arg(long)]
    pub dry_run: bool,
    /// The running feed that --dry-run asks [default: feed.listen of the configuration]
    #[arg(long, value_name = "URL", requires = "dry_run")]
    pub url: Option<String>,
}

/// `marea policy`
#[derive(Clone, Debug, Args)]
pub struct Policy {
    /// What to do
    #[command(subcommand)]
    pub command: PolicyCommand,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub at: At,
}

/// What can be done with policies.
#[derive(Clone, Debug, Subcommand)]
pub enum PolicyCommand {
    /// Show policies, resolved and as written
    Get {
        /// The account, or * for what holds for all [default: all of them]
        account: Option<String>,
    },
    /// Set keys of a policy
    Set {
        /// The account, or * for all
        account: String,
        /// What to set, such as max_spread=20
        #[arg(required = true, value_name = "KEY=VALUE")]
        settings: Vec<String>,
        /// Let what is set vanish after this long, such as 30m
        #[arg(long, value_name = "TIME", value_parser = whole_seconds)]
        ttl: Option<Duration>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it")]
        how: How,
    },
    /// Show every change until Ctrl-C
    Watch {
        /// The account, or * for what holds for all [default: all of them]
        account: Option<String>,
    },
    /// Delete keys of a policy; without a key all of them, which blocks the account
    Delete {
        /// The account, or * for all
        account: String,
        /// The keys
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it")]
        how: How,
    },
}

/// `marea window`
#[derive(Clone, Debug, Args)]
pub struct Window {
    /// What to do
    #[command(subcommand)]
    pub command: WindowCommand,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub at: At,
}

/// What can be done with no-trade windows.
#[derive(Clone, Debug, Subcommand)]
pub enum WindowCommand {
    /// Add a no-trade window
    Add {
        /// The account, or * for all
        account: String,
        /// The instrument, or * for all
        symbol: String,
        /// Its start, RFC 3339
        #[arg(long, value_name = "TIME", value_parser = a_time, requires = "end", required_unless_present = "ttl")]
        start: Option<String>,
        /// Its end, RFC 3339
        #[arg(long, value_name = "TIME", value_parser = a_time, requires = "start")]
        end: Option<String>,
        /// A name, where a pair has several windows [default: default]
        #[arg(long)]
        id: Option<String>,
        /// How long before the start to block
        #[arg(long, value_name = "TIME", value_parser = whole_seconds, requires = "start")]
        pre: Option<Duration>,
        /// How long after the end to block
        #[arg(long, value_name = "TIME", value_parser = whole_seconds, requires = "start")]
        post: Option<Duration>,
        /// Instead of start and end: from now on for this long
        #[arg(long, value_name = "TIME", value_parser = whole_seconds, conflicts_with_all = ["start", "end"])]
        ttl: Option<Duration>,
        /// Replace the window of that name
        #[arg(long)]
        replace: bool,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it")]
        how: How,
    },
    /// List no-trade windows
    List {
        /// Of this account, or * for what holds for all
        account: Option<String>,
        /// Of this instrument
        symbol: Option<String>,
    },
    /// Remove a no-trade window
    Remove {
        /// The account, or *
        account: String,
        /// The instrument, or *
        symbol: String,
        /// Its name [default: default]
        #[arg(long)]
        id: Option<String>,
        #[command(flatten)]
        #[allow(missing_docs, reason = "clap would show it")]
        how: How,
    },
}

/// `marea kill`
#[derive(Clone, Debug, Args)]
pub struct Kill {
    /// on: no entries, for nobody; off: trading goes on
    pub state: Switch,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub how: How,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap would show it")]
    pub at: At,
}

/// The kill switch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Switch {
    /// No entries.
    On,
    /// Trading goes on.
    Off,
}

fn whole_seconds(text: &str) -> Result<Duration, String> {
    let time = Duration::from_nanos(duration(text)?.unsigned_abs());
    match time.subsec_nanos() {
        0 if time > Duration::ZERO => Ok(time),
        _ => Err("must be whole seconds, at least one".to_owned()),
    }
}

fn a_time(text: &str) -> Result<String, String> {
    parse_rfc3339(text).map(|_| text.to_owned()).map_err(|e| e.to_string())
}

/// `marea policy`
pub fn policy(config: &Config, args: &Policy, json: bool) -> Result<(), Failure> {
    let etcd = etcd(config, &args.at)?;
    match &args.command {
        PolicyCommand::Watch { account } => policy::watch(&etcd, account.as_deref(), json),
        PolicyCommand::Get { account } => policy::get(&EtcdDesk::open(&etcd, config)?, account.as_deref(), json),
        PolicyCommand::Set { account, settings, ttl, how } => {
            let change = policy::set(account, settings, *ttl)?;
            EtcdDesk::open(&etcd, config)?.make(|_| Ok(change.clone()), how, json)
        }
        PolicyCommand::Delete { account, keys, how } => {
            EtcdDesk::open(&etcd, config)?.make(|tree| policy::delete(tree, account, keys), how, json)
        }
    }
}

/// `marea window`
pub fn window(config: &Config, args: &Window, json: bool) -> Result<(), Failure> {
    let desk = EtcdDesk::open(&etcd(config, &args.at)?, config)?;
    match &args.command {
        WindowCommand::List { account, symbol } => window::list(&desk, account.as_deref(), symbol.as_deref(), json),
        WindowCommand::Remove { account, symbol, id, how } => {
            desk.make(|tree| window::remove(tree, account, symbol, id.as_deref()), how, json)
        }
        WindowCommand::Add { account, symbol, start, end, id, pre, post, ttl, replace, how } => {
            let seconds = |time: &Option<Duration>| time.map(|time| time.as_secs().to_string());
            let fields = match ttl {
                Some(_) => vec![("active", Some("true".to_owned()))],
                None => vec![
                    ("start_utc", start.clone()),
                    ("end_utc", end.clone()),
                    ("pre_buffer_sec", seconds(pre)),
                    ("post_buffer_sec", seconds(post)),
                ],
            };
            let change = |tree: &_| {
                let change = window::add(tree, account, symbol, id.as_deref(), &fields, *replace)?;
                Ok(Change { ttl: *ttl, ..change })
            };
            desk.make(change, how, json)
        }
    }
}

/// `marea kill`
pub fn kill(config: &Config, args: &Kill, json: bool) -> Result<(), Failure> {
    const KEY: &str = "/echo/core/trading_enabled";
    let enabled = if args.state == Switch::On { "false" } else { "true" };
    let change = Change {
        puts: BTreeMap::from([(KEY.to_owned(), enabled.to_owned())]),
        deletes: BTreeSet::new(),
        ttl: None,
        rests_on: vec![KEY.to_owned()],
        // Whoever stops trading means it, whatever somebody else has just written.
        regardless: args.state == Switch::On,
    };
    EtcdDesk::open(&etcd(config, &args.at)?, config)?.make(|_| Ok(change.clone()), &args.how, json)
}

/// The configured etcd, unless flags name another.
fn etcd(config: &Config, at: &At) -> Result<EtcdConfig, Failure> {
    let mut etcd = config.etcd.clone().unwrap_or_default();
    if !at.endpoints.is_empty() {
        etcd.endpoints = at.endpoints.clone();
    }
    match etcd.check() {
        faults if faults.is_empty() => Ok(etcd),
        faults => Err(Failure::Refused(faults)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_lasts_whole_seconds() {
        assert_eq!(whole_seconds("30m"), Ok(Duration::from_secs(1_800)));
        for text in ["0s", "1500ms", "soon", "5"] {
            assert!(whole_seconds(text).is_err(), "{text}");
        }
    }
}
