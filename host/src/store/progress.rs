//! How far an import is: bars on a terminal's stderr, nothing anywhere else.

use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where progress is shown.
#[derive(Clone, Debug)]
pub struct Progress {
    bars: MultiProgress,
}

impl Progress {
    /// Bars on stderr if it is a terminal, otherwise nothing.
    pub fn stderr() -> Self {
        Self { bars: MultiProgress::new() }
    }

    /// Nothing.
    pub fn hidden() -> Self {
        Self { bars: MultiProgress::with_draw_target(ProgressDrawTarget::hidden()) }
    }

    /// A line that counts bytes, of `total` if that is known. It goes away when its work ends.
    pub(super) fn bytes(&self, what: String, total: Option<u64>) -> ProgressBar {
        match total {
            Some(total) => self.bar(ProgressBar::new(total), "{msg} {wide_bar} {bytes}/{total_bytes} {eta}", what),
            None => self.bar(ProgressBar::no_length(), "{spinner} {msg} {bytes}", what),
        }
    }

    /// A line that counts things, of `total` if that is known.
    pub(super) fn items(&self, what: String, total: Option<u64>) -> ProgressBar {
        match total {
            Some(total) => self.bar(ProgressBar::new(total), "{msg} {wide_bar} {pos}/{len}", what),
            None => self.bar(ProgressBar::no_length(), "{spinner} {msg} {pos}", what),
        }
    }

    /// A line for a step of unknown length. Only imports have one.
    #[cfg(target_os = "linux")]
    pub(super) fn step(&self, what: String) -> ProgressBar {
        self.bar(ProgressBar::no_length(), "{spinner} {msg}", what)
    }

    fn bar(&self, bar: ProgressBar, template: &str, what: String) -> ProgressBar {
        let style = ProgressStyle::with_template(template).expect("the template is well-formed");
        let bar = self.bars.add(bar.with_style(style).with_message(what));
        bar.enable_steady_tick(Duration::from_millis(100));
        bar
    }
}
