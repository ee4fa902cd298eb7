//! What keys do.

use flowbus_interfaces::fit;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::model::{Model, Pane};

/// The keys, for `--help` and for the screen.
pub(crate) const KEYS: &str = "\
Keys:
  Up, Down, PgUp, PgDn, Home, End   choose a row (also k and j)
  Enter      all that is known of the chosen connection, or the flows of the group
  g, G       group by source, process, remote address, interface,
             container; G goes back
  n          names of addresses, asked of systemd-resolved
  s          sort by rate, bytes, latest begin, age
  /          filter as you type: KEY=VALUE words, dport=80,443 source=CHROME;
             Enter keeps it, Esc takes it back
  p, Space   hold the picture; again to go on
  Esc        back to the table; from there: no filter
  ?, h       these keys
  q, Ctrl-C  quit

UP and DOWN are the bytes a second that the process, or the end
that opened the connection, sends and receives. A connection that
has ended stays for 3 s, greyed.";

/// Whether the screen goes on.
pub(super) fn press(model: &mut Model, key: KeyEvent) -> bool {
    if key.kind == KeyEventKind::Release {
        return true;
    }
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    if control && key.code == KeyCode::Char('c') {
        return false;
    }
    if let Some(text) = model.edit.clone() {
        edit(model, text, key.code, control);
        return true;
    }
    if let Some(by) = distance(key.code, model.page) {
        match &mut model.pane {
            Pane::Detail(detail) => detail.scroll = detail.scroll.saturating_add_signed(by),
            _ => model.select(by),
        }
        return true;
    }
    match key.code {
        KeyCode::Char('q') => return false,
        KeyCode::Char('p' | ' ') => model.paused = !model.paused,
        KeyCode::Char('?' | 'h') => {
            model.pane = if matches!(model.pane, Pane::Help) { Pane::Table } else { Pane::Help }
        }
        KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace if !matches!(model.pane, Pane::Table) => {
            model.pane = Pane::Table;
        }
        KeyCode::Esc => {
            // No words are no mistake.
            let _ = model.set_filter("");
        }
        KeyCode::Enter => model.open(),
        KeyCode::Char(letter) if matches!(model.pane, Pane::Table) => match letter {
            'g' => model.group_by(model.grouping.next()),
            'G' => model.group_by(model.grouping.previous()),
            'n' => model.toggle_names(),
            's' => model.choose_next_order(),
            '/' => model.begin_edit(),
            _ => {}
        },
        _ => {}
    }
    true
}

/// How far a key moves.
fn distance(code: KeyCode, page: usize) -> Option<isize> {
    let page: isize = fit(page.max(1));
    match code {
        KeyCode::Up | KeyCode::Char('k') => Some(-1),
        KeyCode::Down | KeyCode::Char('j') => Some(1),
        KeyCode::PageUp => Some(-page),
        KeyCode::PageDown => Some(page),
        KeyCode::Home => Some(isize::MIN),
        KeyCode::End => Some(isize::MAX),
        _ => None,
    }
}

fn edit(model: &mut Model, mut text: String, code: KeyCode, control: bool) {
    match code {
        KeyCode::Enter => return model.end_edit(),
        KeyCode::Esc => return model.cancel_edit(),
        KeyCode::Char('u') if control => text.clear(),
        KeyCode::Char('w') if control => {
            let kept = text.trim_end().rfind(' ').map_or(0, |blank| blank + 1);
            text.truncate(kept);
        }
        KeyCode::Backspace => {
            text.pop();
        }
        KeyCode::Char(letter) if !control => text.push(letter),
        _ => return,
    }
    model.edited(text);
}
