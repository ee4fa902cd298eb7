//! Draws the screen. It fits 80 columns and 24 lines; more of both shows more.

use flowbus_interfaces::fit;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Paragraph, RenderDirection, Sparkline, Wrap};

use super::input::KEYS;
use super::model::{Detail, Model, Pane};
use super::table::{self, ScreenRows};
use super::tally::Sample;
use super::view::Grouping;
use crate::cell::{self, Cells};
use crate::resolve;

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const BAR: Style = Style::new().add_modifier(Modifier::REVERSED);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const MISTAKE: Style = Style::new().fg(Color::Red);
const NOTICE: Style = Style::new().fg(Color::Yellow);

/// Draws all of it; ratatui sends what differs from before.
pub(super) fn draw(frame: &mut Frame<'_>, model: &mut Model) {
    let message = message(model);
    let lines = fit(message.lines.len());
    let rows = [1, 1, 1, 1, 1, lines].map(Constraint::Length);
    let layout = Layout::vertical(rows.into_iter().chain([Constraint::Min(0), Constraint::Length(1)]));
    let areas = layout.split(frame.area());
    let [head_area, new_area, up_area, down_area, filter_area, message_area, main, foot] = *areas else {
        return;
    };
    frame.render_widget(head(model), head_area);
    let new = |sample: &Sample| a_second(sample.new, *sample);
    graph(frame, new_area, model, "new/s", Color::Green, |sample| new(sample).0, |sample| new(sample).1);
    for (area, name, rate) in [
        (up_area, "up/s", (|sample| sample.rate.up) as fn(&Sample) -> u64),
        (down_area, "down/s", |sample| sample.rate.down),
    ] {
        graph(frame, area, model, name, Color::Cyan, rate, |sample| cell::short_bytes(rate(sample)));
    }
    filter(frame, filter_area, model);
    frame.render_widget(message, message_area);
    model.page = usize::from(main.height.saturating_sub(1)).max(1);
    match &mut model.pane {
        Pane::Help => frame.render_widget(Paragraph::new(KEYS).wrap(Wrap { trim: false }), main),
        Pane::Detail(detail) => details(frame, main, detail),
        Pane::Table => rows_of(frame, main, model),
    }
    frame.render_widget(Paragraph::new(help(model)).style(DIM), foot);
}

fn head(model: &Model) -> Line<'static> {
    let mut spans = vec![Span::styled("flowctl top", BOLD)];
    if let Some(snapshot) = &model.snapshot {
        spans.push(Span::raw(format!("  {} flows", snapshot.counted.flows)));
        if snapshot.view.grouping != Grouping::Flow {
            spans.push(Span::raw(format!(" in {} groups", snapshot.counted.all_rows)));
        }
        if let Some((count, maximum)) = snapshot.kernel {
            spans.push(Span::raw(format!("  {count} of {maximum} in the kernel")));
        }
    }
    if model.paused {
        spans.push(Span::styled("  [paused]", NOTICE.add_modifier(Modifier::BOLD)));
    }
    Line::from(spans)
}

/// A count as a rate a second: in tenths, which a graph can show, and as text.
fn a_second(count: u64, sample: Sample) -> (u64, String) {
    let seconds = sample.interval.as_secs_f64();
    let milliseconds = fit::<u128, u64>(sample.interval.as_millis()).max(1);
    (count.saturating_mul(10_000) / milliseconds, table::a_second(count, seconds))
}

/// A line with a name, the latest value, and what it was before, latest to the right.
fn graph(
    frame: &mut Frame<'_>,
    area: Rect,
    model: &Model,
    name: &str,
    color: Color,
    value: impl Fn(&Sample) -> u64,
    text: impl Fn(&Sample) -> String,
) {
    let [label, graph] = Layout::horizontal([Constraint::Length(16), Constraint::Min(0)]).areas(area);
    let latest = model.history.front().map(text).unwrap_or_default();
    frame.render_widget(Paragraph::new(format!("{name:<8}{latest:>6}")), label);
    let width = usize::from(graph.width);
    let data: Vec<u64> = model.history.iter().take(width).map(value).collect();
    let sparkline = Sparkline::default().data(data).direction(RenderDirection::RightToLeft);
    frame.render_widget(sparkline.style(Style::new().fg(color)), graph);
}

