//! The command line: what can be asked, and which configuration keys a flag stands for.

use crate::config::{Flag, duration};
use crate::live_cli;
use clap::builder::{Styles, styling::AnsiColor};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use marea_model::Nanos;
use marea_model::time::parse_rfc3339;
use std::path::PathBuf;
use std::time::Duration;

/// Keeps a trading desk's whole view of the market true: bars, indicators, backtests, recommendations and verdicts.
#[derive(Clone, Debug, Parser)]
#[command(name = "marea", version, propagate_version = true, disable_help_subcommand = true)]
#[command(styles = Styles::styled().header(AnsiColor::Green.on_default().bold()).literal(AnsiColor::Cyan.on_default()))]
pub struct Cli {
    /// Configuration file [default: marea.toml, if it is there]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// How output reads
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub format: Format,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// How output reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// What can be asked.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// A synthetic market, a store in a temporary folder, and a page that shows it all
    Demo(Demo),
    /// Files from beginning to end, then a summary
    Replay(Replay),
    /// The configured pipeline, until it is stopped
    Run(Run),
    /// Files into a topic, a stream or a queue
    Publish(Publish),
    /// What accounts may do: policies in etcd
    Policy(live_cli::Policy),
    /// When nobody may trade: no-trade windows in etcd
    Window(live_cli::Window),
    /// The kill switch in etcd
    Kill(live_cli::Kill),
    /// Bring the store's tables up to date, and say what was done
    Migrate(Migrate),
    /// Check the configuration, and print every value and where it came from
    Check(Check),
    /// Why a recommendation is what it is, and what an account may do about it
    Explain(Explain),
    /// A completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// `marea migrate`
#[derive(Clone, Copy, Debug, Args)]
pub struct Migrate {
    /// Compute the whole state anew, and show what stands otherwise; changes no row
    #[arg(long)]
    pub rebuild: bool,
    /// Then take over what was computed, and keep what stood under another name
    #[arg(long, requires = "rebuild")]
    pub swap: bool,
}

/// `marea demo`
#[derive(Clone, Debug, Args)]
pub struct Demo {
    /// Address of the page [default: 127.0.0.1:8000, or the next free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Seed of the market
    #[arg(long, value_name = "N")]
    pub seed: Option<String>,
    /// Ticks a second
    #[arg(long, value_name = "N")]
    pub rate: Option<String>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Policies, windows, accounts, strategies and instruments [default: a copy of the demo's own, to edit]
    #[arg(long, value_name = "FILE")]
    pub live: Option<String>,
    /// Stop after this long, such as 30s
    #[arg(long, value_name = "TIME", value_parser = some_time)]
    pub duration: Option<Duration>,
}

/// `marea replay`
#[derive(Clone, Debug, Args)]
pub struct Replay {
    /// Parquet, CSV or Arrow files, merged by event time
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Write the final state as CSV into this folder
    #[arg(long, value_name = "DIR")]
    pub dump: Option<PathBuf>,
    /// Policies, windows, accounts, strategies and instruments [default: each kind of strategy once, no accounts]
    #[arg(long, value_name = "FILE")]
    pub live: Option<String>,
    /// Account snapshots, one JSON object a line
    #[arg(long, value_name = "FILE")]
    pub accounts: Option<String>,
    /// Where now ends, RFC 3339 [default: the greatest close of any bar]
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339)]
    pub until: Option<Nanos>,
    /// What CSV files are: marea, binance_trades, binance_agg_trades, truefx [default: look at the first line]
    #[arg(long, value_name = "FORMAT")]
    pub csv_format: Option<String>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// full, or a multiple of real time such as 60x
    #[arg(long, value_name = "SPEED")]
    pub speed: Option<String>,
    /// How late a record may be
    #[arg(long, value_name = "TIME")]
    pub lateness: Option<String>,
    /// Keep the results in this SQLite file [default: nowhere]
    #[arg(long, value_name = "FILE")]
    pub store: Option<String>,
}

/// `marea run`
#[derive(Clone, Debug, Args)]
pub struct Run {
    /// Address of the feed
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<String>,
    /// Policies, windows, accounts, strategies and instruments
    #[arg(long, value_name = "FILE")]
    pub live: Option<String>,
    /// The SQLite file
    #[arg(long, value_name = "FILE")]
    pub store: Option<String>,
    /// Worker threads
    #[arg(long, value_name = "N")]
    pub workers: Option<String>,
    /// Read what there is now, then move now on to this time, RFC 3339, and end
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339)]
    pub until: Option<Nanos>,
    /// With --until: write the final state as CSV into this folder
    #[arg(long, value_name = "DIR", requires = "until")]
    pub dump: Option<PathBuf>,
    /// What now follows: wall, or event (the greatest event time read)
    #[arg(long, value_name = "CLOCK")]
    pub clock: Option<String>,
    /// Go on where a broker no longer has what is needed
    #[arg(long)]
    pub accept_gap: bool,
}

