//! Which store: a file, or an address.

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
    },
}

impl StoreTarget {
    /// `postgres://…` or `postgresql://…` is PostgreSQL, anything else the path of a SQLite file.
    pub fn parse(text: &str) -> Self {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("postgres" | "postgresql") => StoreTarget::Postgres { url: text.to_owned() },
            _ => StoreTarget::Sqlite(text.into()),
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
            StoreTarget::Postgres { url } => url,
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
