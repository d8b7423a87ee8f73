//! Builds the port's [`StateError`] out of what the layers below report.

use arrow_schema::ArrowError;
use std::fmt::Display;
use streamshield_core::ports::state::{StateError, StateErrorKind};

pub(crate) fn internal(message: impl Display) -> StateError {
    StateError { kind: StateErrorKind::Internal, message: message.to_string() }
}

pub(crate) fn damaged(message: impl Display) -> StateError {
    StateError { kind: StateErrorKind::Damaged, message: message.to_string() }
}

pub(crate) fn io(message: impl Display) -> StateError {
    StateError { kind: StateErrorKind::Io, message: message.to_string() }
}

pub(crate) fn arrow(error: ArrowError) -> StateError {
    internal(format!("state column: {error}"))
}
