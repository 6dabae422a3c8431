//! Which store: a file, or an address.

use marea_model::Nanos;
use marea_model::time::SECOND;
use std::fmt;
use std::path::{Path, PathBuf};

/// Where a store is. Neither `Display` nor `Debug` shows a password.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreTarget {
    /// A SQLite file.
    Sqlite(PathBuf),
    /// A PostgreSQL database, with or without TimescaleDB.
    Postgres {
        /// `postgres://user:password@host:port/database?sslmode=verify-full`: as libpq reads it.
        url: String,
        /// How long TimescaleDB keeps what, and in what shape; without it, nothing is forgotten.
        chunks: Chunks,
    },
}

/// What TimescaleDB does with bars, indicators and trades as the pipeline's clock moves on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Chunks {
    /// The span of event time that one chunk holds.
    pub span: Nanos,
    /// The age at which a chunk is compressed. A correction still lands in it, at a cost.
    pub compress_after: Nanos,
    /// The age at which indicators and trades are forgotten; none: never. Bars and the audit never are.
    pub forget_after: Option<Nanos>,
}

const DAY: Nanos = 86_400 * SECOND;

impl Default for Chunks {
    fn default() -> Self {
        Chunks { span: 7 * DAY, compress_after: 30 * DAY, forget_after: Some(730 * DAY) }
    }
}

impl StoreTarget {
    /// `postgres://…` or `postgresql://…` is PostgreSQL, anything else the path of a SQLite file.
    pub fn parse(text: &str) -> Self {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("postgres" | "postgresql") => {
                StoreTarget::Postgres { url: text.to_owned(), chunks: Chunks::default() }
            }
            _ => StoreTarget::Sqlite(text.into()),
        }
    }

    /// With other lengths; those of a SQLite file mean nothing.
    #[must_use]
    pub fn with_chunks(self, chunks: Chunks) -> Self {
        match self {
            StoreTarget::Postgres { url, .. } => StoreTarget::Postgres { url, chunks },
            sqlite @ StoreTarget::Sqlite(_) => sqlite,
        }
    }

    /// Its name in metrics and messages: `sqlite`, `postgres`.
    pub fn kind(&self) -> &'static str {
        match self {
            StoreTarget::Sqlite(_) => "sqlite",
            StoreTarget::Postgres { .. } => "postgres",
        }
    }
}

impl fmt::Display for StoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let url = match self {
            StoreTarget::Sqlite(path) => return write!(f, "{}", path.display()),
            StoreTarget::Postgres { url, .. } => url,
        };
        // A password may hold what it should not, unescaped: all before the last @ is its realm, all after ? may repeat it.
        let (scheme, rest) = url.split_once("://").unwrap_or(("postgres", url));
        let (login, place) = rest.rsplit_once('@').map_or(("", rest), |(login, place)| (login, place));
        let user = login.split([':', '/', '?', '@']).next().unwrap_or_default();
        let place = place.split('?').next().unwrap_or_default();
        let at = if user.is_empty() { "" } else { "@" };
        write!(f, "{scheme}://{user}{at}{place}")
    }
}

impl fmt::Debug for StoreTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreTarget({self})")
    }
}

impl From<&StoreTarget> for StoreTarget {
    fn from(target: &StoreTarget) -> Self {
        target.clone()
    }
}
impl From<PathBuf> for StoreTarget {
    fn from(path: PathBuf) -> Self {
        StoreTarget::Sqlite(path)
    }
}
impl From<&PathBuf> for StoreTarget {
    fn from(path: &PathBuf) -> Self {
        StoreTarget::Sqlite(path.clone())
    }
}
impl From<&Path> for StoreTarget {
    fn from(path: &Path) -> Self {
        StoreTarget::Sqlite(path.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_postgres_and_shows_no_password() {
        for (text, shown) in [
            ("marea.db", "marea.db"),
            ("/var/lib/postgres:x@y/marea.db", "/var/lib/postgres:x@y/marea.db"),
            ("postgres://host/db", "postgres://host/db"),
            ("postgresql://me@host:5433/db?sslmode=require", "postgresql://me@host:5433/db"),
            ("POSTGRES://me:s3cret@host/db?password=s3cret", "POSTGRES://me@host/db"),
            ("postgres://me:s3/c@r?et@host/db", "postgres://me@host/db"),
            ("postgres://:s3cret@host/db", "postgres://host/db"),
            ("postgres:///db?user=me&password=s3cret", "postgres:///db"),
        ] {
            let target = StoreTarget::parse(text);
            let expected = if text.to_lowercase().starts_with("postgres") { "postgres" } else { "sqlite" };
            assert_eq!((target.to_string().as_str(), target.kind()), (shown, expected));
            assert_eq!(format!("{target:?}"), format!("StoreTarget({shown})"));
        }
    }
}
