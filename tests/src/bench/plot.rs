//! Bar charts as SVG: a page's worth of shapes, so that no plotting library is needed.

use std::fmt::Write;

/// One bar.
pub struct Bar<'a> {
    /// What it is shown together with.
    pub group: &'a str,
    /// Its own name.
    pub name: &'a str,
    /// Its length.
    pub value: f64,
    /// What stands behind it.
    pub label: String,
}

/// Pixels: the page, the column of names, one bar, and the space above a group.
const WIDTH: f64 = 860.0;
const NAMES: f64 = 260.0;
const LABELS: f64 = 130.0;
const BAR: f64 = 18.0;
const GROUP: f64 = 28.0;
const TOP: f64 = 52.0;

/// Marks of the logarithmic scale; values outside are cut.
const MARKS: &[f64] = &[0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0];

/// A chart of horizontal bars on a logarithmic scale, those of one group together. Groups come in the order of `bars`.
pub fn bars(title: &str, bars: &[Bar<'_>]) -> String {
    let groups = bars.chunk_by(|one, other| one.group == other.group).count();
    let height = TOP + BAR * bars.len() as f64 + GROUP * groups as f64 + 12.0;
    let largest = bars.iter().map(|bar| bar.value).fold(2.0, f64::max);
    let end = MARKS.iter().copied().find(|mark| *mark >= largest).unwrap_or(100.0);
    let scale = |value: f64| {
        let share = (value.clamp(MARKS[0], end) / MARKS[0]).ln() / (end / MARKS[0]).ln();
        NAMES + share * (WIDTH - NAMES - LABELS)
    };
    let mut svg = String::new();
    let mut add = |element: std::fmt::Arguments<'_>| writeln!(svg, "{element}").expect("a String takes all");
    add(format_args!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">"
    ));
    // Books are read on dark pages too.
    add(format_args!("<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"));
    add(format_args!("<text x=\"8\" y=\"20\" font-size=\"14\" font-weight=\"bold\">{}</text>", escape(title)));
    for mark in MARKS.iter().filter(|mark| **mark <= end) {
        let (x, bottom) = (scale(*mark), height - 12.0);
        let colour = if *mark == 1.0 { "#444444" } else { "#dddddd" };
        add(format_args!("<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>"));
        add(format_args!(
            "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\" fill=\"#555555\">{mark}</text>",
            TOP - 6.0
        ));
    }
    let mut y = TOP;
    for group in bars.chunk_by(|one, other| one.group == other.group) {
        y += GROUP;
        add(format_args!("<text x=\"8\" y=\"{:.1}\" font-weight=\"bold\">{}</text>", y - 6.0, escape(group[0].group)));
        for bar in group {
            let (from, to) = (scale(1.0).min(scale(bar.value)), scale(1.0).max(scale(bar.value)));
            let colour = if bar.name.starts_with("lazyroot") { "#2b6cb0" } else { "#a0aec0" };
            add(format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                NAMES - 8.0,
                y + BAR - 5.0,
                escape(bar.name)
            ));
            add(format_args!(
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                y + 2.0,
                (to - from).max(1.0),
                BAR - 4.0
            ));
            add(format_args!("<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", to + 5.0, y + BAR - 5.0, escape(&bar.label)));
            y += BAR;
        }
    }
    add(format_args!("</svg>"));
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
