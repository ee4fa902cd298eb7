//! Plots as SVG, readable on a light and on a dark page.

use std::fmt::Write as _;

use crate::figure::{Figure, show};

const WIDTH: f64 = 760.0;
/// An upper bound of the width of a letter of the labels.
const LETTER: f64 = 6.8;
/// Room for the number behind the longest bar.
const RIGHT: f64 = 110.0;
const ROW: f64 = 26.0;
const TOP: f64 = 40.0;

/// Readers and costs that are not flowbus's, by the beginnings of their labels.
const OTHERS: [&str; 4] = ["floor", "conntrack", "ulogd2", "a dump"];

/// The colours of light pages, then those of dark ones. Each is at least 3 to 1 against its page.
const STYLE: &str = "\
<style>
text{fill:#1f2328} .ours{fill:#0a58ca} .others{fill:#6e7781} .spread,.axis{stroke:#1f2328} .bar{stroke:#b3261e} .line{stroke:#0a58ca} text.bar{fill:#b3261e;stroke:none}
@media (prefers-color-scheme:dark){
text{fill:#e6edf3} .ours{fill:#58a6ff} .others{fill:#8b949e} .spread,.axis{stroke:#e6edf3} .bar{stroke:#ff8a80} .line{stroke:#58a6ff} text.bar{fill:#ff8a80;stroke:none}
}
</style>
";

/// Horizontal bars: the median of each figure, a line from its smallest to its largest value, and what it has to reach. Ours
/// stand out.
pub(crate) fn bars(title: &str, figures: &[Figure]) -> String {
    let largest = figures
        .iter()
        .map(|figure| figure.spread().1.max(figure.limit().unwrap_or_default()))
        .fold(f64::MIN_POSITIVE, f64::max);
    let longest = figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or_default();
    let left = longest as f64 * LETTER + 24.0;
    let scale = |value: f64| value / largest * (WIDTH - left - RIGHT);
    let mut svg = open(title, TOP + ROW * figures.len() as f64 + 10.0);
    for (row, figure) in figures.iter().enumerate() {
        let middle = TOP + ROW * (row as f64 + 0.5);
        let (low, high) = figure.spread();
        let class = if OTHERS.iter().any(|other| figure.what.starts_with(other)) { "others" } else { "ours" };
        let median = figure.median();
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{}" text-anchor="end">{}</text>"#,
            left - 8.0,
            middle + 4.0,
            escape(&figure.what)
        );
        let _ = writeln!(
            svg,
            r#"<rect class="{class}" x="{left:.1}" y="{}" width="{:.1}" height="16"/>"#,
            middle - 8.0,
            scale(median).max(1.0)
        );
        let _ = writeln!(
            svg,
            r#"<path class="spread" d="M{:.1} {middle}H{:.1}" stroke-width="1.5"/>"#,
            left + scale(low),
            left + scale(high)
        );
        let number = format!("{} {}", show(median), figure.unit());
        let _ = writeln!(
            svg,
            r#"<text x="{:.1}" y="{}">{number}</text>"#,
            left + scale(high.max(median)) + 8.0,
            middle + 4.0
        );
        if let Some(limit) = figure.limit() {
            let x = left + scale(limit);
            let _ = writeln!(
                svg,
                r#"<path class="bar" d="M{x:.1} {}V{}" stroke-width="2"/><text class="bar" x="{:.1}" y="{}">bar: {}</text>"#,
                middle - 12.0,
                middle + 12.0,
                x + 6.0,
                middle + 4.0,
                show(limit)
            );
        }
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
    let _ =
        writeln!(svg, r#"<path class="axis" d="M{MARGIN} {floor}H{}" stroke-width="0.5"/>"#, WIDTH - MARGIN);
    let _ = writeln!(
        svg,
        r#"<polyline class="line" points="{}" fill="none" stroke-width="2"/>"#,
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
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="13">"#
    );
    let _ = writeln!(svg, "<title>{}</title>", escape(title));
    svg.push_str(STYLE);
    let _ = writeln!(svg, r#"<text x="12" y="22" font-weight="bold">{}</text>"#, escape(title));
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
