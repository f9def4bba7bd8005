//! `GET /top/N`: the N biggest talkers, again and again, a line of JSON each time.
//!
//! To look at the table takes as long as it is full: the looks follow so far apart that they take a tenth of a core, but not
//! within a second. Nothing is done ahead of the reader: who is slow to read gets rates over a longer time.

use crate::flows::filter::Filter;
use crate::flows::top::Watch;
use crate::live::Live;
use crate::sweeper::worked;
use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

/// Looks begin at least this long after one another.
const PERIOD: Duration = Duration::from_secs(1);
/// And this many times the work that the last one was.
const SHARE: u32 = 10;
/// As many talkers can be asked for.
pub const MOST: u16 = 1000;

pub(super) async fn top(
    State(live): State<Arc<Live>>,
    Path(most): Path<u16>,
    Query(filter): Query<Filter>,
) -> Response {
    if !(1..=MOST).contains(&most) {
        return (StatusCode::UNPROCESSABLE_ENTITY, format!("1 to {MOST} talkers can be asked for")).into_response();
    }
    let Some(permit) = live.watch_top().await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many watch the biggest talkers already").into_response();
    };
    let watcher = Watcher { live, watch: Watch::new(filter, most.into()), next: Instant::now(), _permit: permit };
    Body::from_stream(futures::stream::try_unfold(watcher, Watcher::line)).into_response()
}

struct Watcher {
    live: Arc<Live>,
    watch: Watch,
    next: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Watcher {
    async fn line(mut self) -> io::Result<Option<(Bytes, Self)>> {
        loop {
            tokio::time::sleep_until(self.next).await;
            let (watcher, line) = tokio::task::spawn_blocking(move || self.look()).await?;
            if let Some(line) = line? {
                return Ok(Some((line, watcher)));
            }
            self = watcher;
        }
    }

    fn look(mut self) -> (Self, io::Result<Option<Bytes>>) {
        let (begun, before) = (Instant::now(), worked());
        let top = self.live.clock().and_then(|clock| self.watch.look(self.live.datapath(), clock));
        let line = top.map(|top| {
            top.map(|top| {
                let mut line = serde_json::to_vec(&top).expect("plain data is JSON");
                line.push(b'\n');
                line.into()
            })
        });
        self.next = begun + PERIOD.max(worked().saturating_sub(before) * SHARE);
        let line = line.map_err(|error| {
            tracing::error!(error = crate::error::one_line(&error), "cannot see who talks most");
            io::Error::other(error)
        });
        (self, line)
    }
}
