//! Producing many messages of one topic: the one place that hands raw pointers to the producer.
//!
//! The safe way makes a C string per message and looks the topic up by it. Here a topic is looked up once
//! ([`TopicHandle`]) and messages go in by the array: `rd_kafka_produce_batch` where the client sets the timestamps,
//! `rd_kafka_produceva` where the rows do. librdkafka copies the bytes before the call returns, so the buffers stay ours.
//!
//! On failure: the messages before the failed one are queued, it and all later ones are not; the caller continues
//! there when the queue was full.

use crate::context::WriterEvents;
use rdkafka::error::RDKafkaErrorCode as Code;
use rdkafka::producer::{BaseProducer, Producer};
use rdkafka_sys as native;
use std::ffi::{CString, c_void};
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use streamshield_core::ports::log::MessageEntry;

pub(crate) type WriterClient = BaseProducer<WriterEvents>;

/// Messages handed over in one call.
const BATCH_MESSAGES: usize = 512;
const PARTITION_BY_KEY: i32 = -1;

/// A topic of one producer.
pub(crate) struct TopicHandle {
    topic: NonNull<native::rd_kafka_topic_t>,
    client: Arc<WriterClient>,
}

// SAFETY: librdkafka's topic handles are counted references and thread-safe.
unsafe impl Send for TopicHandle {}

impl Drop for TopicHandle {
    fn drop(&mut self) {
        // SAFETY: our own reference, released once; the client is still alive because we hold it.
        unsafe { native::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

/// Why a message was not queued, and how many were before it.
pub(crate) struct Stopped {
    pub queued: usize,
    pub code: Code,
}

impl TopicHandle {
    /// None when the name is no C string or librdkafka refuses it.
    pub fn new(client: &Arc<WriterClient>, name: &str) -> Option<Self> {
        let name = CString::new(name).ok()?;
        // SAFETY: the client is alive, the name is copied, and without a configuration the client's default is used.
        let topic = unsafe { native::rd_kafka_topic_new(client.client().native_ptr(), name.as_ptr(), ptr::null_mut()) };
        Some(TopicHandle { topic: NonNull::new(topic)?, client: Arc::clone(client) })
    }

    /// Queues all messages, or says where it stopped.
    pub fn send(&self, buffer: &[u8], entries: &[MessageEntry]) -> Result<(), Stopped> {
        let mut queued = 0;
        // One call per partition: given several, librdkafka 2.12 adds a partition that it does not know yet as number -1
        // to the transaction, which then can't commit.
        for chunk in entries.chunk_by(|a, b| a.partition == b.partition).flat_map(|same| same.chunks(BATCH_MESSAGES)) {
            let result = if chunk.iter().all(|entry| entry.timestamp_ms.is_none()) {
                self.send_batch(buffer, chunk)
            } else {
                chunk
                    .iter()
                    .enumerate()
                    .try_for_each(|(index, entry)| self.send_one(buffer, entry).map_err(|code| Stopped { queued: index, code }))
            };
            result.map_err(|stopped| Stopped { queued: queued + stopped.queued, ..stopped })?;
            queued += chunk.len();
        }
        Ok(())
    }

    /// Queues entries of one partition.
    fn send_batch(&self, buffer: &[u8], entries: &[MessageEntry]) -> Result<(), Stopped> {
        let mut messages: Vec<_> = entries
            .iter()
            .map(|entry| {
                let ((key, key_len), (payload, len)) = (part(buffer, &entry.key), part(buffer, &entry.value));
                native::rd_kafka_message_t {
                    err: native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR,
                    rkt: ptr::null_mut(),
                    partition: 0,
                    payload,
                    len,
                    key,
                    key_len,
                    offset: 0,
                    _private: ptr::null_mut(),
                }
            })
            .collect();
        let partition = entries.first().and_then(|entry| entry.partition).unwrap_or(PARTITION_BY_KEY);
        let (flags, count) = (native::RD_KAFKA_MSG_F_COPY, messages.len() as i32);
        // SAFETY: `messages` has `count` elements, whose pointers lie in `buffer`; F_COPY copies them before it returns.
        let queued = unsafe { native::rd_kafka_produce_batch(self.topic.as_ptr(), partition, flags, messages.as_mut_ptr(), count) };
        if queued as usize == messages.len() {
            return Ok(());
        }
        let failed =
            messages.iter().position(|message| message.err != native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR).unwrap_or(0);
        let mut code: Code = messages[failed].err.into();
        // Continuing is only right if nothing after the failed one went in.
        if code == Code::QueueFull && queued as usize != failed {
            code = Code::Inconsistent;
        }
        Err(Stopped { queued: failed, code })
    }

    fn send_one(&self, buffer: &[u8], entry: &MessageEntry) -> Result<(), Code> {
        use native::rd_kafka_vtype_t::*;
        use native::{
            rd_kafka_vu_s__bindgen_ty_1 as Value, rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 as Memory, rd_kafka_vu_t as Argument,
        };
        let memory = |range| {
            let (ptr, size) = part(buffer, range);
            Value { mem: Memory { ptr, size } }
        };
        let arguments = [
            Argument { vtype: RD_KAFKA_VTYPE_RKT, u: Value { rkt: self.topic.as_ptr() } },
            Argument { vtype: RD_KAFKA_VTYPE_PARTITION, u: Value { i32_: entry.partition.unwrap_or(PARTITION_BY_KEY) } },
            Argument { vtype: RD_KAFKA_VTYPE_MSGFLAGS, u: Value { i: native::RD_KAFKA_MSG_F_COPY } },
            Argument { vtype: RD_KAFKA_VTYPE_VALUE, u: memory(&entry.value) },
            Argument { vtype: RD_KAFKA_VTYPE_KEY, u: memory(&entry.key) },
            // 0 lets the client set it.
            Argument { vtype: RD_KAFKA_VTYPE_TIMESTAMP, u: Value { i64_: entry.timestamp_ms.unwrap_or(0) } },
        ];
        // SAFETY: each union field matches its type tag; the pointers lie in `buffer`, which F_COPY copies at once.
        // A returned error is ours to destroy, after its code was read.
        unsafe {
            let error = native::rd_kafka_produceva(self.client.client().native_ptr(), arguments.as_ptr(), arguments.len());
            if error.is_null() {
                return Ok(());
            }
            let code = native::rd_kafka_error_code(error).into();
            native::rd_kafka_error_destroy(error);
            Err(code)
        }
    }
}

/// Waits until no message is on its way, at most this long, and sends what lingers. Failed messages count until their
/// report is served, which this does not do.
///
/// rdkafka's own flush asks without waiting and then sleeps in its event queue; this wakes up with the last answer.
pub(crate) fn flush(client: &WriterClient, timeout_ms: i32) -> bool {
    // SAFETY: the client is alive; the call waits on a condition of librdkafka and touches nothing of ours.
    let result = unsafe { native::rd_kafka_flush(client.client().native_ptr(), timeout_ms) };
    result == native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR
}

/// Pointer and length of a range; null for none. An empty range is not null.
fn part(buffer: &[u8], range: &Option<Range<usize>>) -> (*mut c_void, usize) {
    match range {
        None => (ptr::null_mut(), 0),
        Some(range) => {
            let bytes = &buffer[range.clone()];
            (bytes.as_ptr().cast_mut().cast(), bytes.len())
        }
    }
}
