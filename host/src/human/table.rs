//! Tables.
//!
//! Ours, and not `comfy-table` or `tabled`: a table is ten lines, and those crates cut or wrap what is wider than the
//! terminal.

/// Rows in columns as wide as what is in them, two spaces between.
pub fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["NAME", "SIZE"], ["é", "1.00 KiB"], ["longer", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(columns(&rows), "NAME    SIZE\né       1.00 KiB\nlonger\n");
        assert_eq!(columns::<2>(&[]), "");
    }
}
