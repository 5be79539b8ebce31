//! A run as a picture: time goes to the right, each file has a row in the order of first reading, and each read is a bar
//! as long as the program waited.
//!
//! The picture is SVG, written by hand: it is a few rectangles and words. What guests and images say (paths, digests)
//! goes into it as text, escaped.

mod rows;
mod svg;

use std::fmt::Write as _;

use lazyroot_proto::index::ObjectIndex;
use lazyroot_proto::reads::Origin;

pub use self::rows::{FileRow, file_rows};
use self::rows::{bytes_of, fold};
use self::svg::{elide, escape, line, text};
use crate::human::{duration, size};
use crate::store::Trace;
use crate::text::printable;

/// What is drawn of the time before guest-init runs: the kernel reads nothing then, and would squeeze the rest.
const KERNEL_WIDTH: f64 = 70.0;

const LABEL_WIDTH: f64 = 360.0;
const CHART_WIDTH: f64 = 900.0;
const SUM_WIDTH: f64 = 150.0;

/// Where the two columns of sums end.
const READ_RIGHT: f64 = LABEL_WIDTH + CHART_WIDTH + 75.0;
const WAITED_RIGHT: f64 = LABEL_WIDTH + CHART_WIDTH + SUM_WIDTH - 8.0;

const ROW: f64 = 15.0;
const MARGIN: f64 = 14.0;

/// Space above the rows for title, legend and the milestones' names.
const HEAD: f64 = 128.0;

/// Characters of a path that fit beside its row.
const LABEL_LETTERS: usize = 58;

/// Bars closer than this, in pixels, are drawn as one.
const TOGETHER: f64 = 0.5;

/// The shortest bar, in pixels: a read that nobody waited for is still seen.
const SHORTEST: f64 = 1.2;

/// What is drawn.
pub struct Waterfall<'a> {
    /// The run.
    pub trace: &'a Trace,
    /// The image's objects.
    pub index: &'a ObjectIndex,
    /// Paths for objects, by position in the index.
    pub names: &'a dyn Fn(u32) -> String,
    /// Words for the top, such as the VM's name.
    pub title: &'a str,
    /// How long after the first read a read may begin to be drawn, in microseconds.
    pub until: u64,
}

/// Where moments are in the picture. The chart begins with guest-init, or with the first read where there is none.
struct Scale {
    /// In microseconds since the kernel started.
    begin: u64,
    end: u64,
    /// Where `begin` is, in pixels.
    left: f64,
}

impl Scale {
    fn x(&self, at: u64) -> f64 {
        if at < self.begin {
            // Before the chart proper: the kernel's time, squeezed.
            return LABEL_WIDTH + KERNEL_WIDTH * at as f64 / self.begin as f64;
        }
        let share = (at - self.begin) as f64 / (self.end - self.begin).max(1) as f64;
        self.left + share * (LABEL_WIDTH + CHART_WIDTH - self.left)
    }
}

fn colour(origin: Origin) -> &'static str {
    match origin {
        Origin::Host => "#d62728",
        Origin::Neighbour => "#1f77b4",
        Origin::Profile => "#2ca02c",
        Origin::Cache => "#8c8c8c",
        Origin::Failed => "#000000",
        Origin::Preloaded => "#a8dba8",
    }
}

fn meaning(origin: Origin) -> &'static str {
    match origin {
        Origin::Host => "waited for the host",
        Origin::Neighbour => "came along with a neighbour",
        Origin::Profile => "sent ahead by the boot profile",
        Origin::Cache => "from the guest's own cache",
        Origin::Failed => "failed",
        Origin::Preloaded => "put ready by it, use not seen",
    }
}

