//! What is particular to PostgreSQL 15 and later, with or without TimescaleDB.
//!
//! - **Session**: one connection writes. It holds an advisory lock for its whole life, so it must reach the server itself:
//!   a pooler between them may share sessions, not transactions. `synchronous_commit` is as the server has it.
//! - **Lost connection**: whatever had been sent, the next call connects anew and reads the pipeline's row `FOR UPDATE`,
//!   which waits for what the old connection left behind; then `upper` says whether its COMMIT arrived. A server that can
//!   no longer reach the old connection ends it after some 20 s, by keepalives.
//! - **Waiting** has an end everywhere: connecting 10 s, a lock 10 s, a commit 30 s and a millisecond a row. All these
//!   may be tried again.
//! - **Text** may hold any character here but U+0000, which is written as two others ([`guarded`]).

mod extras;
mod rows;

pub(crate) use extras::extras;
pub(crate) use rows::{forget, write};

use super::StoreError;
use super::link::{Link, Named};
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(10);

/// A lost client or a lost server is noticed in some 20 s; nobody waits for a lock for ever; a stopped process gives its
/// row back.
const SESSION: &str = "SET lock_timeout = '10s'; SET statement_timeout = '30min'; \
     SET idle_in_transaction_session_timeout = '60s'; \
     SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 5; SET tcp_keepalives_count = 2; SET jit = off";

/// The same, where the server's system can do it.
const OPTIONAL: [&str; 2] = ["SET client_connection_check_interval = '5s'", "SET tcp_user_timeout = '20s'"];

/// The writing connection.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) connection: PgConnection,
    /// Temporary tables that it has made.
    staged: HashSet<String>,
}

fn options(url: &str, named: &Named) -> Result<PgConnectOptions, StoreError> {
    let options: Result<PgConnectOptions, _> = url.parse();
    options
        .map(|options| options.application_name("marea"))
        .map_err(|error| StoreError::Open { store: named.store.clone(), detail: error.to_string() })
}

pub(crate) async fn connect(url: &str, named: &Named) -> Result<Link, StoreError> {
    let options = options(url, named)?;
    let connection = within(CONNECT, named, "connecting", options.connect()).await?;
    let mut link = Link::Postgres(Box::new(Session { connection, staged: HashSet::new() }));
    let set = async {
        link.run(SESSION).await?;
        for optional in OPTIONAL {
            match link.run(optional).await {
                Ok(()) | Err(sqlx::Error::Database(_)) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    within(CONNECT, named, "connecting", set).await?;
    Ok(link)
}

/// What takes longer is given up: its outcome is then unknown.
pub(crate) async fn within<T>(
    limit: Duration,
    named: &Named,
    what: &str,
    doing: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(limit, doing).await {
        Ok(result) => result.map_err(|error| named.error(&error)),
        Err(_) => {
            let detail = format!("no answer for {} s while {what}", limit.as_secs());
            Err(StoreError::Unavailable { store: named.store.clone(), detail })
        }
    }
}

pub(crate) fn pool(url: &str, named: &Named, connections: u32) -> Result<PgPool, StoreError> {
    let pool = PgPoolOptions::new().max_connections(connections).acquire_timeout(Duration::from_secs(5));
    Ok(pool.connect_lazy_with(options(url, named)?))
}

/// Takes the writer's lock, of this database and schema; whether it is ours now. It goes with the connection.
pub(crate) async fn lock(link: &mut Link, named: &Named) -> Result<bool, StoreError> {
    let sql = "SELECT pg_try_advisory_lock(hashtextextended('marea.' || current_schema(), 0))";
    let rows = link.rows(named, sql, &[]).await?;
    rows.first().map_or(Ok(0), |row| row.int(0)).map(|locked| locked != 0).map_err(|error| named.broken(error))
}

/// Says so where the server is set up to lose what it has confirmed.
pub(crate) async fn check_durability(link: &mut Link, named: &Named) -> Result<(), StoreError> {
    if !named.is_postgres {
        return Ok(());
    }
    let sql = "SELECT CAST(name AS TEXT) FROM pg_settings \
               WHERE name IN ('fsync', 'full_page_writes', 'synchronous_commit') AND setting = 'off'";
    for row in link.rows(named, sql, &[]).await? {
        let setting = row.text(0).map_err(|error| named.broken(error))?;
        tracing::warn!(store = %named.store, "{setting} is off on this server: a crash may lose what was committed");
    }
    Ok(())
}

/// By the codes of https://www.postgresql.org/docs/15/errcodes-appendix.html.
pub(crate) fn classify(store: &Arc<str>, error: &sqlx::Error) -> StoreError {
    let (store, detail) = (store.clone(), error.to_string());
    let sqlx::Error::Database(database) = error else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => {
                StoreError::Unavailable { store, detail }
            }
            sqlx::Error::Configuration(_) | sqlx::Error::Tls(_) => StoreError::Open { store, detail },
            _ => StoreError::Statement { store, detail },
        };
    };
    let code = database.code().unwrap_or_default();
    let detail = format!("{} ({code})", database.message());
    match &*code {
        "53100" => StoreError::DiskFull { store },
        "25006" => StoreError::ReadOnly { store },
        "55P03" => StoreError::Busy { store },
        // Shut down, crashed, starting up; cancelled by a timeout; an error of its disk.
        "57P01" | "57P02" | "57P03" | "57P05" | "57014" | "25P03" | "58030" => {
            StoreError::Unavailable { store, detail }
        }
        // No database, no such user, no right to connect.
        "3D000" | "28000" | "28P01" => StoreError::Open { store, detail },
        // Connections, resources (too many connections, no memory), conflicts with other transactions.
        _ if ["08", "53", "40"].iter().any(|class| code.starts_with(class)) => {
            StoreError::Unavailable { store, detail }
        }
        _ => StoreError::Statement { store, detail },
    }
}

/// Begins an escape: a character that no text has.
const ESCAPE: char = '\u{10ffff}';

/// Text as PostgreSQL takes it: U+0000 as `ESCAPE 0`, `ESCAPE` as `ESCAPE 1`.
pub(crate) fn guarded(text: &str) -> Cow<'_, str> {
    if !text.contains(['\0', ESCAPE]) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(ESCAPE, "\u{10ffff}1").replace('\0', "\u{10ffff}0"))
}

