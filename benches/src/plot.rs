//! Plots as SVG, readable on a light and on a dark page.

use std::fmt::Write as _;

use crate::figure::{Figure, show};

const WIDTH: f64 = 760.0;
/// Where labels end and bars begin.
const LEFT: f64 = 330.0;
/// Room for the number behind the longest bar.
const RIGHT: f64 = 90.0;
const ROW: f64 = 26.0;
const TOP: f64 = 40.0;

/// Horizontal bars: the median of each figure, a line from its smallest to its largest value. Ours stand out.
pub(crate) fn bars(title: &str, figures: &[Figure]) -> String {
    let largest = figures.iter().map(|figure| figure.spread().1).fold(f64::MIN_POSITIVE, f64::max);
    let scale = |value: f64| value / largest * (WIDTH - LEFT - RIGHT);
    let mut svg = open(title, TOP + ROW * figures.len() as f64 + 10.0);
    for (row, figure) in figures.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        let (low, high) = figure.spread();
        let ours = figure.what.contains("flowbusd") || figure.what.contains("OpenStream");
        let colour = if ours { "#2a7ae2" } else { "#9aa5b1" };
        let median = figure.median();
        let _ = writeln!(
            svg,
            r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
            LEFT - 8.0,
            middle + 4.0,
            escape(&figure.what)
        );
        let _ = writeln!(
            svg,
            r#"<rect x="{LEFT}" y="{}" width="{:.1}" height="{}" fill="{colour}"/>"#,
            middle - 8.0,
            scale(median).max(1.0),
            16
        );
        let _ = writeln!(
            svg,
            r#"<path d="M{:.1} {middle}H{:.1}" stroke="currentColor" stroke-width="1.5"/>"#,
            LEFT + scale(low),
            LEFT + scale(high)
        );
        let number = format!("{} {}", show(median), figure.unit());
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{}">{number}</text>"#,
            LEFT + scale(high.max(median)) + 8.0,
            middle + 4.0
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// A line through values at equal distances, from 0 up.
pub(crate) fn series(title: &str, values: &[f64]) -> String {
    const HEIGHT: f64 = 220.0;
    const MARGIN: f64 = 60.0;
    let largest = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
    let place = |(index, value): (usize, &f64)| {
        let x = MARGIN + index as f64 / (values.len().max(2) - 1) as f64 * (WIDTH - 2.0 * MARGIN);
        format!("{x:.1},{:.1}", TOP + (1.0 - value / largest) * (HEIGHT - TOP - 30.0))
    };
    let points: Vec<_> = values.iter().enumerate().map(place).collect();
    let mut svg = open(title, HEIGHT);
    let floor = HEIGHT - 30.0;
    let _ = writeln!(
        svg,
        r#"<path d="M{MARGIN} {floor}H{}" stroke="currentColor" stroke-width="0.5"/>"#,
        WIDTH - MARGIN
    );
    let _ = writeln!(
        svg,
        r##"<polyline points="{}" fill="none" stroke="#2a7ae2" stroke-width="2"/>"##,
        points.join(" ")
    );
    let _ = writeln!(svg, r#"<text x="{}" y="{}" text-anchor="end">0</text>"#, MARGIN - 8.0, floor + 4.0);
    let _ = writeln!(
        svg,
        r#"<text x="{}" y="{}" text-anchor="end">{}</text>"#,
        MARGIN - 8.0,
        TOP + 4.0,
        show(largest)
    );
    svg.push_str("</svg>\n");
    svg
}

fn open(title: &str, height: f64) -> String {
    let mut svg = String::new();
    let _ = writeln!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="13" fill="currentColor" color="#57606a">"##
    );
    let _ = writeln!(svg, "<title>{}</title>", escape(title));
    let _ = writeln!(svg, r#"<text x="12" y="22" font-weight="bold">{}</text>"#, escape(title));
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
