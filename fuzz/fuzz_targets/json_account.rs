//! A message is one account snapshot, which reads back as itself, or one reject, which has its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marea_fuzz::{DECODER, check, cursor};
use marea_model::codec::{Decoded, json};

fuzz_target!(|message: &[u8]| {
    let mut out = Decoded::default();
    json::decode_account(&DECODER, message, cursor(), 0, &mut out);
    assert_eq!((out.len(), out.records.len()), (1, 0));
    assert!(out.rejects.iter().all(|reject| reject.original == message));
    check(&out);
    for (_, snapshot) in &out.accounts {
        let mut again = Decoded::default();
        json::decode_account(&DECODER, &json::encode_account(snapshot), cursor(), 0, &mut again);
        assert_eq!(again.accounts.iter().map(|(_, s)| s).collect::<Vec<_>>(), [snapshot]);
    }
});
