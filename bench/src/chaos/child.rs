//! The process under test.

use super::Place;
use anyhow::Context;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

/// The program: the one that was named, else the `marea` beside this one.
pub(crate) fn binary(named: Option<&Path>) -> anyhow::Result<PathBuf> {
    let beside = || Ok::<_, std::io::Error>(std::env::current_exe()?.with_file_name("marea"));
    let binary = named.map_or_else(beside, |path| Ok(path.to_owned()))?;
    anyhow::ensure!(binary.is_file(), "{} is not there: cargo build -p marea, with the same profile", binary.display());
    Ok(std::path::absolute(binary)?)
}

/// What a process is told by its environment: a store, and topics to read.
pub(crate) fn environment(place: &Place, brokers: &str, ticks: &str, accounts: Option<&str>) -> Vec<(String, String)> {
    let (key, value) = match place {
        Place::Sqlite(path) => ("MAREA__STORE__PATH", path.display().to_string()),
        Place::Postgres(url) => ("MAREA__STORE__URL", url.clone()),
    };
    let mut env = vec![
        (key, value),
        ("MAREA__SOURCE__KIND", "kafka".to_owned()),
        ("MAREA__KAFKA__BROKERS", brokers.to_owned()),
        ("MAREA__KAFKA__TOPIC", ticks.to_owned()),
    ];
    env.extend(accounts.map(|topic| ("MAREA__KAFKA__ACCOUNTS_TOPIC", topic.to_owned())));
    env.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// How to start it.
pub(crate) struct Marea {
    pub(crate) binary: PathBuf,
    pub(crate) folder: PathBuf,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) until: String,
}

/// A process that runs; killed with this.
pub(crate) struct Running {
    child: Child,
    pub(crate) since: Instant,
    log: PathBuf,
}

impl Marea {
    /// Reads on and on, or to the end with a dump.
    pub(crate) fn start(&self, dump: Option<&str>, env: &[(&str, &str)]) -> anyhow::Result<Running> {
        let log = self.folder.join("marea.log");
        let out: File = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = Command::new(&self.binary);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("MAREA_")) {
            command.env_remove(name);
        }
        command.current_dir(&self.folder).args(["run", "--clock", "event", "--live", "live.toml"]);
        if let Some(dump) = dump {
            command.args(["--until", &self.until, "--dump", dump]);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value))).envs(env.iter().copied());
        command.env("MAREA__FEED__LISTEN", "127.0.0.1:0");
        let since = Instant::now();
        let child = command.stdout(Stdio::null()).stderr(out).spawn();
        let child = child.with_context(|| format!("{} cannot be started", self.binary.display()))?;
        Ok(Running { child, since, log })
    }
}

impl Running {
    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// SIGKILL.
    pub(crate) fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended by itself, well.
    pub(crate) fn wait(mut self) -> anyhow::Result<()> {
        let status = self.child.wait()?;
        anyhow::ensure!(status.success(), "marea ended with {status}:\n{}", self.last_words());
        Ok(())
    }

    /// The last lines of its log.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