/// `marea publish`
#[derive(Clone, Debug, Args)]
pub struct Publish {
    /// Parquet, CSV or Arrow files, merged by event time
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<String>,
    /// Where to; its address is the configuration's
    #[arg(long, value_name = "BROKER")]
    pub to: Broker,
    /// What a message is: json (one tick) or arrow (many)
    #[arg(long = "as", value_name = "CODEC", default_value = "json")]
    pub codec: MessageCodec,
    /// Partitions of the topic, if it has to be made
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub partitions: u16,
    /// Account snapshots, one JSON object a line, for the accounts' topic or queue
    #[arg(long, value_name = "FILE")]
    pub accounts: Option<String>,
    /// full, or a multiple of real time such as 60x
    #[arg(long, value_name = "SPEED")]
    pub speed: Option<String>,
    /// What CSV files are: marea, binance_trades, binance_agg_trades, truefx [default: look at the first line]
    #[arg(long, value_name = "FORMAT")]
    pub csv_format: Option<String>,
    /// Instruments, for the scales of prices
    #[arg(long, value_name = "FILE")]
    pub live: Option<String>,
}

/// A broker.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Broker {
    /// The topic `kafka.topic`
    Kafka,
    /// The stream or queue `rabbitmq.name`
    Rabbitmq,
}

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum MessageCodec {
    /// One tick a message
    Json,
    /// A record batch a message
    Arrow,
}

/// `marea check`
#[derive(Clone, Debug, Args)]
pub struct Check {
    /// Check this live file instead of the configured one
    #[arg(long, value_name = "FILE")]
    pub live: Option<String>,
}

/// `marea explain`
#[derive(Clone, Debug, Args)]
pub struct Explain {
    /// The instrument
    pub symbol: String,
    /// What this account may do about it, too
    #[arg(long, value_name = "ACCOUNT")]
    pub account: Option<String>,
    /// The running feed that is asked
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", conflicts_with_all = ["store", "files"])]
    pub url: String,
    /// Ask a store's file instead
    #[arg(long, value_name = "FILE", conflicts_with = "files")]
    pub store: Option<PathBuf>,
    /// Replay these files first, and explain what they end with
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub files: Vec<String>,
    /// With --files: policies, windows, accounts, strategies and instruments
    #[arg(long, value_name = "FILE", requires = "files")]
    pub live: Option<String>,
    /// With --files: account snapshots, one JSON object a line
    #[arg(long, value_name = "FILE", requires = "files")]
    pub accounts: Option<String>,
    /// With --files: where now ends, RFC 3339
    #[arg(long, value_name = "TIME", value_parser = parse_rfc3339, requires = "files")]
    pub until: Option<Nanos>,
    /// The language
    #[arg(long, value_name = "LANG", default_value = "en")]
    pub lang: Lang,
}

/// A language.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Lang {
    /// English.
    En,
    /// Spanish.
    Es,
}

fn some_time(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        0 => Err("must be more than nothing".to_owned()),
        nanos => Ok(Duration::from_nanos(nanos.unsigned_abs())),
    }
}

/// The configuration keys that flags and the commands themselves set.
struct Flags(Vec<Flag>);

impl Flags {
    fn set(&mut self, section: &'static str, key: &'static str, values: &[String], name: &str) {
        self.0.push(Flag { section, key, values: values.to_vec(), name: name.to_owned() });
    }

    fn flag(&mut self, section: &'static str, key: &'static str, value: &Option<String>, name: &str) {
        if let Some(value) = value {
            self.set(section, key, std::slice::from_ref(value), name);
        }
    }

    fn replay(&mut self, files: &[String], name: &str) {
        self.set("pipeline", "clock", &["event".to_owned()], name);
        self.set("source", "kind", &["file".to_owned()], name);
        self.set("source", "paths", files, "FILE");
        // A file's own speed and accounts are the configuration's; these are of this replay.
        self.set("source", "speed", &["full".to_owned()], name);
        self.set("source", "accounts", &[String::new()], name);
    }
}

