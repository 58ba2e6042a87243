//! What the demo prints: a line per step with a mark and its time.
//!
//! Decides the form; colours only on a terminal.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use super::DemoError;
use crate::clock;

const GREEN: &str = "32";
const RED: &str = "31";
const BOLD: &str = "1";
const DIM: &str = "2";
const WIDTH: usize = 46;

/// Prints to standard output.
#[derive(Debug)]
pub struct Transcript {
    colours: bool,
    begun: Instant,
}

impl Transcript {
    pub fn on_stdout(begun: Instant) -> Transcript {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Transcript { colours, begun }
    }

    /// Does something and tells what came of it; a failure is told by whoever ends the story.
    pub fn step<T>(
        &self,
        what: &str,
        act: impl FnOnce() -> Result<(String, T), DemoError>,
    ) -> Result<T, DemoError> {
        let begun = clock::now();
        let (outcome, value) = act().inspect_err(|error| {
            if !matches!(error, DemoError::Interrupted) {
                self.print(&format!("  {} {what}", self.paint(RED, "✗")));
            }
        })?;
        let time = self.paint(DIM, &format!("{:>7}", short(begun.elapsed())));
        self.print(&format!("  {} {what:WIDTH$} {time}  {outcome}", self.paint(GREEN, "✓")));
        Ok(value)
    }

    pub fn title(&self, text: &str) {
        let at = self.paint(DIM, &format!("[{:.1} s]", self.begun.elapsed().as_secs_f64()));
        self.print(&format!("\n{} {at}", self.paint(BOLD, text)));
    }

    /// A detail of the step before.
    pub fn line(&self, text: &str) {
        self.print(&format!("      {text}"));
    }

    pub fn note(&self, text: &str) {
        self.print(&self.paint(DIM, text));
    }

    pub fn done(&self, text: &str) {
        self.print(&format!("\n{} {text}", self.paint(GREEN, "✓")));
    }

    pub fn failed(&self, reason: &str) {
        self.print(&format!("\n{} {reason}", self.paint(RED, "✗")));
    }

    pub fn log(&self, title: &str, lines: &[&str]) {
        self.print(&format!("\n{}", self.paint(BOLD, title)));
        lines.iter().for_each(|line| self.line(line));
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn print(&self, text: &impl fmt::Display) {
        // Nobody reads any more: the demo goes on, its exit code still counts.
        let _ = writeln!(std::io::stdout(), "{text}");
    }
}

/// A time as people say it.
pub fn short(time: Duration) -> String {
    if time < Duration::from_secs(1) {
        format!("{} ms", time.as_millis())
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}
