//! Every line that is neither blank nor a header is one record or one reject, which has its bytes and its number.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marea_fuzz::{DECODER, check, cursor};
use marea_model::codec::{Decoded, csv};

const NAMES: [&str; 4] = ["IBM-trades-2024.csv", "EURUSD-aggTrades-2024.csv", "CL.csv", "-.csv"];

fuzz_target!(|input: &[u8]| {
    let Some((first, text)) = input.split_first() else { return };
    let name = NAMES[usize::from(*first) % NAMES.len()];
    let Ok(mut reader) = csv::Reader::open(text, cursor().partition, name, None) else { return };
    let first_row = reader.upper();
    let mut out = Decoded::default();
    while reader.read(&DECODER, 2, 0, &mut out).expect("memory") {}
    check(&out);

    let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    // What follows the last line's end is no line.
    if lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    assert_eq!(reader.upper(), lines.len() as u64);
    let lines: Vec<&[u8]> = lines.into_iter().map(|line| line.strip_suffix(b"\r").unwrap_or(line)).collect();
    let mut expected: Vec<u64> = (first_row..lines.len() as u64).collect();
    expected.retain(|row| !lines[*row as usize].iter().all(u8::is_ascii_whitespace));
    let mut rows: Vec<u64> = out.records.iter().map(|record| record.cursor.offset).collect();
    rows.extend(out.rejects.iter().map(|reject| reject.cursor.offset));
    rows.sort_unstable();
    assert_eq!(rows, expected);
    for reject in &out.rejects {
        assert_eq!(reject.original, lines[reject.cursor.offset as usize]);
    }
});
