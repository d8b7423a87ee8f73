//! Batch consumption: the one place that reads messages through raw pointers.
//!
//! The safe API of rdkafka hands out one message per call and pays an allocation and two clock reads for each;
//! `rd_kafka_consume_batch_queue` costs a third. This module wraps it so that nothing else needs `unsafe`:
//!
//! ```text
//! PartitionQueue ──take_into──► Vec<FetchedMessage> ──view──► MessageView<'_>
//!   owns a queue reference        each owns one message           borrows from it
//! ```
//!
//! - A [`PartitionQueue`] detaches one partition from the consumer's main queue. The detachment is a flag of the
//!   partition itself, so it is made before the partition is assigned and no message can take the other way.
//! - A [`FetchedMessage`] owns its message and destroys it on drop. It pins the fetch response it came in.
//! - Both keep the consumer alive, because librdkafka must be destroyed after everything it handed out.
//! - The wake-up runs under the queue's lock on a thread of librdkafka: it only raises a flag.
//!
//! On failure: an error of librdkafka is a message too ([`FetchedMessage::error`]), in its place in the queue.

use crate::context::ClientEvents;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka_sys as native;
use std::ffi::{CStr, CString, c_void};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use streamshield_core::ids::Offset;
use streamshield_core::ports::log::{MessageView, TimestampType, Wakeup};

pub(crate) type ReaderClient = BaseConsumer<ClientEvents>;

/// One message, or an error in its place. Destroyed on drop.
#[repr(transparent)]
pub(crate) struct FetchedMessage(NonNull<native::rd_kafka_message_t>);

// SAFETY: a message is owned by whoever holds the pointer; librdkafka's reference counts behind it are atomic.
unsafe impl Send for FetchedMessage {}

impl Drop for FetchedMessage {
    fn drop(&mut self) {
        // SAFETY: the pointer came from rd_kafka_consume_batch_queue and is destroyed once, here.
        unsafe { native::rd_kafka_message_destroy(self.0.as_ptr()) }
    }
}

impl FetchedMessage {
    fn raw(&self) -> &native::rd_kafka_message_t {
        // SAFETY: valid until drop, and nobody writes to it after it was fetched.
        unsafe { self.0.as_ref() }
    }

    /// What went wrong at this place, if this is no message.
    pub fn error(&self) -> Option<Code> {
        match self.raw().err {
            native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => None,
            error => Some(error.into()),
        }
    }

    /// The text of an error.
    pub fn error_text(&self) -> String {
        // SAFETY: returns a C string that lives as long as the message, or null.
        let text = unsafe { native::rd_kafka_message_errstr(self.0.as_ptr()) };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: checked for null; terminated by librdkafka.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }

    pub fn offset(&self) -> Offset {
        self.raw().offset
    }

    /// Bytes of key and payload.
    pub fn size_bytes(&self) -> usize {
        self.raw().len + self.raw().key_len
    }

    /// The message with the headers that [`FetchedMessage::headers_into`] has read.
    pub fn view<'a>(&'a self, headers: &'a [(&'a str, &'a [u8])]) -> MessageView<'a> {
        let raw = self.raw();
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: reads two fields of a valid message; `kind` outlives the call.
        let timestamp_ms = unsafe { native::rd_kafka_message_timestamp(self.0.as_ptr(), &mut kind) };
        let timestamp_type = match kind {
            native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_CREATE_TIME => TimestampType::CreateTime,
            native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_LOG_APPEND_TIME => TimestampType::LogAppendTime,
            _ => TimestampType::NotAvailable,
        };
        // SAFETY: key and payload are valid for the message's life, which `'a` does not outlive.
        let (key, payload) = unsafe { (bytes(raw.key, raw.key_len), bytes(raw.payload, raw.len)) };
        MessageView { offset: raw.offset, timestamp_ms, timestamp_type, key, payload, headers }
    }