impl Waterfall<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let all = file_rows(self.trace, self.index, self.names, self.until);
        let drawn: usize = all.iter().map(|row| row.reads.len()).sum();
        let all_reads = || all.iter().flat_map(|row| &row.reads);
        let unseen = all_reads().filter(|read| read.origin == Origin::Preloaded);
        let unseen: u64 = unseen.map(|read| bytes_of(&read.extent, self.index)).sum();
        let reads = all_reads().filter(|read| read.origin != Origin::Preloaded).count();
        let files = all.len();
        let waited: u64 = all.iter().map(|row| row.waited).sum();
        let bytes = all.iter().map(|row| row.bytes).sum::<u64>() - unseen;
        let rows = fold(all);
        let scale = self.scale(&rows);
        let height = HEAD + ROW * rows.len().max(1) as f64 + 58.0;
        let width = LABEL_WIDTH + CHART_WIDTH + SUM_WIDTH + 2.0 * MARGIN;
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"10\">\n\
             <title>{title}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
             <g transform=\"translate({MARGIN} 0)\">\n\
             <text x=\"0\" y=\"24\" font-size=\"16\" font-weight=\"bold\">{title}</text>\n",
            title = escape(self.title),
        );
        let later = self.trace.reads.len() - drawn;
        let not_drawn = match (later as u64) + self.trace.more_reads {
            0 => String::new(),
            more => format!("; {more} later reads are not shown"),
        };
        let summary = format!(
            "{files} files, {reads} reads of {}; programs waited {} for them, added up; the profile put {} ready{not_drawn}",
            size(bytes),
            duration(waited),
            size(unseen)
        );
        text(&mut svg, 0.0, 42.0, "", &summary);
        legend(&mut svg);
        let bottom = HEAD + ROW * rows.len().max(1) as f64;
        self.axis(&mut svg, &scale, bottom);
        for (number, row) in rows.iter().enumerate() {
            draw_row(&mut svg, row, &scale, HEAD + ROW * number as f64, number % 2 == 1);
        }
        for (words, right) in [("bytes", READ_RIGHT), ("waited", WAITED_RIGHT)] {
            text(&mut svg, right, HEAD - 8.0, "text-anchor=\"end\" fill=\"#555555\"", words);
        }
        if rows.is_empty() {
            text(&mut svg, LABEL_WIDTH + 8.0, HEAD + 11.0, "", "nothing was read");
        }
        self.milestones(&mut svg, &scale, bottom);
        svg += "</g>\n</svg>\n";
        svg
    }

    fn scale(&self, rows: &[FileRow]) -> Scale {
        let reads = || rows.iter().flat_map(|row| &row.reads);
        let first = reads().map(|read| read.at).min();
        let last = reads().map(|read| read.at + u64::from(read.waited)).max();
        let init = self.trace.milestones.iter().find(|milestone| milestone.name == "init").map(|init| init.at);
        let begin = init.into_iter().chain(first).min().unwrap_or(0);
        let shown = self.trace.milestones.iter().map(|milestone| milestone.at);
        let shown = shown.filter(|at| *at <= first.unwrap_or(0).saturating_add(self.until));
        let end = shown.chain(last).max().unwrap_or(0).max(begin + 1000);
        // A little room behind the last one.
        let end = end + (end - begin) / 50;
        Scale { begin, end, left: LABEL_WIDTH + if init.is_some() { KERNEL_WIDTH } else { 0.0 } }
    }

    /// Ticks at round times since the kernel's start, or, where there is no guest, since the first read.
    fn axis(&self, svg: &mut String, scale: &Scale, bottom: f64) {
        let has_kernel = scale.left > LABEL_WIDTH;
        let zero = if has_kernel { 0 } else { scale.begin };
        let step = round_step((scale.end - scale.begin) / 8);
        let mut at = (scale.begin - zero).div_ceil(step) * step;
        while zero + at <= scale.end {
            let x = scale.x(zero + at);
            line(svg, (x, HEAD - 4.0), (x, bottom + 4.0), "#dddddd", "");
            let label = duration(at);
            text(svg, x, bottom + 16.0, "text-anchor=\"middle\" fill=\"#555555\"", &label);
            at += step;
        }
        if has_kernel {
            let _ = writeln!(
                svg,
                "<rect x=\"{LABEL_WIDTH}\" y=\"{HEAD}\" width=\"{KERNEL_WIDTH}\" height=\"{:.1}\" fill=\"#eeeeee\"/>",
                bottom - HEAD
            );
            let middle = LABEL_WIDTH + KERNEL_WIDTH / 2.0;
            let attributes = "text-anchor=\"middle\" fill=\"#555555\"";
            text(svg, middle, bottom + 16.0, attributes, &format!("0 to {}", duration(scale.begin)));
            text(svg, middle, bottom + 30.0, attributes, "not to scale");
        }
        let since = if has_kernel { "time since the guest's kernel started" } else { "time since the first read" };
        let middle = LABEL_WIDTH + CHART_WIDTH / 2.0;
        text(svg, middle, bottom + 44.0, "text-anchor=\"middle\" fill=\"#555555\"", since);
    }

    /// Vertical lines with names above the rows, on two levels where they are close.
    fn milestones(&self, svg: &mut String, scale: &Scale, bottom: f64) {
        let has_kernel = scale.left > LABEL_WIDTH;
        let kernel = has_kernel.then(|| (0, "kernel starts".to_owned()));
        let named = self.trace.milestones.iter().map(|milestone| {
            let words = match milestone.name.as_str() {
                "init" => "guest-init runs",
                "mounted" => "root mounted",
                "started" => "program starts",
                "ready" => "system is up",
                other => other,
            };
            let text = printable(&milestone.text);
            (milestone.at, if text.is_empty() { words.to_owned() } else { format!("{words}: {text}") })
        });
        let mut ends = [f64::MIN; 3];
        for (at, words) in kernel.into_iter().chain(named).filter(|(at, _)| *at <= scale.end) {
            let (x, words) = (scale.x(at), elide(&words, 40));
            // DejaVu's letters are about 6 pixels wide at this size.
            let width = 6.0 * words.chars().count() as f64 + 10.0;
            let level = ends.iter().position(|end| *end < x).unwrap_or(ends.len() - 1);
            ends[level] = x + width;
            let y = HEAD - 8.0 - 12.0 * level as f64;
            line(svg, (x, y - 8.0), (x, bottom), "#9467bd", "stroke-dasharray=\"4 2\"");
            text(svg, x + 3.0, y, "fill=\"#6a3d9a\"", &words);
        }
    }
}

