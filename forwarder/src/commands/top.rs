//! `forwarder top`: once on standard output, or again and again on a screen.

mod listing;
mod screen;

use super::{path, socket};
use crate::cli;
use crate::client::{ClientError, ask_lines};
use crate::flows::filter::Filter;
use crate::flows::top::Top;
use crate::run;
use anyhow::{Context, Result, bail};
use crossterm::event::{Event, EventStream};
use futures::StreamExt;
use listing::{Order, listing, sort, summary};
use ratatui::DefaultTerminal;
use screen::{Act, Screen};
use std::future::Future;
use std::io::{IsTerminal, Write, stdout};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use tokio::sync::watch::{Receiver, Sender, channel};

/// Rows that the screen is given, more than any has lines.
const ROWS: u16 = 200;

/// `forwarder top`
///
/// # Errors
/// When no forwarder answers, or the terminal cannot be used.
pub async fn top(instance: &str, arguments: &cli::Top) -> Result<()> {
    let order = Order::new(arguments.hosts, arguments.sort);
    let socket = socket(instance);
    if arguments.once || arguments.output.json || !stdout().is_terminal() {
        return once(&socket, arguments, order).await;
    }
    let mut screen = Screen::new(order, &arguments.filter);
    let signal = run::terminated()?;
    let seen = {
        // From here on, whatever happens, a panic included, the terminal becomes again what it was.
        let mut terminal = Terminal::take()?;
        tokio::select! {
            seen = watch(&mut terminal.0, &mut screen, &socket, &arguments.filter) => seen,
            () = signal => Ok(Ended::Asked),
        }
    };
    if let Ended::Forwarder = seen? {
        eprintln!("forwarder: the forwarder has ended");
    }
    Ok(())
}

/// Two looks, a second apart.
async fn once(socket: &Path, arguments: &cli::Top, order: Order) -> Result<()> {
    let (sender, mut tops) = channel(None);
    let top = tokio::select! {
        ended = follow(socket.to_owned(), arguments.filter.clone(), arguments.count, sender) => {
            ended?;
            None
        }
        // The other one has the sender until it ends.
        _ = tops.changed() => tops.borrow_and_update().clone(),
    };
    let Some(mut top) = top else { bail!("the forwarder has ended before there was anything to show") };
    sort(&mut top, order, arguments.count.into());
    let mut out = stdout().lock();
    let written = if arguments.output.json {
        serde_json::to_writer_pretty(&mut out, &top).context("cannot write who talks most")?;
        writeln!(out)
    } else {
        write!(out, "{}\n{}", summary(&top), listing(&top, order, true))
    };
    written.context("cannot write who talks most")
}

/// Has the forwarder say who talks most, until it ends.
async fn follow(socket: PathBuf, filter: Filter, count: u16, tops: Sender<Option<Top>>) -> Result<()> {
    let path = path(&format!("/top/{count}"), &filter)?;
    let followed = ask_lines(&socket, &path, |line| {
        tops.send_replace(Some(serde_json::from_slice(line)?));
        Ok(())
    });
    match followed.await {
        Ok(()) | Err(ClientError::Http(_)) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How it came to an end.
enum Ended {
    /// By a key or a signal.
    Asked,
    /// With the forwarder.
    Forwarder,
}

/// The terminal, ours while this value lives.
struct Terminal(DefaultTerminal);

impl Terminal {
    fn take() -> Result<Self> {
        Ok(Self(ratatui::try_init().context("cannot use the terminal: --once needs none")?))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

type Feed = (Pin<Box<dyn Future<Output = Result<()>>>>, Receiver<Option<Top>>);

fn feed(socket: &Path, filter: &Filter) -> Feed {
    let (sender, tops) = channel(None);
    (Box::pin(follow(socket.to_owned(), filter.clone(), ROWS, sender)), tops)
}

async fn watch(terminal: &mut DefaultTerminal, screen: &mut Screen, socket: &Path, filter: &Filter) -> Result<Ended> {
    let mut events = EventStream::new();
    let (mut forwarder, mut tops) = feed(socket, filter);
    loop {
        terminal.draw(|frame| screen.draw(frame)).context("cannot draw on the terminal")?;
        tokio::select! {
            ended = &mut forwarder => return ended.map(|()| Ended::Forwarder),
            Ok(()) = tops.changed() => screen.show(tops.borrow_and_update().clone()),
            event = events.next() => match event {
                // Anything else, a new size for instance, is drawn with the next turn.
                Some(Ok(Event::Key(key))) => match screen.press(key) {
                    Act::Go => {}
                    Act::Quit => return Ok(Ended::Asked),
                    Act::Filter(filter) => (forwarder, tops) = feed(socket, &filter),
                },
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error).context("cannot read from the terminal"),
                // It has been closed.
                None => return Ok(Ended::Asked),
            },
        }
    }
}
