//! What every fuzz target shares: a decoder with instruments of each sort, and what must hold of all that it accepts.

use marea_model::codec::{Decoded, Decoder, arrow, csv, json};
use marea_model::cursor::DeadLetter;
use marea_model::{Cursor, Instrument, Instruments, Partition, Price, PriceSource, Symbol, Tick, Timeframe};
use std::sync::{Arc, LazyLock};

/// `IBM` of trades, `CL` with negative prices, `EURUSD` of mids; all others take the default.
pub static DECODER: LazyLock<Decoder> = LazyLock::new(|| {
    let base = Instrument { scale: 2, tick_size: Price(1), ..Instrument::default() };
    let of_mids = Instrument { scale: 5, price_source: PriceSource::Mid, ..base };
    let negative = Instrument { allow_negative: true, ..base };
    let mut instruments = Instruments::default();
    for (symbol, instrument) in [("IBM", base), ("CL", negative), ("EURUSD", of_mids)] {
        instruments.by_symbol.insert(Symbol::new(symbol).expect("a symbol"), instrument);
    }
    Decoder { instruments: Arc::new(instruments), base_timeframe: Timeframe::S1, max_ahead: None }
});

/// The place of a message.
pub fn cursor() -> Cursor {
    Cursor { partition: Partition::new("fuzz").expect("a partition"), offset: 7, row: 0 }
}

/// Every accepted tick reads back as itself, however it is written; every reject says what is wrong.
pub fn check(out: &Decoded) {
    let ticks: Vec<Tick> = out.records.iter().map(|record| record.tick).collect();
    let mut again = Decoded::default();
    for tick in &ticks {
        json::decode(&DECODER, &json::encode(tick, &DECODER.instruments), cursor(), 0, &mut again);
    }
    assert_same(&ticks, &mut again);
    if !ticks.is_empty() {
        let message = arrow::encode_stream(&ticks, &DECODER.instruments);
        arrow::decode_stream(&DECODER, &message, cursor(), 0, &mut again);
        assert_same(&ticks, &mut again);
        let text = csv::encode(&ticks, &DECODER.instruments);
        let reader = csv::Reader::open(text.as_bytes(), cursor().partition, "fuzz.csv", None);
        let more = reader.expect("our own header").read(&DECODER, usize::MAX, 0, &mut again).expect("memory");
        assert!(!more);
        assert_same(&ticks, &mut again);
    }
    for reject in &out.rejects {
        check_reject(reject);
    }
}

fn assert_same(ticks: &[Tick], again: &mut Decoded) {
    assert_eq!((&again.rejects, again.unknown_fields), (&vec![], 0));
    assert!(again.records.iter().map(|record| record.tick).eq(ticks.iter().cloned()), "{:?} is not {ticks:?}", again.records);
    again.clear();
}

fn check_reject(reject: &DeadLetter) {
    assert!(reject.value.len() <= 64 && !reject.detail.is_empty(), "{reject:?}");
}
