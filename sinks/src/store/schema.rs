//! The schema: numbered migrations, each applied once, and what is refused.

use super::link::{Link, Named};
use super::{StoreError, tables};
use sqlx::SqlSafeStr;
use sqlx::migrate::{MigrateError, Migration, MigrationType, Migrator};
use std::borrow::Cow;

/// Applied in order, each once; an applied one never changes.
fn migrations(named: &Named) -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(version, Cow::Borrowed(name), MigrationType::Simple, sql.into_sql_str(), false)
    };
    Migrator::with_migrations(if named.is_postgres {
        vec![
            migration(1, "init", include_str!("../../../migrations/postgres/0001_init.sql")),
            migration(2, "behind", include_str!("../../../migrations/postgres/0002_behind.sql")),
            migration(3, "unacknowledged", include_str!("../../../migrations/postgres/0003_unacknowledged.sql")),
            migration(4, "dead_letters", include_str!("../../../migrations/postgres/0004_dead_letters.sql")),
            migration(5, "price_jumps", include_str!("../../../migrations/postgres/0005_price_jumps.sql")),
        ]
    } else {
        vec![
            migration(1, "init", include_str!("../../../migrations/sqlite/0001_init.sql")),
            migration(2, "behind", include_str!("../../../migrations/sqlite/0002_behind.sql")),
            migration(3, "unacknowledged", include_str!("../../../migrations/sqlite/0003_unacknowledged.sql")),
            migration(4, "dead_letters", include_str!("../../../migrations/sqlite/0004_dead_letters.sql")),
            migration(5, "price_jumps", include_str!("../../../migrations/sqlite/0005_price_jumps.sql")),
        ]
    })
}

/// The tables that there are.
async fn tables(link: &mut Link, named: &Named) -> Result<Vec<String>, StoreError> {
    let sql = if named.is_postgres {
        "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = current_schema()"
    } else {
        "SELECT name FROM sqlite_master WHERE type = 'table'"
    };
    let rows = link.rows(named, sql, &[]).await?;
    rows.iter().map(|row| row.text(0).map(str::to_owned)).collect::<Result<_, _>>().map_err(|e| named.broken(e))
}

/// How many migrations were applied, from the first on, and how many there are. Refuses a schema that is newer than what
/// is known here, or not ours.
pub(crate) async fn check(link: &mut Link, named: &Named) -> Result<(usize, usize), StoreError> {
    let migrations = migrations(named);
    let known: Vec<&Migration> = migrations.iter().collect();
    if !tables(link, named).await?.iter().any(|table| table == "_sqlx_migrations") {
        return Ok((0, known.len()));
    }
    let sql = "SELECT version, success, checksum FROM _sqlx_migrations ORDER BY version";
    let rows = link.rows(named, sql, &[]).await?;
    let applied = rows.iter().map(|row| Ok((row.int(0)?, row.int(1)? != 0, row.bytes(2)?)));
    let applied: Vec<_> = applied.collect::<Result<_, String>>().map_err(|error| named.broken(error))?;
    let greatest = known.last().map_or(0, |migration| migration.version);
    if let Some((found, ..)) = applied.last().filter(|(found, ..)| *found > greatest) {
        return Err(StoreError::NewerSchema { store: named.store.clone(), found: *found, known: greatest });
    }
    for (i, (version, success, checksum)) in applied.iter().enumerate() {
        let ours = known.get(i).filter(|ours| ours.version == *version && *ours.checksum == **checksum && *success);
        if ours.is_none() {
            return Err(StoreError::ForeignSchema { store: named.store.clone(), version: *version });
        }
    }
    Ok((applied.len(), known.len()))
}

/// Applies what is missing; gives the names of what was applied.
pub(crate) async fn migrate(link: &mut Link, named: &Named) -> Result<Vec<String>, StoreError> {
    let (applied, known) = check(link, named).await?;
    if applied == known {
        return Ok(Vec::new());
    }
    let migrations = migrations(named);
    // `run` would make a future that cannot move to another thread.
    let result = match link {
        Link::Sqlite(connection) => migrations.run_direct(None, &mut **connection, false).await,
        Link::Postgres(session) => migrations.run_direct(None, &mut session.connection, false).await,
    };
    result.map_err(|failure| match failure {
        MigrateError::Execute(source) | MigrateError::ExecuteMigration(source, _) => named.error(&source),
        other => StoreError::Statement { store: named.store.clone(), detail: other.to_string() },
    })?;
    let new = migrations.iter().skip(applied);
    Ok(new.map(|migration| format!("applied migration {} {}", migration.version, migration.description)).collect())
}

/// Whether every table is there.
pub(crate) async fn check_tables(link: &mut Link, named: &Named) -> Result<(), StoreError> {
    let found = tables(link, named).await?;
    match tables::NAMES.iter().find(|table| !found.iter().any(|t| t == *table)) {
        Some(table) => Err(StoreError::TableMissing { store: named.store.clone(), table: (*table).to_owned() }),
        None => Ok(()),
    }
}
