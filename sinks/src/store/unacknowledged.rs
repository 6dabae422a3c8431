//! Messages that were committed and may not have been acknowledged: what they are known by, should they be delivered again.
//!
//! At most as many as a source leaves unacknowledged, and those that were acknowledged since the last commit.

use super::StoreError;
use super::cell::Cell;
use super::link::{Link, Named};
use super::tables::{Kind, Table};
use marea_model::cursor::MessageIdentity;
use marea_model::{Partition, RawMessage};
use std::ops::Range;

pub(crate) static UNACKNOWLEDGED: Table = Table {
    name: "unacknowledged",
    key: 2,
    columns: &[("source_partition", Kind::Text), ("source_offset", Kind::Int), ("identity", Kind::Bytes)],
};

const LOAD: &str =
    "SELECT source_partition, source_offset, identity FROM unacknowledged ORDER BY source_partition, source_offset";
const FORGET: &str =
    "DELETE FROM unacknowledged WHERE source_partition = $1 AND source_offset >= $2 AND source_offset < $3";

pub(crate) fn rows(messages: &[&RawMessage]) -> impl Iterator<Item = Vec<Cell>> {
    messages.iter().filter_map(|message| {
        let (cursor, identity) = (message.cursor, message.identity?);
        Some(vec![cursor.partition.as_str().into(), cursor.offset.into(), Cell::Bytes(identity.0.to_vec())])
    })
}

/// All that there are, in the order of their partitions and offsets.
pub(crate) async fn load(link: &mut Link, named: &Named) -> Result<Vec<(Partition, u64, MessageIdentity)>, StoreError> {
    let mut all = Vec::new();
    link.each(named, LOAD, &[], |row| {
        let identity = row.bytes(2)?;
        let identity = identity.try_into().map_err(|_| "the identity of a message must have 16 bytes".to_owned())?;
        all.push((row.parse(0, Partition::new)?, row.unsigned(1)?, MessageIdentity(identity)));
        Ok(())
    })
    .await?;
    Ok(all)
}

/// These will not be delivered again.
pub(crate) async fn forget(link: &mut Link, ranges: &[(Partition, Range<u64>)]) -> Result<(), sqlx::Error> {
    for (partition, offsets) in ranges {
        link.execute(FORGET, &[partition.as_str().into(), offsets.start.into(), offsets.end.into()]).await?;
    }
    Ok(())
}
