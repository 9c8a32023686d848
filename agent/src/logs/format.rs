//! The CRI log format: `2026-11-21T08:00:00.000000000Z stdout F text`.

/// One line of a file.
#[derive(Debug, PartialEq)]
pub(super) struct Line<'a> {
    pub time: &'a [u8],
    /// The container's line ends here.
    pub full: bool,
    pub content: &'a [u8],
}

impl<'a> Line<'a> {
    /// Without the line feed.
    pub fn parse(line: &'a [u8]) -> Option<Line<'a>> {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let content = parts.next()?;
        if stream != b"stdout" && stream != b"stderr" {
            return None;
        }
        // Tags may be several, with colons; the first is ours.
        let full = match tag.split(|byte| *byte == b':').next()? {
            b"F" => true,
            b"P" => false,
            _ => return None,
        };
        Some(Line { time, full, content })
    }

    pub fn nanoseconds(&self) -> Option<i64> {
        let time: jiff::Timestamp = std::str::from_utf8(self.time).ok()?.parse().ok()?;
        i64::try_from(time.as_nanosecond()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_may_have_spaces_and_be_empty() {
        let line = Line::parse(b"2026-11-21T08:00:00.5Z stderr P  a b ").unwrap();
        assert_eq!((line.full, line.content), (false, &b" a b "[..]));
        assert_eq!(line.nanoseconds(), Some(1_795_248_000_500_000_000));
        assert_eq!(Line::parse(b"t stdout F ").unwrap().content, b"");
    }

    #[test]
    fn anything_else_is_no_line() {
        for bad in [&b""[..], b"x", b"t stdout F", b"t other F x", b"t stdout Q x"] {
            assert_eq!(Line::parse(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
