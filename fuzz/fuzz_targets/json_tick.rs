//! A message is one tick or one reject, which has its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use marea_fuzz::{DECODER, check, cursor};
use marea_model::codec::{Decoded, json};

fuzz_target!(|message: &[u8]| {
    let mut out = Decoded::default();
    json::decode(&DECODER, message, cursor(), 0, &mut out);
    assert_eq!((out.len(), out.accounts.len()), (1, 0));
    assert!(out.rejects.iter().all(|reject| reject.original == message));
    check(&out);
});
