//! What was measured, as text: the parts of docs/performance.md that are not written by hand, and its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::figure::Figure;
use crate::plot;

/// What one measure found.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    title: &'static str,
    /// What was done.
    about: String,
    pub(crate) figures: Vec<Figure>,
    pub(crate) charts: Vec<Chart>,
}

/// A plot of one measure.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    /// The name of the plot's file.
    name: &'static str,
    title: &'static str,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    Bars(Vec<Figure>),
    Series(Vec<f64>),
}

impl Chart {
    /// Medians as bars, with their spread.
    pub(crate) fn new(name: &'static str, title: &'static str, figures: Vec<Figure>) -> Self {
        Self { name, title, content: Content::Bars(figures) }
    }

    /// A plot of values one after the other, at equal distances in time.
    pub(crate) fn series(name: &'static str, title: &'static str, values: Vec<f64>) -> Self {
        Self { name, title, content: Content::Series(values) }
    }

    fn svg(&self) -> String {
        match &self.content {
            Content::Bars(figures) => plot::bars(self.title, figures),
            Content::Series(values) => plot::series(self.title, values),
        }
    }
}

impl Section {
    pub(crate) fn new(title: &'static str, about: impl Into<String>) -> Self {
        Self { title, about: about.into(), figures: Vec::new(), charts: Vec::new() }
    }

    /// The figures that do not reach their bars.
    pub(crate) fn missed(&self) -> impl Iterator<Item = &Figure> {
        self.figures.iter().filter(|figure| figure.holds() == Some(false))
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n{}\n\n", self.title, self.about);
        text.push_str("| | median | spread, runs | bar | holds |\n|---|---|---|---|---|\n");
        for figure in &self.figures {
            let _ = writeln!(text, "{}", figure.row());
        }
        for chart in &self.charts {
            let _ = write!(text, "\n![{}](performance/{}.svg)\n", chart.title, chart.name);
        }
        text
    }
}

/// Writes sections between the marks of this name in performance.md, each in the place of the one with its title, and their
/// plots next to it.
///
/// # Panics
/// If the marks are not there, or a file cannot be written.
pub(crate) fn write(documents: &Path, name: &str, sections: &[Section]) {
    const HEAD: &str = "### ";
    let path = documents.join("performance.md");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- end of {name} -->"));
    let (before, rest) =
        text.split_once(&begin).unwrap_or_else(|| panic!("{} has no {begin:?}", path.display()));
    let (body, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{} has no {end:?}", path.display()));
    let mut parts: Vec<String> =
        body.split(HEAD).skip(1).map(|part| format!("{HEAD}{}\n", part.trim_end())).collect();
    for section in sections {
        let head = format!("{HEAD}{}\n", section.title);
        match parts.iter_mut().find(|part| part.starts_with(&head)) {
            Some(part) => *part = section.markdown(),
            None => parts.push(section.markdown()),
        }
    }
    let body = format!("{}\n\n{}", machine(), parts.join("\n"));
    fs::write(&path, format!("{before}{begin}{body}{end}{after}")).expect("the document can be written");
    for chart in sections.iter().flat_map(|section| &section.charts) {
        let file = documents.join("performance").join(format!("{}.svg", chart.name));
        fs::write(&file, chart.svg()).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}

/// The machine and the day.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let version = |program: &str, arguments: &[&str]| {
        let output =
            Command::new(program).args(arguments).output().map(|output| output.stdout).unwrap_or_default();
        String::from_utf8_lossy(&output).lines().next().unwrap_or_default().to_owned()
    };
    format!(
        "Measured on {} on {count} processors ({}), Linux {}, {}, {}, release build of commit {}.",
        version("date", &["-u", "+%Y-%m-%d"]),
        model.trim_start_matches([' ', '\t', ':']),
        kernel.trim(),
        version("conntrack", &["--version"]),
        version("ulogd", &["--version"]),
        version("git", &["rev-parse", "--short", "HEAD"]),
    )
}
