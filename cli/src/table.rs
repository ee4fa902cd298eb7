//! Aligned columns that grow with what they show, page by page, so that no listing is held in memory.

use std::io::{self, Write};

use anstyle::Style;

/// A column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    pub(crate) title: &'static str,
    /// Least width: of what follows in later pages.
    pub(crate) width: usize,
    /// Which columns go first where the terminal is too narrow: the highest. 0 stays.
    pub(crate) drop: u8,
}

/// One line: a cell a column, and how all of it looks.
pub(crate) struct Row {
    pub(crate) cells: Vec<String>,
    pub(crate) style: Style,
}

/// A table that is being printed.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<Column>,
    widths: Vec<usize>,
    shown: Vec<bool>,
    /// Characters that a line has; none where it is not for a terminal.
    available: Option<usize>,
    begun: bool,
    colors: bool,
}

/// Blanks between columns.
const GAP: usize = 2;

impl Table {
    /// A table for a terminal of that width, or for a file.
    pub(crate) fn new(columns: Vec<Column>, available: Option<usize>) -> Self {
        let widths = columns.iter().map(|column| column.width.max(column.title.len())).collect();
        let shown = vec![true; columns.len()];
        Self { columns, widths, shown, available, begun: false, colors: true }
    }

    /// Whether rows and titles are styled: to write styles that are taken out again costs time.
    pub(crate) const fn colored(mut self, colors: bool) -> Self {
        self.colors = colors;
        self
    }

    /// Prints rows, below the header at the first time.
    pub(crate) fn print(&mut self, out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(&row.cells) {
                *width = characters(cell).max(*width);
            }
        }
        if !self.begun && !rows.is_empty() {
            self.begun = true;
            self.fit();
            let titles: Vec<_> = self.columns.iter().map(|column| column.title).collect();
            self.line(out, titles.into_iter(), Style::new().bold())?;
        }
        rows.iter().try_for_each(|row| self.line(out, row.cells.iter().map(String::as_str), row.style))
    }

    /// Leaves out columns until a line fits.
    fn fit(&mut self) {
        let Some(available) = self.available else { return };
        while self.length() > available {
            let shown = (0..self.columns.len()).filter(|&index| self.shown[index]);
            match shown.max_by_key(|&index| self.columns[index].drop) {
                Some(index) if self.columns[index].drop > 0 => self.shown[index] = false,
                _ => return,
            }
        }
    }

    fn length(&self) -> usize {
        let widths = self.widths.iter().zip(&self.shown).filter(|(_, shown)| **shown);
        widths.map(|(width, _)| width + GAP).sum::<usize>().saturating_sub(GAP)
    }

    fn line<'a>(
        &self,
        out: &mut dyn Write,
        cells: impl Iterator<Item = &'a str>,
        style: Style,
    ) -> io::Result<()> {
        let mut line = String::with_capacity(128);
        let mut blanks = 0;
        for ((cell, &width), &shown) in cells.zip(&self.widths).zip(&self.shown) {
            if shown && !cell.is_empty() {
                pad(&mut line, blanks);
                line.push_str(cell);
                blanks = (width + GAP).saturating_sub(characters(cell));
            } else if shown {
                blanks += width + GAP;
            }
        }
        if let Some(available) = self.available {
            shorten(&mut line, available);
        }
        if self.colors {
            writeln!(out, "{style}{line}{style:#}")
        } else {
            line.push('\n');
            out.write_all(line.as_bytes())
        }
    }
}

/// How wide a cell is; nearly all are ASCII.
fn characters(cell: &str) -> usize {
    if cell.is_ascii() { cell.len() } else { cell.chars().count() }
}

/// Appends blanks.
fn pad(line: &mut String, mut blanks: usize) {
    const BLANKS: &str = "                                                                ";
    while blanks > 0 {
        let some = blanks.min(BLANKS.len());
        line.push_str(&BLANKS[..some]);
        blanks -= some;
    }
}

/// Cuts off what does not fit, visibly.
fn shorten(line: &mut String, available: usize) {
    if line.len() > available
        && let Some((end, _)) = line.char_indices().nth(available)
    {
        // The mark takes the place of the last character that would fit.
        let last = line[..end].char_indices().next_back().map_or(0, |(last, _)| last);
        line.truncate(last);
        line.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[Column] = &[
        Column { title: "ID", width: 0, drop: 0 },
        Column { title: "NAT", width: 0, drop: 2 },
        Column { title: "TO", width: 0, drop: 1 },
    ];

    fn rows(rows: &[[&str; 3]]) -> Vec<Row> {
        let row = |cells: &[&str; 3]| Row { cells: cells.map(str::to_owned).to_vec(), style: Style::new() };
        rows.iter().map(row).collect()
    }

    fn printed(available: Option<usize>, pages: &[&[[&str; 3]]]) -> String {
        let mut table = Table::new(COLUMNS.to_vec(), available);
        let mut out = anstream::StripStream::new(Vec::new());
        for page in pages {
            table.print(&mut out, &rows(page)).unwrap();
        }
        String::from_utf8(out.into_inner()).unwrap()
    }

    #[test]
    fn columns_are_aligned_and_later_pages_widen_them() {
        let text = printed(None, &[&[["1", "", "a"], ["22", "xxxx", "b"]], &[["333", "x", "c"]], &[]]);
        assert_eq!(text, "ID  NAT   TO\n1         a\n22  xxxx  b\n333  x     c\n");
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_columns() {
        let page: &[[&str; 3]] = &[["1", "xxxx", "a"]];
        assert_eq!(printed(Some(12), &[page]), "ID  NAT   TO\n1   xxxx  a\n");
        assert_eq!(printed(Some(11), &[page]), "ID  TO\n1   a\n");
        assert_eq!(printed(Some(2), &[page]), "ID\n1\n");
        assert_eq!(printed(Some(6), &[page, &[["22", "", "bbb"]]]), "ID  TO\n1   a\n22  b…\n");
        assert_eq!(printed(Some(1), &[page]), "…\n1\n");
    }

    #[test]
    fn no_rows_have_no_header() {
        assert_eq!(printed(None, &[&[]]), "");
    }
}
