//! PostgreSQL, as plain as it comes.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Signal, geteuid};

use crate::folder::Folder;
use crate::process::{self, Host, Plan, Process, command_as, find, run};
use crate::{ServerError, net, process_methods};

const SERVER: &str = "postgres";
const VERSIONS: [&str; 6] = ["15", "18", "17", "16", "14", "13"];

/// A PostgreSQL server; the user is `postgres`, without a password.
pub struct Postgres {
    host: Host,
    url: String,
}

process_methods!(Postgres);

impl Postgres {
    /// Makes a data folder and starts a server on it.
    pub fn start() -> Result<Self, ServerError> {
        let bin = bin()?;
        // It refuses to run as root.
        let user = geteuid().is_root().then_some("postgres");
        let folder = Folder::new(SERVER)?;
        let data = folder.join("data");
        let data_error = |source| ServerError::File { server: SERVER, path: folder.join("data"), source };
        fs::create_dir(&data).map_err(data_error)?;
        if let Some(user) = user {
            chown(&data, Some(id("-u", user)?), Some(id("-g", user)?)).map_err(data_error)?;
        }
        let mut initdb = command_as(user, &bin.join("initdb"));
        // Written without syncing: what a killed server leaves is still with the system.
        initdb.arg("-D").arg(&data).args(["-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]);
        initdb.args(["--no-sync", "--no-instructions"]);
        run(SERVER, "initdb", initdb)?;

        // Loaded where it is installed beside the server; used by who creates the extension.
        let timescale = bin.join("../lib/timescaledb.so").exists();
        let [port] = net::free_ports()?;
        let (program, is_ready) = (bin.join("postgres"), bin.join("pg_isready"));
        let plan = Plan {
            server: SERVER,
            command: Box::new(move || {
                let mut command = command_as(user, &program);
                command.arg("-D").arg(&data).args(["-c", "listen_addresses=127.0.0.1", "-c"]);
                command.arg(format!("port={port}")).args(["-c", "unix_socket_directories="]);
                if timescale {
                    command.args([
                        "-c",
                        "shared_preload_libraries=timescaledb",
                        "-c",
                        "timescaledb.telemetry_level=off",
                    ]);
                }
                command
            }),
            ready: Box::new(move || is_answering(&is_ready, port)),
            stop: Signal::INT,
            deadline: Duration::from_secs(60),
        };
        let process = Process::start(plan, folder)?;
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        Ok(Self { host: Host::Child(Box::new(process)), url })
    }

    pub(crate) fn external(url: String, variable: &'static str) -> Self {
        Self { host: Host::External { server: SERVER, variable }, url }
    }

    /// The database `postgres`: `postgres://postgres@127.0.0.1:port/postgres`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Creates a database, empty: one of this name is dropped before. Gives its address.
    ///
    /// # Panics
    ///
    /// If the server refuses or does not answer: it is for tests.
    pub fn database(&self, name: &str) -> String {
        self.create_database(name).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Runs statements on the database `postgres` by `psql`; gives what they select, a row a line, columns between `|`.
    pub fn query(&self, sql: &str) -> Result<String, ServerError> {
        self.psql(&[sql])
    }

    fn create_database(&self, name: &str) -> Result<String, ServerError> {
        let quoted = name.replace('"', "\"\"");
        // Not in one transaction, which neither statement likes.
        self.psql(&[
            &format!("DROP DATABASE IF EXISTS \"{quoted}\" WITH (FORCE)"),
            &format!("CREATE DATABASE \"{quoted}\""),
        ])?;
        Ok(with_database(&self.url, &net::percent(name)))
    }

    fn psql(&self, statements: &[&str]) -> Result<String, ServerError> {
        let mut command = Command::new(bin()?.join("psql"));
        command.env_clear().env("LANG", "C.UTF-8").env("PGCONNECT_TIMEOUT", "10");
        command.args(["--no-psqlrc", "--no-password", "--quiet", "--tuples-only", "--no-align"]);
        command.args(["--set", "ON_ERROR_STOP=1", "--dbname", &self.url]);
        for statement in statements {
            command.args(["--command", statement]);
        }
        run(SERVER, "psql", command)
    }
}

/// The same server's address, with another database; what follows a question mark stays.
fn with_database(url: &str, database: &str) -> String {
    let (address, options) = url.split_once('?').map_or((url, String::new()), |(url, rest)| (url, format!("?{rest}")));
    let (scheme, rest) = address.split_once("://").unwrap_or(("postgres", address));
    let authority = rest.split('/').next().unwrap_or_default();
    format!("{scheme}://{authority}/{database}{options}")
}

/// A folder with the server's programs, which Debian and Homebrew keep off the path.
fn bin() -> Result<PathBuf, ServerError> {
    let places = |version| {
        let homebrew = ["/opt/homebrew", "/usr/local"].map(|root| format!("{root}/opt/postgresql@{version}/bin"));
        [format!("/usr/lib/postgresql/{version}/bin")].into_iter().chain(homebrew)
    };
    let folders: Vec<String> = VERSIONS.into_iter().flat_map(places).collect();
    let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
    let found = find("initdb", &folders).and_then(|initdb| Some(initdb.parent()?.to_path_buf()));
    found.ok_or(ServerError::Missing { server: SERVER, program: "initdb", package: "postgresql" })
}

fn id(flag: &str, user: &str) -> Result<u32, ServerError> {
    let mut command = Command::new("id");
    command.args([flag, user]);
    let id = run(SERVER, "the user that it runs as", command)?;
    id.trim().parse().map_err(|_| ServerError::Failed {
        server: SERVER,
        what: format!("id {flag} {user}"),
        message: id,
    })
}

fn is_answering(pg_isready: &Path, port: u16) -> bool {
    let mut command = process::command(pg_isready);
    command.args(["-q", "-h", "127.0.0.1", "-t", "1", "-p"]).arg(port.to_string());
    run(SERVER, "pg_isready", command).is_ok()
}

#[cfg(test)]
mod tests {
    use super::with_database;

    #[test]
    fn the_database_of_an_address_is_replaced() {
        for (url, expected) in [
            ("postgres://postgres@127.0.0.1:5/postgres", "postgres://postgres@127.0.0.1:5/t"),
            ("postgresql://a:b@host", "postgresql://a:b@host/t"),
            ("postgres://host/x?sslmode=require", "postgres://host/t?sslmode=require"),
        ] {
            assert_eq!(with_database(url, "t"), expected);
        }
    }
}