    /// Appends the message's headers. A header without value reads as empty; a name that is no UTF-8 is left out.
    pub fn headers_into<'a>(&'a self, into: &mut Vec<(&'a str, &'a [u8])>) {
        let mut list = ptr::null_mut();
        // SAFETY: parses the headers once and keeps the list inside of the message, which owns it.
        let error = unsafe { native::rd_kafka_message_headers(self.0.as_ptr(), &mut list) };
        if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            return;
        }
        for index in 0.. {
            let (mut name, mut value, mut length) = (ptr::null(), ptr::null(), 0);
            // SAFETY: the list is valid for the message's life; an index past the end gives an error.
            let error = unsafe { native::rd_kafka_header_get_all(list, index, &mut name, &mut value, &mut length) };
            if error != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return;
            }
            // SAFETY: name is a terminated string and value has `length` bytes, both owned by the message.
            let (name, value) = unsafe { (CStr::from_ptr(name), bytes(value, length)) };
            if let Ok(name) = name.to_str() {
                into.push((name, value.unwrap_or_default()));
            }
        }
    }
}

/// A slice of a message; null is absence.
///
/// # Safety
/// `start` is null or valid for `length` bytes for all of `'a`.
unsafe fn bytes<'a>(start: *const c_void, length: usize) -> Option<&'a [u8]> {
    if start.is_null() {
        return None;
    }
    // SAFETY: by the caller's promise.
    Some(unsafe { slice::from_raw_parts(start.cast::<u8>(), length) })
}

/// Fetched messages together with the client they came from.
pub(crate) struct FetchedBatch {
    // Dropped in this order: messages before their client.
    pub messages: Vec<FetchedMessage>,
    _client: Arc<ReaderClient>,
}

impl FetchedBatch {
    pub fn new(messages: Vec<FetchedMessage>, client: Arc<ReaderClient>) -> Self {
        FetchedBatch { messages, _client: client }
    }
}

/// The fetch queue of one partition, apart from the consumer's main queue.
pub(crate) struct PartitionQueue {
    queue: NonNull<native::rd_kafka_queue_t>,
    // The callback's argument; freed after the callback was taken away.
    wakeup: *const Wakeup,
    _client: Arc<ReaderClient>,
}

// SAFETY: librdkafka's queues are thread-safe, and `wakeup` is a counted reference to a type that is Sync.
unsafe impl Send for PartitionQueue {}

impl PartitionQueue {
    /// Detaches a partition; None if its name is no C string.
    pub fn detach(client: &Arc<ReaderClient>, topic: &str, partition: i32, wakeup: Arc<Wakeup>) -> Option<Self> {
        let topic = CString::new(topic).ok()?;
        // SAFETY: the client is alive; the returned queue is a reference of our own.
        let queue = unsafe { native::rd_kafka_queue_get_partition(client.client().native_ptr(), topic.as_ptr(), partition) };
        let queue = NonNull::new(queue)?;
        let wakeup = Arc::into_raw(wakeup);
        // SAFETY: forwarding to null detaches; the callback's argument lives until drop has disabled it.
        unsafe {
            native::rd_kafka_queue_forward(queue.as_ptr(), ptr::null_mut());
            native::rd_kafka_queue_cb_event_enable(queue.as_ptr(), Some(raise), wakeup.cast_mut().cast());
        }
        Some(PartitionQueue { queue, wakeup, _client: Arc::clone(client) })
    }

    /// Appends at most `limit` messages that are there now; returns how many.
    pub fn take_into(&self, messages: &mut Vec<FetchedMessage>, limit: usize) -> usize {
        messages.reserve(limit);
        // SAFETY: FetchedMessage is a transparent non-null pointer and `limit` elements are reserved. librdkafka writes
        // the first `taken` of them with messages that we own from then on. Time-out 0: it does not wait.
        unsafe {
            let free = messages.as_mut_ptr().add(messages.len()).cast::<*mut native::rd_kafka_message_t>();
            let taken = native::rd_kafka_consume_batch_queue(self.queue.as_ptr(), 0, free, limit);
            let taken = usize::try_from(taken).unwrap_or(0);
            messages.set_len(messages.len() + taken);
            taken
        }
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        // SAFETY: disabling takes the queue's lock, so no callback runs afterwards and its argument can be released.
        unsafe {
            native::rd_kafka_queue_cb_event_enable(self.queue.as_ptr(), None, ptr::null_mut());
            native::rd_kafka_queue_destroy(self.queue.as_ptr());
            drop(Arc::from_raw(self.wakeup));
        }
    }
}

/// Called by librdkafka when a queue that was served has something again.
unsafe extern "C" fn raise(_client: *mut native::rd_kafka_t, wakeup: *mut c_void) {
    // SAFETY: the argument that `detach` gave, alive until the callback is disabled.
    unsafe { &*wakeup.cast::<Wakeup>() }.raise();
}
