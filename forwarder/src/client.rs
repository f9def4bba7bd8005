//! The other commands' side of the control socket: HTTP over a unix socket, JSON in the bodies.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use std::io::Write;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("no forwarder answers at {}: is `forwarder run` running, with this --instance, and are you root?", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke.
    #[error("the forwarder's answer did not arrive whole")]
    Http(#[from] hyper::Error),
    /// The request was refused.
    #[error("the forwarder refused: {0}")]
    Refused(String),
    /// The answer is not what this version expects.
    #[error("the forwarder that runs is of another version: its answer cannot be read")]
    Answer(#[from] serde_json::Error),
    /// Standard output cannot be written to.
    #[error("cannot write the answer")]
    Output(#[from] std::io::Error),
}

/// Asks for a path and reads the whole answer.
///
/// # Errors
/// See [`ClientError`].
pub async fn ask<T: DeserializeOwned>(socket: &Path, method: Method, path: &str) -> Result<T, ClientError> {
    tell(socket, method, path, (Bytes::new(), "text/plain")).await
}

/// Asks for a path with a body of a content type, and reads the whole answer.
///
/// # Errors
/// See [`ClientError`].
pub async fn tell<T: DeserializeOwned>(
    socket: &Path,
    method: Method,
    path: &str,
    body: (Bytes, &str),
) -> Result<T, ClientError> {
    let body = send(socket, method, path, body).await?.into_body().collect().await?.to_bytes();
    Ok(serde_json::from_slice(&body)?)
}

/// Asks for a path and calls `show` with every line of the answer as it comes.
///
/// # Errors
/// See [`ClientError`].
pub async fn ask_lines(
    socket: &Path,
    path: &str,
    mut show: impl FnMut(&[u8]) -> Result<(), ClientError>,
) -> Result<(), ClientError> {
    let mut body = send(socket, Method::GET, path, (Bytes::new(), "text/plain")).await?.into_body();
    let mut pending = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        pending.write_all(&data)?;
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            show(&pending[..end])?;
            pending.drain(..=end);
        }
    }
    Ok(())
}

async fn send(
    socket: &Path,
    method: Method,
    path: &str,
    (body, content): (Bytes, &str),
) -> Result<Response<Incoming>, ClientError> {
    let failed = |source| ClientError::Connect { path: socket.to_owned(), source };
    let stream = UnixStream::connect(socket).await.map_err(failed)?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Ends with the answer; an error of the connection is the request's as well.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "forwarder")
        .header(hyper::header::CONTENT_TYPE, content)
        .body(Full::new(body))
        .expect("a method, a path and two headers make a request");
    let response = sender.send_request(request).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    let said = response.into_body().collect().await?.to_bytes();
    Err(ClientError::Refused(String::from_utf8_lossy(&said).trim().to_owned()))
}
