//! A header of a message. rdkafka's own way panics on a header whose name is not UTF-8, which anybody who may write to a
//! topic can send: this asks librdkafka itself. The one place with `unsafe`.

use rdkafka::bindings::{rd_kafka_header_get_all, rd_kafka_headers_t, rd_kafka_message_headers};
use rdkafka::message::BorrowedMessage;
use rdkafka::types::RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR as DONE;
use std::ffi::CStr;
use std::ptr;

/// The value of the last header of this name, in any case.
#[allow(unsafe_code, reason = "the safe way panics on foreign bytes")]
pub(super) fn last<'a>(message: &'a BorrowedMessage<'_>, name: &str) -> Option<&'a [u8]> {
    let mut headers: *mut rd_kafka_headers_t = ptr::null_mut();
    // SAFETY: the message is alive for 'a; its headers belong to it and live as long as it does.
    if unsafe { rd_kafka_message_headers(message.ptr(), &mut headers) } != DONE || headers.is_null() {
        return None;
    }
    let mut found = None;
    for index in 0.. {
        let (mut key, mut value, mut length) = (ptr::null(), ptr::null(), 0);
        // SAFETY: `headers` is alive, see above; beyond the last index it says so and writes nothing.
        if unsafe { rd_kafka_header_get_all(headers, index, &mut key, &mut value, &mut length) } != DONE {
            break;
        }
        // SAFETY: librdkafka ends every name with a NUL, and keeps it as long as the headers.
        let key = unsafe { CStr::from_ptr(key) };
        if key.to_bytes().eq_ignore_ascii_case(name.as_bytes()) {
            found = (!value.is_null()).then(|| {
                // SAFETY: `length` bytes from `value` on are the header's, as long as the headers live.
                unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length) }
            });
        }
    }
    found
}