impl Command {
    /// What it sets of the configuration.
    pub fn flags(&self) -> Vec<Flag> {
        let mut flags = Flags(Vec::new());
        match self {
            Command::Demo(demo) => {
                flags.set("pipeline", "clock", &["wall".to_owned()], "marea demo");
                flags.set("source", "kind", &["synthetic".to_owned()], "marea demo");
                flags.set("live", "file", &[String::new()], "marea demo");
                flags.flag("feed", "listen", &demo.listen, "--listen");
                flags.flag("source", "seed", &demo.seed, "--seed");
                flags.flag("source", "rate", &demo.rate, "--rate");
                flags.flag("pipeline", "workers", &demo.workers, "--workers");
                flags.flag("live", "file", &demo.live, "--live");
            }
            Command::Replay(replay) => {
                flags.replay(&replay.files, "marea replay");
                flags.flag("source", "accounts", &replay.accounts, "--accounts");
                flags.flag("source", "csv_format", &replay.csv_format, "--csv-format");
                flags.flag("source", "speed", &replay.speed, "--speed");
                flags.flag("pipeline", "workers", &replay.workers, "--workers");
                flags.flag("pipeline", "lateness", &replay.lateness, "--lateness");
                flags.flag("live", "file", &replay.live, "--live");
                flags.flag("store", "path", &replay.store, "--store");
            }
            Command::Run(run) => {
                flags.flag("feed", "listen", &run.listen, "--listen");
                flags.flag("live", "file", &run.live, "--live");
                flags.flag("store", "path", &run.store, "--store");
                flags.flag("pipeline", "workers", &run.workers, "--workers");
                flags.flag("pipeline", "clock", &run.clock, "--clock");
                if run.accept_gap {
                    flags.set("source", "accept_gap", &["true".to_owned()], "--accept-gap");
                }
            }
            Command::Publish(publish) => {
                flags.replay(&publish.files, "marea publish");
                flags.flag("source", "accounts", &publish.accounts, "--accounts");
                flags.flag("source", "csv_format", &publish.csv_format, "--csv-format");
                flags.flag("source", "speed", &publish.speed, "--speed");
                flags.flag("live", "file", &publish.live, "--live");
            }
            Command::Check(check) => flags.flag("live", "file", &check.live, "--live"),
            Command::Explain(explain) if !explain.files.is_empty() => {
                flags.replay(&explain.files, "marea explain");
                flags.flag("source", "accounts", &explain.accounts, "--accounts");
                flags.flag("live", "file", &explain.live, "--live");
            }
            Command::Explain(_) | Command::Completions { .. } => {}
            Command::Policy(_) | Command::Window(_) | Command::Kill(_) | Command::Migrate(_) => {}
        }
        flags.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Sources, load};
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bad_usage_says_what_was_wrong_and_exits_with_2() {
        for (line, kind, text) in [
            ("marea", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand, "Usage: marea"),
            ("marea dmeo", ErrorKind::InvalidSubcommand, "error: unrecognized subcommand 'dmeo'"),
            ("marea replay", ErrorKind::MissingRequiredArgument, "<FILE>..."),
            ("marea replay x --dmp y", ErrorKind::UnknownArgument, "a similar argument exists: '--dump'"),
            (
                "marea replay x --until 2013-10-07T20:00:00",
                ErrorKind::ValueValidation,
                "invalid value '2013-10-07T20:00:00' for '--until <TIME>': \"2013-10-07T20:00:00\" is not an RFC 3339 time with a zone",
            ),
            (
                "marea demo --duration 0s",
                ErrorKind::ValueValidation,
                "invalid value '0s' for '--duration <TIME>': must be more than nothing",
            ),
            (
                "marea demo --duration soon",
                ErrorKind::ValueValidation,
                "invalid value 'soon' for '--duration <TIME>': must be a length of time such as 250ms, 30s, 10m, 4h or 2d",
            ),
            (
                "marea explain IBM --url http://x --store y",
                ErrorKind::ArgumentConflict,
                "the argument '--url <URL>' cannot be used with '--store <FILE>'",
            ),
            (
                "marea explain IBM --store y --files z",
                ErrorKind::ArgumentConflict,
                "the argument '--store <FILE>' cannot be used with '--files <FILE>...'",
            ),
            ("marea explain IBM --live y", ErrorKind::MissingRequiredArgument, "--files <FILE>..."),
            ("marea --format xml check", ErrorKind::InvalidValue, "[possible values: text, json]"),
            (
                "marea completions cmd",
                ErrorKind::InvalidValue,
                "[possible values: bash, elvish, fish, powershell, zsh]",
            ),
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.kind(), kind, "{line}: {error}");
            let shown = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(shown.contains(text), "{line}: {shown}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn flags_go_over_the_configuration_and_their_errors_name_them() {
        let cli = parse("marea replay /nowhere/a.csv /nowhere/b.csv --workers 0 --speed fast --live /nowhere/l.toml")
            .unwrap();
        let flags = cli.command.flags();
        let error = load(&Sources { file: None, env: &[], flags: &flags, cores: 2 }).unwrap_err();
        assert_eq!(
            error.0,
            [
                "--workers: pipeline.workers: \"0\" must be a whole number from 1 to 256",
                "FILE: source.paths: \"/nowhere/a.csv\" is not there",
                "FILE: source.paths: \"/nowhere/b.csv\" is not there",
                "--speed: source.speed: \"fast\" must be full, or a multiple of real time such as 1x or 60x",
                "--live: live.file: \"/nowhere/l.toml\" is not there",
            ]
        );
    }

    #[test]
    fn the_demo_is_the_demo_whatever_is_configured() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("marea.toml");
        std::fs::write(&path, "[source]\nkind = 'file'\npaths = ['/nowhere']\n[pipeline]\nclock = 'event'").unwrap();
        let flags = parse("marea demo --seed 7").unwrap().command.flags();
        let loaded = load(&Sources { file: Some(&path), env: &[], flags: &flags, cores: 2 }).unwrap();
        assert_eq!(loaded.config.source.seed, 7);
        assert_eq!(loaded.config.pipeline.clock, crate::cutter::Clock::Wall);
    }
}
