//! `GET /flow-logs`: the records of flow logs as they come, a line each, in any format and for any filter.
//!
//! A line that begins with [`LEFT_OUT`], which no record does, says how many records were left out before the next one,
//! because the reader is too slow; with JSON it is `{"left-out": n}`.

use crate::flowlog::watch::Seen;
use crate::live::Live;
use crate::record::{Filter, Format, Line};
use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

/// How a line begins that is no record.
pub const LEFT_OUT: &str = " left-out ";

/// Which records, and how.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tail {
    /// Which; empty: all.
    pub filter: String,
    /// With which fields, as in the config; empty: the default.
    pub format: String,
    /// As JSON objects.
    pub json: bool,
}

pub(super) async fn tail(State(live): State<Arc<Live>>, Query(tail): Query<Tail>) -> Response {
    let refused = |why: String| (StatusCode::UNPROCESSABLE_ENTITY, why).into_response();
    let filter = if tail.filter.is_empty() { Ok(Filter::All) } else { tail.filter.parse() };
    let format = if tail.format.is_empty() { Ok(Format::default()) } else { Format::parse(&tail.format) };
    let (filter, format) = match (filter, format) {
        (Ok(filter), Ok(format)) => (filter, format),
        (Err(error), _) => return refused(format!("the filter {error}")),
        (_, Err(error)) => return refused(format!("the format {error}")),
    };
    let Some(seen) = live.flow_logs().watchers().watch(filter) else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many follow flow logs already").into_response();
    };
    // Written when the reader takes it, so that what waits is bounded by the watcher's queue.
    let lines = ReceiverStream::new(seen).map(move |seen| Ok::<_, Infallible>(lines(&seen, &format, tail.json)));
    Body::from_stream(lines).into_response()
}

fn lines(seen: &Seen, format: &Format, json: bool) -> Bytes {
    let (names, mut out) = (&*seen.interfaces, Vec::new());
    if seen.left_out > 0 {
        let number = seen.left_out;
        let written =
            if json { writeln!(out, "{{\"left-out\":{number}}}") } else { writeln!(out, "{LEFT_OUT}{number}") };
        written.expect("memory takes it");
    }
    for (window, number, direction) in &seen.records {
        let Some(interface) = names.at(*number) else { continue };
        let line = Line { window, direction: *direction, interface, names };
        if json { format.write_json(&mut out, &line) } else { format.write_line(&mut out, &line) }
    }
    out.into()
}
