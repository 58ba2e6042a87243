//! One line of a CRI log file.
//!
//! Decides what a line means. A line that is not in the format (a torn one after a power cut) is nothing.

use crate::clock::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    pub time: Timestamp,
    pub stream: LogStream,
    /// More of the same line follows: no newline after it.
    pub partial: bool,
    pub text: Vec<u8>,
}

impl LogLine {
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = Timestamp::parse(std::str::from_utf8(fields.next()?).ok()?)?;
        let stream = match fields.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        let partial = fields.next()?.first() == Some(&b'P');
        Some(Self { time, stream, partial, text: fields.next()?.to_vec() })
    }

    /// The bytes that `logs` shows: the text, a newline unless the line goes on, the time if wished.
    pub fn render(&self, timestamps: bool) -> Vec<u8> {
        let mut bytes = Vec::new();
        if timestamps {
            bytes.extend_from_slice(format!("{} ", self.time).as_bytes());
        }
        bytes.extend_from_slice(&self.text);
        if !self.partial {
            bytes.push(b'\n');
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cri_lines_parse_and_others_are_nothing() {
        let line = LogLine::parse(b"1970-01-01T00:00:01.000000000Z stderr P a  b").unwrap();
        assert_eq!(
            (line.stream, line.partial, line.text.as_slice()),
            (LogStream::Stderr, true, &b"a  b"[..])
        );
        assert_eq!(line.render(false), b"a  b");
        let empty = LogLine::parse(b"1970-01-01T00:00:01.000000000Z stdout F ").unwrap();
        assert_eq!(empty.render(false), b"\n");
        for torn in [&b""[..], b"1970-01-01T", b"1970-01-01T00:00:01.0Z stdout", b"x stdout F y"] {
            assert_eq!(LogLine::parse(torn), None);
        }
    }
}
