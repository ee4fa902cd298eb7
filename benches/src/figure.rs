//! Measured figures: samples, their median and spread, and the bar that they are held against.

use std::fmt::Write as _;

/// One line of the table: a figure measured several times.
#[derive(Clone, Debug)]
pub(crate) struct Figure {
    pub(crate) what: String,
    unit: &'static str,
    samples: Vec<f64>,
    bar: Option<Bar>,
}

/// What a figure has to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bar {
    /// No more than this.
    AtMost(f64),
    /// No less than this.
    AtLeast(f64),
}

impl Figure {
    /// A figure of these samples, of which there is at least one.
    pub(crate) fn new(what: impl Into<String>, unit: &'static str, mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        Self { what: what.into(), unit, samples, bar: None }
    }

    pub(crate) fn bar(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self
    }

    pub(crate) fn median(&self) -> f64 {
        percentile(&self.samples, 0.5)
    }

    pub(crate) fn spread(&self) -> (f64, f64) {
        (percentile(&self.samples, 0.0), percentile(&self.samples, 1.0))
    }

    pub(crate) fn unit(&self) -> &'static str {
        self.unit
    }

    /// The value of the bar, if there is one.
    pub(crate) fn limit(&self) -> Option<f64> {
        self.bar.map(|(Bar::AtMost(limit) | Bar::AtLeast(limit))| limit)
    }

    /// Whether the median reaches the bar; `None` without one.
    pub(crate) fn holds(&self) -> Option<bool> {
        self.bar.map(|bar| match bar {
            Bar::AtMost(most) => self.median() <= most,
            Bar::AtLeast(least) => self.median() >= least,
        })
    }

    /// A row of a table in Markdown.
    pub(crate) fn row(&self) -> String {
        let (low, high) = self.spread();
        let mut row = format!("| {} | **{}** {} |", self.what, show(self.median()), self.unit);
        let _ = write!(row, " {} - {}, {} |", show(low), show(high), self.samples.len());
        let bar = match self.bar {
            Some(Bar::AtMost(most)) => format!("<= {}", show(most)),
            Some(Bar::AtLeast(least)) => format!(">= {}", show(least)),
            None => String::new(),
        };
        let verdict = match self.holds() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "",
        };
        let _ = write!(row, " {bar} | {verdict} |");
        row
    }
}

/// The value at this part of a sorted series.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "an index"
)]
pub(crate) fn percentile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    below + (above - below) * place.fract()
}

/// Three digits that matter; large numbers whole.
pub(crate) fn show(value: f64) -> String {
    match value.abs() {
        large if large >= 10_000.0 => grouped(value),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        _ if value == 0.0 => "0".to_owned(),
        _ => format!("{value:.2}"),
    }
}

fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_of_the_sorted_samples_and_meets_its_bar() {
        let figure = Figure::new("x", "s", vec![3.0, 1.0, 2.0]).bar(Bar::AtMost(2.0));
        assert_eq!((figure.median(), figure.spread(), figure.holds()), (2.0, (1.0, 3.0), Some(true)));
        assert_eq!(Figure::new("x", "s", vec![1.0, 2.0]).median(), 1.5);
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([400_000.0, 123.4, 12.34, 1.234, 0.0].map(show), ["400,000", "123", "12.3", "1.23", "0"]);
    }
}