fn draw_row(svg: &mut String, row: &FileRow, scale: &Scale, y: f64, shaded: bool) {
    if shaded {
        let width = LABEL_WIDTH + CHART_WIDTH + SUM_WIDTH;
        let _ =
            writeln!(svg, "<rect y=\"{y:.1}\" width=\"{width}\" height=\"{ROW}\" fill=\"#888888\" opacity=\"0.07\"/>");
    }
    let reads = if row.reads.len() == 1 { "1 read".to_owned() } else { format!("{} reads", row.reads.len()) };
    let tip = format!("{}: {reads}, {}, waited {}", row.name, size(row.bytes), duration(row.waited));
    let _ = writeln!(svg, "<g><title>{}</title>", escape(&tip));
    text(svg, LABEL_WIDTH - 6.0, y + 11.0, "text-anchor=\"end\"", &elide(&row.name, LABEL_LETTERS));
    let mut bar: Option<(Origin, f64, f64)> = None;
    for read in &row.reads {
        let (from, to) = (scale.x(read.at), scale.x(read.at + u64::from(read.waited)));
        let to = to.max(from + SHORTEST);
        bar = match bar {
            Some((origin, begin, end)) if origin == read.origin && from <= end + TOGETHER => {
                Some((origin, begin, end.max(to)))
            }
            other => {
                draw_bar(svg, other, y);
                Some((read.origin, from, to))
            }
        };
    }
    draw_bar(svg, bar, y);
    for (words, right) in [(size(row.bytes), READ_RIGHT), (duration(row.waited), WAITED_RIGHT)] {
        text(svg, right, y + 11.0, "text-anchor=\"end\" fill=\"#555555\"", &words);
    }
    *svg += "</g>\n";
}

fn draw_bar(svg: &mut String, bar: Option<(Origin, f64, f64)>, y: f64) {
    if let Some((origin, from, to)) = bar {
        let (y, width, height) = (y + 2.5, to - from, ROW - 5.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" fill=\"{}\"/>",
            colour(origin)
        );
    }
}

fn legend(svg: &mut String) {
    let mut x = 0.0;
    for origin in Origin::ALL {
        let _ = writeln!(svg, "<rect x=\"{x}\" y=\"52\" width=\"10\" height=\"10\" fill=\"{}\"/>", colour(origin));
        text(svg, x + 14.0, 61.0, "", meaning(origin));
        x += 6.0 * meaning(origin).len() as f64 + 32.0;
    }
    let words = "bars are as long as the program waited; what the page cache answers is not seen";
    text(svg, 0.0, 77.0, "fill=\"#555555\"", words);
}

