//! Aligned columns that grow with what they show, page by page, so that no listing is held in memory.

use std::borrow::Cow;
use std::io::{self, Write};

use anstyle::Style;

/// A column of a table, and how it gives way.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) title: Cow<'static, str>,
    /// Least width, so that later pages are aligned as well.
    pub(crate) width: usize,
    /// Which columns go first where the terminal is too narrow: the highest. 0 stays.
    pub(crate) drop: u8,
    /// A cell that says nothing, besides an empty one. A column of such cells alone is the first to go.
    pub(crate) idle: &'static str,
}

impl Column {
    pub(crate) const fn new(title: &'static str, drop: u8) -> Self {
        Self { title: Cow::Borrowed(title), width: 0, drop, idle: "" }
    }
}

/// A line of a table: a cell a column, and how all of it looks.
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
    /// Which columns have had a cell that says something.
    said: Vec<bool>,
    /// Characters that a line has; none where it is not for a terminal.
    available: Option<usize>,
    begun: bool,
    colors: bool,
    legend: bool,
}

/// Characters of the last column that have to fit.
const ENOUGH: usize = 16;

/// Blanks between columns.
const GAP: usize = 2;

impl Table {
    /// A table for a terminal of that width, or for a file.
    pub(crate) fn new(columns: Vec<Column>, available: Option<usize>) -> Self {
        let widths = columns.iter().map(|column| column.width.max(column.title.len())).collect();
        let shown = vec![true; columns.len()];
        let said = vec![false; columns.len()];
        Self { columns, widths, shown, said, available, begun: false, colors: true, legend: true }
    }

    /// Whether rows and titles are styled: to write styles that are taken out again costs time.
    pub(crate) const fn colored(mut self, colors: bool) -> Self {
        self.colors = colors;
        self
    }

    /// Whether titles stand above the columns.
    pub(crate) const fn legend(mut self, legend: bool) -> Self {
        self.legend = legend;
        self
    }

    /// Prints rows. The header is above the first of them, and again where other columns are shown from there on.
    pub(crate) fn print(&mut self, out: &mut dyn Write, rows: &[Row]) -> io::Result<()> {
        for row in rows {
            for (index, cell) in row.cells.iter().enumerate() {
                self.widths[index] = characters(cell).max(self.widths[index]);
                self.said[index] |= !cell.is_empty() && *cell != self.columns[index].idle;
            }
        }
        if rows.is_empty() {
            return Ok(());
        }
        let is_first = !std::mem::replace(&mut self.begun, true);
        if (self.fit() || is_first) && self.legend {
            let titles = self.columns.iter().map(|column| &*column.title);
            self.line(out, titles, Style::new().bold())?;
        }
        rows.iter().try_for_each(|row| self.line(out, row.cells.iter().map(String::as_str), row.style))
    }

    /// Leaves out columns until a line fits: first those that say nothing. True where other columns than before are shown.
    fn fit(&mut self) -> bool {
        let Some(available) = self.available else { return false };
        let before = std::mem::replace(&mut self.shown, vec![true; self.columns.len()]);
        while self.length() > available {
            let columns =
                (0..self.columns.len()).filter(|&index| self.shown[index] && self.columns[index].drop > 0);
            match columns.max_by_key(|&index| (!self.said[index], self.columns[index].drop)) {
                Some(index) => self.shown[index] = false,
                None => break,
            }
        }
        self.shown != before
    }

    /// The titles of the columns that are left out though they have something to say.
    pub(crate) fn left_out(&self) -> Vec<&str> {
        let hidden = (0..self.columns.len()).filter(|&index| self.said[index] && !self.shown[index]);
        hidden.map(|index| &*self.columns[index].title).collect()
    }

    /// The columns of a line. The last one may be cut off behind what distinguishes its cells.
    fn length(&self) -> usize {
        let last = self.shown.iter().rposition(|shown| *shown);
        let shown = self.widths.iter().enumerate().filter(|(index, _)| self.shown[*index]);
        let needed =
            |(index, width): (usize, &usize)| if Some(index) == last { *width.min(&ENOUGH) } else { *width };
        shown.map(|column| needed(column) + GAP).sum::<usize>().saturating_sub(GAP)
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

    fn columns() -> Vec<Column> {
        vec![Column::new("ID", 0), Column { idle: "none", ..Column::new("NAT", 2) }, Column::new("TO", 1)]
    }

    fn rows(rows: &[[&str; 3]]) -> Vec<Row> {
        let row = |cells: &[&str; 3]| Row { cells: cells.map(str::to_owned).to_vec(), style: Style::new() };
        rows.iter().map(row).collect()
    }

    fn printed(available: Option<usize>, pages: &[&[[&str; 3]]]) -> String {
        let mut table = Table::new(columns(), available);
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
        assert_eq!(printed(Some(6), &[page, &[["22", "", "bbb"]]]), "ID  TO\n1   a\nID\n22\n");
        assert_eq!(printed(Some(1), &[page]), "…\n1\n");
    }

    #[test]
    fn a_column_that_says_nothing_goes_first_and_comes_with_its_first_value() {
        let columns =
            vec![Column::new("ID", 0), Column { idle: "?", ..Column::new("NAT", 1) }, Column::new("TO", 2)];
        let mut table = Table::new(columns, Some(9));
        let mut out = anstream::StripStream::new(Vec::new());
        for page in [&[["1", "?", "aaaa"], ["2", "", "b"]][..], &[["3", "yyyyy", "c"]], &[["4", "?", "d"]]] {
            table.print(&mut out, &rows(page)).unwrap();
        }
        let text = String::from_utf8(out.into_inner()).unwrap();
        assert_eq!(text, "ID  TO\n1   aaaa\n2   b\nID  NAT\n3   yyyyy\n4   ?\n");
        assert_eq!(table.left_out(), ["TO"]);
    }

    #[test]
    fn of_the_last_column_the_beginning_is_enough() {
        let long = "0123456789abcdefghij";
        assert_eq!(printed(Some(20), &[&[["1", "", long]]]), "ID  TO\n1   0123456789abcde…\n");
        assert_eq!(printed(Some(19), &[&[["1", "", long]]]), "ID\n1\n");
    }

    #[test]
    fn no_rows_have_no_header() {
        assert_eq!(printed(None, &[&[]]), "");
    }
}