/// How the rows are chosen and sorted.
fn filter(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let order = model.order().name();
    let by = match model.grouping {
        Grouping::Flow => format!("flows by {order}"),
        grouping => format!("by {}, {order} first", grouping.name()),
    };
    let waiting = if model.is_current() || model.paused { "" } else { " ..." };
    let mut spans = vec![Span::raw(format!("{by}{waiting}  filter: "))];
    match &model.edit {
        Some(text) => {
            spans.push(Span::styled(text.clone(), BOLD));
            let column = spans.iter().map(Span::width).sum::<usize>();
            let column = u16::try_from(column).unwrap_or(u16::MAX).min(area.width.saturating_sub(1));
            frame.set_cursor_position(Position::new(area.x + column, area.y));
        }
        None if model.filter.is_empty() => spans.push(Span::styled("none", DIM)),
        None => spans.push(Span::styled(model.filter.clone(), BOLD)),
    }
    frame.render_widget(Line::from(spans), area);
}

/// What is wrong, and what the numbers do not say.
fn message(model: &Model) -> Text<'static> {
    let mut lines = Vec::new();
    let mistake = model.mistake.as_ref().filter(|_| model.edit.is_some());
    lines.extend(mistake.or(model.failure.as_ref()).map(|text| Line::styled(text.clone(), MISTAKE)));
    let notices = model.snapshot.as_ref().map(|snapshot| snapshot.notices()).unwrap_or_default();
    let nameless = resolve::failure().filter(|_| model.resolve).map(str::to_owned);
    lines.extend(notices.into_iter().chain(nameless).map(|text| Line::styled(text, NOTICE)));
    Text::from(lines)
}

fn rows_of(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let width = usize::from(area.width);
    let table = ScreenRows::new(&model.wish().view, model.snapshot.as_deref(), width, model.resolve);
    let mut lines = vec![Line::styled(table.header(), BOLD)];
    let first = model.selected.saturating_sub(model.page - 1);
    if model.snapshot.is_some() {
        for (index, row) in model.rows().iter().enumerate().skip(first).take(model.page) {
            let style = if row.ended.is_some() { DIM } else { Style::new() };
            let style = if index == model.selected { style.patch(BAR) } else { style };
            lines.push(Line::styled(table.line(index), style));
        }
        if model.is_current() && model.rows().is_empty() {
            let text =
                if model.filter.is_empty() { "There is no flow." } else { "No flow matches the filter." };
            lines.push(Line::styled(text, DIM));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn details(frame: &mut Frame<'_>, area: Rect, detail: &mut Detail) {
    let mut lines = vec![Line::styled(format!("Flow {}", detail.id), BOLD)];
    match &detail.flow {
        None => lines.push(Line::styled("...", DIM)),
        Some(Err(reason)) => lines.push(Line::styled(reason.clone(), MISTAKE)),
        Some(Ok(flow)) => {
            let width = flow.iter().map(|(key, _)| key.name().len()).max().unwrap_or(0);
            let fields: Vec<_> = flow
                .iter()
                .map(|(key, value)| {
                    Line::raw(format!("{:width$}  {}", key.name(), Cells::FOR_PEOPLE.value(key, value)))
                })
                .collect();
            let room = usize::from(area.height).saturating_sub(1);
            detail.scroll = detail.scroll.min(fields.len().saturating_sub(room));
            lines.extend(fields.into_iter().skip(detail.scroll));
        }
    }
    frame.render_widget(Paragraph::new(lines), area);
}

/// What can be done next.
fn help(model: &Model) -> &'static str {
    match (&model.edit, &model.pane) {
        (Some(_), _) => {
            "Enter keep  Esc take back  Ctrl-U empty   e.g. source=CHROME dport=80,443 src=10.0.0.0/8"
        }
        (None, Pane::Table) if model.grouping == Grouping::Flow => {
            "q quit  / filter  g group  s sort  n names  p pause  Enter details  ? keys"
        }
        (None, Pane::Table) => "q quit  / filter  g group  s sort  n names  p pause  Enter its flows  ? keys",
        (None, Pane::Help) => "Esc back  q quit",
        (None, Pane::Detail(_)) => "Esc back  Up, Down scroll  p pause  q quit",
    }
}