/// A round number of microseconds that is at least `least`: 1, 2 or 5 times a power of ten.
fn round_step(least: u64) -> u64 {
    let mut power = 1;
    loop {
        if let Some(step) = [1, 2, 5].map(|digit| digit * power).into_iter().find(|step| *step >= least) {
            return step;
        }
        power *= 10;
    }
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::reads::{Extent, Read};
    use lazyroot_proto::{Algorithm, verity};

    use super::*;
    use crate::store::Milestone;

    fn index(objects: u32) -> ObjectIndex {
        let entry = |number: u32| (verity::digest(Algorithm::Sha256, &number.to_le_bytes()), 100_000);
        ObjectIndex::new(Algorithm::Sha256, (0..objects).map(entry).collect()).unwrap()
    }

    fn trace(reads: Vec<Read>) -> Trace {
        let milestone = |name: &str, at| Milestone { name: name.into(), at, text: String::new() };
        let milestones = vec![milestone("init", 2_000_000), milestone("mounted", 2_050_000)];
        Trace { reads, milestones, ..Trace::new(&verity::digest(Algorithm::Sha256, b""), 0) }
    }

    fn read(position: u32, at: u64, waited: u32, origin: Origin) -> Read {
        Read { extent: Extent { position, block: 0, blocks: 1 }, at, waited, origin }
    }

    fn draw(trace: &Trace, objects: u32, names: &dyn Fn(u32) -> String) -> String {
        Waterfall { trace, index: &index(objects), names, title: "a <VM>", until: u64::MAX }.svg()
    }

    #[test]
    fn rows_are_in_the_order_of_first_reading() {
        let reads = vec![
            read(5, 300, 7, Origin::Host),
            read(2, 100, 5, Origin::Profile),
            read(5, 200, 1, Origin::Neighbour),
            read(1, 900, 1, Origin::Host),
        ];
        let rows = file_rows(&trace(reads), &index(9), &|position| format!("/{position}"), 700);
        let seen: Vec<_> = rows.iter().map(|row| (row.name.as_str(), row.first(), row.waited, row.bytes)).collect();
        assert_eq!(seen, [("/2", 100, 5, 4096), ("/5", 200, 8, 8192)]);
    }

    #[test]
    fn the_picture_is_xml_whatever_files_are_called() {
        let nasty = "</text><script>alert(1)</script>\u{0}\u{1b}[31m&\"'\u{ffff}\u{85}";
        let reads =
            Origin::ALL.iter().zip(1..).map(|(origin, at)| read(at, 2_000_000 + 1000 * u64::from(at), 900, *origin));
        let mut trace = trace(reads.collect());
        trace.milestones.push(Milestone { name: "warning".into(), at: 2_003_000, text: nasty.into() });
        let svg = draw(&trace, 9, &|_| nasty.into());
        let document = roxmltree::Document::parse(&svg).expect("well-formed");
        assert!(document.descendants().all(|node| !node.has_tag_name("script")));
        for origin in Origin::ALL {
            let bars = document.descendants().filter(|node| node.attribute("fill") == Some(colour(origin)));
            assert_eq!(bars.count(), 2, "one in the legend, one in a row: {origin:?}");
        }
        let words: Vec<&str> = document.descendants().filter_map(|node| node.text()).collect();
        for word in ["a <VM>", "kernel starts", "guest-init runs", "root mounted"] {
            assert!(words.contains(&word), "{word}");
        }
    }

    #[test]
    fn many_files_are_folded_and_counted() {
        let reads = (0..1000).map(|number| read(number, 2_000_000 + u64::from(number), number, Origin::Host)).collect();
        let svg = draw(&trace(reads), 1000, &|position| format!("/file-{position}"));
        assert!(svg.contains("700 more files") && svg.contains("1000 files, 1000 reads"));
        assert!(svg.contains(">/file-999<") && svg.contains(">/file-700<") && !svg.contains(">/file-699<"));
        roxmltree::Document::parse(&svg).expect("well-formed");
    }

    #[test]
    fn empty_traces_and_those_without_a_guest_are_drawn_too() {
        for trace in [trace(vec![]), Trace { milestones: vec![], ..trace(vec![read(0, 1 << 50, 9, Origin::Host)]) }] {
            roxmltree::Document::parse(&draw(&trace, 1, &|_| "/x".into())).expect("well-formed");
        }
        let none = Trace { milestones: vec![], ..trace(vec![]) };
        assert!(draw(&none, 1, &|_| "/x".into()).contains("nothing was read"));
    }

    #[test]
    fn times_are_round_and_short() {
        assert_eq!([0, 1, 7, 99, 100, 2001].map(round_step), [1, 1, 10, 100, 100, 5000]);
        assert_eq!([7, 1500, 2_180_000, 61_000_000].map(duration), ["7 µs", "1.5 ms", "2.18 s", "61 s"]);
        assert_eq!(elide("abcdef", 3), "…ef");
    }
}
