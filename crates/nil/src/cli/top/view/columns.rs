//! Columns that fit: narrow ones shrink, and those that matter least go when there is no room for all.

use ratatui::style::Stylize;
use ratatui::text::{Line, Span};

/// Between two columns.
const GAP: usize = 2;

/// A column and its cells, one for each row.
#[derive(Debug)]
pub(super) struct Column<'a> {
    heading: &'static str,
    align: Align,
    /// The one with the greatest rank goes first; one of rank 0 stays.
    rank: u8,
    /// To how many characters it may shrink.
    least: usize,
    cells: Vec<Span<'a>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Align {
    Left,
    Right,
}

impl<'a> Column<'a> {
    /// Of texts, which can be cut off.
    pub(super) fn texts(heading: &'static str, rank: u8, least: usize, cells: Vec<Span<'a>>) -> Self {
        Self { heading, align: Align::Left, rank, least, cells }
    }

    /// Of numbers, which cannot.
    pub(super) fn numbers(heading: &'static str, rank: u8, cells: Vec<Span<'a>>) -> Self {
        Self { heading, align: Align::Right, rank, least: usize::MAX, cells }
    }

    /// How wide it would like to be.
    fn wide(&self) -> usize {
        let cells = self.cells.iter().map(Span::width);
        cells.chain([width_of(self.heading)]).max().unwrap_or(0)
    }

    fn narrow(&self) -> usize {
        self.wide().min(self.least.max(width_of(self.heading)))
    }

    fn cell(&self, row: usize, width: usize) -> Span<'a> {
        let cell = &self.cells[row];
        Span::styled(self.fitted(&cell.content, width), cell.style)
    }

    fn fitted(&self, text: &str, width: usize) -> String {
        let text = cut(text, width);
        let room = " ".repeat(width.saturating_sub(width_of(&text)));
        match self.align {
            Align::Left => text + &room,
            Align::Right => room + &text,
        }
    }
}

/// How many columns of a terminal it takes.
fn width_of(text: &str) -> usize {
    Span::raw(text).width()
}

/// `text`, of which so much is left as fits.
pub(super) fn cut(text: &str, width: usize) -> String {
    if width_of(text) <= width {
        return text.to_owned();
    }
    let mut short = String::new();
    for letter in text.chars() {
        if width_of(&format!("{short}{letter}…")) > width {
            break;
        }
        short.push(letter);
    }
    if width > 0 { short + "…" } else { short }
}

/// The heading and the rows of those columns that fit into `width`.
pub(super) fn lines(mut columns: Vec<Column<'_>>, width: usize) -> (Line<'static>, Vec<Line<'_>>) {
    let widths = fit(&mut columns, width);
    let heading = columns.iter().zip(&widths).map(|(column, &width)| column.fitted(column.heading, width).dim());
    let heading = spaced(heading.collect());
    let rows = columns.iter().map(|column| column.cells.len()).max().unwrap_or(0);
    let row = |row| spaced(columns.iter().zip(&widths).map(|(column, &width)| column.cell(row, width)).collect());
    (heading, (0..rows).map(row).collect())
}

/// How wide each column is. The one that matters least shrinks, or goes where that is not enough; then the next one. Those
/// of rank 0 stay, whatever the width.
fn fit(columns: &mut Vec<Column<'_>>, width: usize) -> Vec<usize> {
    loop {
        let mut widths: Vec<usize> = columns.iter().map(Column::wide).collect();
        let mut excess = (widths.iter().sum::<usize>() + GAP * columns.len().saturating_sub(1)).saturating_sub(width);
        let Some(least) = (0..columns.len()).max_by_key(|&at| columns[at].rank) else { return widths };
        let equals = (0..columns.len()).rev().filter(|&at| columns[at].rank == columns[least].rank);
        for at in equals {
            let spare = (widths[at] - columns[at].narrow()).min(excess);
            widths[at] -= spare;
            excess -= spare;
        }
        if excess == 0 || columns[least].rank == 0 {
            return widths;
        }
        columns.remove(least);
    }
}

fn spaced(cells: Vec<Span<'_>>) -> Line<'_> {
    let mut spans = Vec::new();
    for cell in cells {
        if !spans.is_empty() {
            spans.push(Span::raw(" ".repeat(GAP)));
        }
        spans.push(cell);
    }
    Line::from(spans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> Vec<Column<'static>> {
        vec![
            Column::texts("NAME", 0, 6, vec!["a".into(), "a-long-name".into()]),
            Column::numbers("N", 1, vec!["1".into(), "100".into()]),
            Column::texts("NOTE", 2, 5, vec!["something".into(), "".into()]),
        ]
    }

    fn shown(width: usize) -> Vec<String> {
        let (heading, rows) = lines(columns(), width);
        std::iter::once(heading).chain(rows).map(|line| line.to_string().trim_end().to_owned()).collect()
    }

    #[test]
    fn with_room_for_all_each_column_is_as_wide_as_its_widest_cell() {
        assert_eq!(shown(40), ["NAME           N  NOTE", "a              1  something", "a-long-name  100"]);
    }

    #[test]
    fn what_matters_least_shrinks_first_then_goes_and_what_matters_most_is_cut_off_last() {
        assert_eq!(shown(24)[1], "a              1  somet…");
        assert_eq!(shown(22)[2], "a-long-name  100");
        assert_eq!(shown(12), ["NAME", "a", "a-long-name"]);
        assert_eq!(shown(8), ["NAME", "a", "a-long-…"]);
        assert_eq!(shown(2)[2], "a-lon…", "and no narrower");
    }

    #[test]
    fn a_text_is_cut_off_where_it_is_seen_that_it_was() {
        assert_eq!((cut("abc", 3).as_str(), cut("abcd", 3).as_str(), cut("abcd", 0).as_str()), ("abc", "ab…", ""));
        assert_eq!(cut("漢字漢字", 5), "漢字…");
    }
}