/// What [`guarded`] was given.
pub(crate) fn unguarded(text: String) -> String {
    if !text.contains(ESCAPE) {
        return text;
    }
    text.replace("\u{10ffff}0", "\0").replace("\u{10ffff}1", "\u{10ffff}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An error as a server may send it.
    #[derive(Debug)]
    struct Said(&'static str);

    impl std::fmt::Display for Said {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("said")
        }
    }
    impl std::error::Error for Said {}
    impl sqlx::error::DatabaseError for Said {
        fn message(&self) -> &str {
            "said"
        }
        fn code(&self) -> Option<Cow<'_, str>> {
            Some(self.0.into())
        }
        fn as_error(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn as_error_mut(&mut self) -> &mut (dyn std::error::Error + Send + Sync + 'static) {
            self
        }
        fn into_error(self: Box<Self>) -> Box<dyn std::error::Error + Send + Sync + 'static> {
            self
        }
        fn kind(&self) -> sqlx::error::ErrorKind {
            sqlx::error::ErrorKind::Other
        }
    }

    #[test]
    fn what_may_be_tried_again_is_told_from_what_may_not() {
        let io = || sqlx::Error::Io(std::io::ErrorKind::ConnectionRefused.into());
        assert!(matches!(classify(&"s".into(), &io()), StoreError::Unavailable { .. }));
        for (code, expected) in [
            ("53100", "store s: disk full: nothing is acknowledged until there is space"),
            ("25006", "store s: read-only: nothing is acknowledged until it can be written"),
            ("55P03", "store s: locked by another process"),
            ("57P01", "store s: unavailable: said (57P01)"),
            ("57P03", "store s: unavailable: said (57P03)"),
            ("57014", "store s: unavailable: said (57014)"),
            ("53300", "store s: unavailable: said (53300)"),
            ("08006", "store s: unavailable: said (08006)"),
            ("40P01", "store s: unavailable: said (40P01)"),
            ("28P01", "store s: cannot be opened: said (28P01)"),
            ("3D000", "store s: cannot be opened: said (3D000)"),
            ("42P01", "store s: said (42P01)"),
            ("42501", "store s: said (42501)"),
            ("23505", "store s: said (23505)"),
            ("22P05", "store s: said (22P05)"),
        ] {
            let error = classify(&"s".into(), &sqlx::Error::Database(Box::new(Said(code))));
            assert_eq!(error.to_string(), expected);
            let lasting = expected.contains("said") && !expected.contains("unavailable");
            assert_eq!(error.retryable(), !lasting, "{code}");
        }
    }

    #[test]
    fn any_text_comes_back() {
        for text in ["", "plain", "\0", "a\0b", "\u{10ffff}", "\u{10ffff}0", "\u{10ffff}1\0\u{10ffff}\u{10ffff}"] {
            let written = guarded(text).into_owned();
            assert!(!written.contains('\0'));
            assert_eq!(unguarded(written), text);
        }
    }
}
