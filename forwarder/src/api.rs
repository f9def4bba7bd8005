//! The control socket: HTTP with JSON on a unix socket that only root can reach. The other commands use it; so may scripts
//! (`curl --unix-socket /run/forwarder/control.sock http://forwarder/status`).
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /status` | `status::Status` |
//! | `GET /flows?FILTER` | one `flows::list::Connection` a line |
//! | `GET /flows/count?FILTER` | `{"count": n}` |
//! | `DELETE /flows?FILTER` | `{"removed": n}` |
//! | `GET /flow-logs?filter=F&format=F&json=true` | records as they come, one a line, until either side ends; see `tail` |
//! | `GET /top/N?FILTER` | every second, or more seldom, a `flows::top::Top` with at most N of each kind, until either side ends |
//! | `GET /rules` | a list of `firewall::report::RuleReport` |
//! | `GET /sets` | a list of `SetReport` |
//! | `GET /sets/NAME` | its ranges, one a line |
//! | `POST /sets/NAME/add`, `remove`, `replace`, `reset` | with ranges, one a line; answered as `/reload` |
//! | `POST /explain` | with a `firewall::explain::Question`: a `firewall::explain::Explanation` |
//! | `POST /reload` | `{"done": "…"}`, or 422 and why not |

mod tail;
mod top;

pub use tail::{LEFT_OUT, Tail};
pub use top::MOST as MOST_TALKERS;

use crate::controller::{Done, Order, SetChange};
use crate::firewall::explain::{Ground, Question};
use crate::firewall::live_sets::Difference;
use crate::firewall::ranges::Addresses;
use crate::firewall::report::RuleReport;
use crate::flows::filter::Filter;
use crate::flows::list;
use crate::live::Live;
use crate::{firewall, host};
use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path as UrlPath, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio_stream::wrappers::ReceiverStream;

/// Lines that wait for a slow reader.
const LINES_AHEAD: usize = 1024;

/// Answer to a count.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Counted {
    /// Connections.
    pub count: u64,
}

/// Answer to a flush.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Removed {
    /// Connections.
    pub removed: u64,
}

/// Answer to an order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// What was done.
    pub done: String,
}

/// A set of addresses.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SetReport {
    /// Its name.
    pub name: String,
    /// Ranges that do not touch.
    pub ranges: usize,
    /// Of them, those that were added live.
    pub added: usize,
    /// Configured ranges that were removed live.
    pub removed: usize,
}

/// Opens the socket, for root alone.
///
/// # Errors
/// When it cannot be made.
pub fn listen(path: &Path) -> std::io::Result<UnixListener> {
    // Left by a controller that was killed; the lock says that none runs.
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers requests until it is dropped.
///
/// # Errors
/// When the socket breaks.
pub async fn serve(listener: UnixListener, live: Arc<Live>) -> std::io::Result<()> {
    let routes = Router::new()
        .route("/status", get(status))
        .route("/flows", get(flows_list).delete(flows_flush))
        .route("/flows/count", get(flows_count))
        .route("/flow-logs", get(tail::tail))
        .route("/top/{most}", get(top::top))
        .route("/rules", get(rules))
        .route("/reload", post(reload))
        .route("/explain", post(explain))
        .route("/sets", get(sets))
        .route("/sets/{name}", get(set))
        .route("/sets/{name}/{change}", post(change_set).layer(DefaultBodyLimit::disable()))
        .with_state(live);
    axum::serve(listener, routes).await
}

/// An error of the datapath or of a thread, as an answer.
struct Failed(String);

impl<E: std::error::Error> From<E> for Failed {
    fn from(error: E) -> Self {
        Self(crate::error::one_line(&error))
    }
}

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.0).into_response()
    }
}

async fn status(State(live): State<Arc<Live>>) -> Result<Response, Failed> {
    let status = tokio::task::spawn_blocking(move || live.status()).await?;
    Ok(Json(status).into_response())
}

async fn rules(State(live): State<Arc<Live>>) -> Result<Json<Vec<RuleReport>>, Failed> {
    Ok(Json(tokio::task::spawn_blocking(move || live.rule_reports()).await??))
}

async fn reload(State(live): State<Arc<Live>>) -> Response {
    reported(live.order(Order::Reload).await)
}

async fn sets(State(live): State<Arc<Live>>) -> Json<Vec<SetReport>> {
    let rules = live.rules();
    let report = |(name, addresses): &(String, Addresses)| {
        let Difference { added, removed } = rules.set_changes.get(name).copied().unwrap_or_default();
        SetReport { name: name.clone(), ranges: addresses.ranges(), added, removed }
    };
    Json(rules.sets.iter().map(report).collect())
}

async fn set(State(live): State<Arc<Live>>, UrlPath(name): UrlPath<String>) -> Response {
    let found = live.rules().sets.iter().find(|(other, _)| *other == name).map(|(_, addresses)| addresses.clone());
    match found {
        Some(addresses) => addresses.to_string().into_response(),
        None => (StatusCode::NOT_FOUND, format!("there is no set `{name}`")).into_response(),
    }
}

async fn change_set(
    State(live): State<Arc<Live>>,
    UrlPath((name, change)): UrlPath<(String, SetChange)>,
    ranges: String,
) -> Response {
    match crate::config::parse_set(&ranges) {
        Ok(addresses) => reported(live.order(|reply| Order::Set(name, change, addresses, reply)).await),
        Err(problem) => (StatusCode::UNPROCESSABLE_ENTITY, problem.to_string()).into_response(),
    }
}

async fn explain(State(live): State<Arc<Live>>, Json(question): Json<Question>) -> Result<Response, Failed> {
    let enters = match &question.enters {
        Some(name) => Some((name.clone(), nix::net::if_::if_nametoindex(name.as_str())?)),
        None => host::interface_towards(question.source.ip()).await,
    };
    let Some(enters) = enters else {
        let why = "the source is not reached by any interface; say where it enters with `in IFACE`";
        return Ok((StatusCode::UNPROCESSABLE_ENTITY, why).into_response());
    };
    let explained = tokio::task::spawn_blocking(move || {
        let rules = live.rules().clone();
        firewall::explain::explain(&question, &Ground { datapath: live.datapath(), rules: &rules, enters })
    });
    Ok(Json(explained.await??).into_response())
}

/// What the loop said, as an answer.
fn reported(done: Done) -> Response {
    match done {
        Ok(done) => Json(Report { done }).into_response(),
        Err(why) => (StatusCode::UNPROCESSABLE_ENTITY, why).into_response(),
    }
}

async fn flows_count(State(live): State<Arc<Live>>, Query(filter): Query<Filter>) -> Result<Json<Counted>, Failed> {
    let count = tokio::task::spawn_blocking(move || list::count(live.datapath(), &filter)).await??;
    Ok(Json(Counted { count }))
}

async fn flows_flush(State(live): State<Arc<Live>>, Query(filter): Query<Filter>) -> Result<Json<Removed>, Failed> {
    let removed = tokio::task::spawn_blocking(move || list::flush(live.datapath(), &filter)).await??;
    tracing::info!("{removed} flows flushed on request");
    Ok(Json(Removed { removed }))
}

/// A thread of its own reads the table as fast as the reader takes the lines.
async fn flows_list(State(live): State<Arc<Live>>, Query(filter): Query<Filter>) -> Result<Response, Failed> {
    let clock = live.clock()?;
    let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, Infallible>>(LINES_AHEAD);
    tokio::task::spawn_blocking(move || {
        let shown = list::visit(live.datapath(), &filter, clock, |connection| {
            let mut line = serde_json::to_vec(&connection).expect("plain data is JSON");
            line.push(b'\n');
            // The reader may have gone; the rest of the table is then read for nobody, which is rare and harmless.
            let _ = sender.blocking_send(Ok(line.into()));
        });
        if let Err(error) = shown {
            tracing::error!(error = crate::error::one_line(&error), "the list of flows is cut short");
        }
    });
    Ok(Body::from_stream(ReceiverStream::new(receiver)).into_response())
}
