//! `flowctl top`: a live screen, or pictures one after the other.
//!
//! The screen's thread takes keys and draws; [`feed`] asks the daemon, and reads and counts its lines on another
//! thread. They tell each other by two channels: the latest wish, and reports. Nothing is kept of flows that are not
//! on the screen but the number, the bytes and the rate.

mod asked;
mod batch;
mod feed;
mod group;
mod input;
mod message;
mod model;
mod screen;
mod table;
mod tally;
mod traffic;
mod view;

use std::io::{self, IsTerminal};
use std::thread;
use std::time::Instant;

use ratatui::crossterm::event::{self, Event};
use ratatui::style::Color;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use crate::daemon::Daemon;
use crate::error::Error;
pub(crate) use asked::Top;
use feed::Feed;
pub(crate) use input::KEYS;
use model::Model;
use view::{Order, View};

/// Shows the screen until someone leaves it, or prints pictures.
pub(crate) async fn top(daemon: Daemon, top: &Top) -> Result<(), Error> {
    let feed = Feed::new(daemon, top.interval);
    if !top.batch {
        return screen(feed, top).await;
    }
    let filter = view::parse_filter(&top.query.words()).map_err(Error::Usage)?;
    let view = View { filter, grouping: top.group, order: top.sort.unwrap_or(Order::Rate) };
    batch::batch(feed, &view, top).await
}

async fn screen(feed: Feed, top: &Top) -> Result<(), Error> {
    // An error at the first question is shown on the terminal as it is, before the screen changes.
    feed.check().await?;
    let mut model = Model::new(top.query.words(), top.group, top.sort);
    if top.resolve {
        model.toggle_names();
    }
    let (wish, wishes) = watch::channel(model.wish());
    let (sender, mut reports) = mpsc::channel(4);
    let feed = tokio::spawn(feed::feed(feed, wishes, sender));
    let mut ends =
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
    let mut terminal = Terminal::enter()?;
    let mut keys = keys();
    let [terminate, interrupt, hangup] = &mut ends;
    loop {
        terminal.draw(&mut model)?;
        let next_end = model.next_end();
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => break,
            key = keys.recv() => {
                // All that were pressed while the screen was drawn.
                let mut next = key;
                let mut going_on = next.is_some();
                while let Some(event) = next {
                    going_on &= handle(&mut model, &event);
                    next = keys.try_recv().ok();
                }
                if !going_on {
                    break;
                }
            }
            () = tokio::time::sleep_until(next_end.unwrap_or_else(Instant::now).into()), if next_end.is_some() => {
                model.forget_ended(Instant::now());
            }
            report = reports.recv() => match report {
                Some(report) => model.report(report),
                None => break,
            },
        }
        let wanted = model.wish();
        wish.send_if_modified(|wish| {
            let changed = *wish != wanted;
            *wish = wanted;
            changed
        });
    }
    feed.abort();
    Ok(())
}

/// Fails for a wrong filter, and where nobody could look or press a key.
pub(crate) fn check(top: &Top) -> Result<(), Error> {
    view::parse_filter(&top.query.words()).map_err(Error::Usage)?;
    if !top.batch && (top.tabled.json.is_on() || !top.tabled.legend()) {
        return Err(Error::Usage("--json and --no-legend of top go with --batch".to_owned()));
    }
    if top.batch || io::stdin().is_terminal() && io::stdout().is_terminal() {
        return Ok(());
    }
    let text =
        "top needs a terminal to draw on and to read keys from; with --batch it prints, as flowctl list does";
    Err(Error::Usage(text.to_owned()))
}

/// Handles a key or a new size; false when the screen is to end.
fn handle(model: &mut Model, event: &Event) -> bool {
    match event {
        Event::Key(key) => input::press(model, *key),
        // The next drawing is of the new size.
        _ => true,
    }
}

/// The whole screen of the terminal, given back when this is dropped, and when the program panics.
struct Terminal {
    terminal: ratatui::DefaultTerminal,
    colour: bool,
}

impl Terminal {
    fn enter() -> Result<Self, Error> {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Ok(Self { terminal: ratatui::try_init()?, colour })
    }

    fn draw(&mut self, model: &mut Model) -> io::Result<()> {
        self.terminal.draw(|frame| {
            screen::draw(frame, model);
            if !self.colour {
                // Left to crossterm, a colour that NO_COLOR forbids would end bold and reversed text.
                for cell in &mut frame.buffer_mut().content {
                    (cell.fg, cell.bg) = (Color::Reset, Color::Reset);
                }
            }
        })?;
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Keys and new sizes. Their thread waits in a read that nothing ends but the end of the program.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(64);
    thread::spawn(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                return;
            }
        }
    });
    keys
}
