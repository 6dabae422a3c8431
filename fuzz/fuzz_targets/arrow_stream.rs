//! A message is its rows, numbered without a gap, each one record or one reject; or one reject with all its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marea_fuzz::{DECODER, check, cursor};
use marea_model::codec::arrow::{BatchReader, RowsAre};
use marea_model::codec::{Decoded, arrow};

fuzz_target!(|message: &[u8]| {
    let mut out = Decoded::default();
    arrow::decode_stream(&DECODER, message, cursor(), 0, &mut out);
    let whole = |reject: &marea_model::DeadLetter| reject.original == message;
    if !(out.rejects.len() == 1 && out.records.is_empty() && out.rejects.iter().all(whole)) {
        let mut rows: Vec<u32> = out.records.iter().map(|record| record.cursor.row).collect();
        rows.extend(out.rejects.iter().map(|reject| reject.cursor.row));
        rows.sort_unstable();
        assert!(rows.iter().copied().eq(0..rows.len() as u32), "{rows:?}");
        // Read batch by batch, it is the same.
        let (mut reader, mut again, mut count) = (BatchReader::new(message), Decoded::default(), 0);
        let next = |reader: &mut BatchReader<&[u8]>, again: &mut Decoded| {
            reader.decode_next(&DECODER, cursor(), RowsAre::Rows, 0, again).expect("it was read before")
        };
        while let Some(rows) = next(&mut reader, &mut again) {
            count += rows;
        }
        assert_eq!((count, again.len(), again.unknown_fields), (rows.len(), rows.len(), out.unknown_fields));
    }
    check(&out);
});
