//! Values that Kubernetes keeps as text with a meaning: reading them, and writing each in its one canonical form.
//!
//! Errors are those of Go's own parsers, since that is what users of Kubernetes see.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_controller_core::quantity::{ParseError, Quantity};
use jiff::Timestamp;
use jiff::civil::DateTime;

/// `resource.Quantity`, canonical: `1024Mi` is `1Gi`.
pub fn quantity(text: &str) -> Result<String, String> {
    text.trim().parse::<Quantity>().map(|q| q.to_string()).map_err(|e| e.to_string())
}

pub fn not_a_quantity() -> String {
    ParseError::Format.to_string()
}

/// `metav1.Time`: UTC, whole seconds.
pub fn time(text: &str) -> Result<String, String> {
    let time = parse_time(text, false)?;
    Ok(time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
}

/// `metav1.MicroTime`: UTC, six decimals.
pub fn micro_time(text: &str) -> Result<String, String> {
    let time = parse_time(text, true)?;
    Ok(time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string())
}

/// base64 (standard, padded; line breaks are skipped, as Go does).
pub fn bytes(text: String) -> Result<String, String> {
    let text = if text.contains(['\r', '\n']) { text.replace(['\r', '\n'], "") } else { text };
    match STANDARD.decode(&text) {
        Ok(_) => Ok(text),
        Err(e) => {
            let at = match e {
                base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                base64::DecodeError::InvalidLength(at) => at,
                base64::DecodeError::InvalidPadding => text.len(),
            };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

/// `text` in double quotes as Go's strconv.Quote writes it.
pub fn go_quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// Go's time.Parse with RFC 3339, seconds with a free fraction or (`micro`) with exactly six decimals.
fn parse_time(text: &str, micro: bool) -> Result<Timestamp, String> {
    let layout = if micro { "2006-01-02T15:04:05.000000Z07:00" } else { "2006-01-02T15:04:05Z07:00" };
    let mut cursor = Cursor { text, layout, rest: text };
    let year = cursor.digits(4, "2006")?;
    cursor.literal("-")?;
    let month = cursor.ranged(2, "01", 1..=12, "month")?;
    cursor.literal("-")?;
    let day = cursor.digits(2, "02")?;
    cursor.literal("T")?;
    let hour = cursor.hour()?;
    cursor.literal(":")?;
    let minute = cursor.ranged(2, "04", 0..=59, "minute")?;
    cursor.literal(":")?;
    let second = cursor.ranged(2, "05", 0..=59, "second")?;
    let nanosecond = cursor.fraction(micro)?;
    let offset = cursor.offset()?;
    if !cursor.rest.is_empty() {
        return Err(format!("parsing time {text:?}: extra text: {:?}", cursor.rest));
    }
    let out_of_range = |what: &str| format!("parsing time {text:?}: {what} out of range");
    let date = DateTime::new(
        year as i16,
        month as i8,
        day as i8,
        hour as i8,
        minute as i8,
        second as i8,
        nanosecond as i32,
    )
    .map_err(|_| out_of_range("day"))?;
    let utc = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|_| out_of_range("year"))?.timestamp();
    utc.checked_sub(jiff::SignedDuration::from_secs(offset)).map_err(|_| out_of_range("year"))
}

/// What is left of a time's text.
struct Cursor<'a> {
    text: &'a str,
    layout: &'static str,
    rest: &'a str,
}

impl Cursor<'_> {
    fn wrong(&self, element: &str) -> String {
        format!(
            "parsing time {:?} as {:?}: cannot parse {:?} as {element:?}",
            self.text, self.layout, self.rest
        )
    }

    /// The first `count` bytes, if they are digits.
    fn digits(&mut self, count: usize, element: &str) -> Result<u32, String> {
        match self.rest.get(..count) {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                self.rest = &self.rest[count..];
                Ok(digits.bytes().fold(0, |n, b| n * 10 + u32::from(b - b'0')))
            }
            _ => Err(self.wrong(element)),
        }
    }

    fn ranged(
        &mut self,
        count: usize,
        element: &str,
        range: std::ops::RangeInclusive<u32>,
        name: &str,
    ) -> Result<u32, String> {
        let number = self.digits(count, element)?;
        if range.contains(&number) {
            Ok(number)
        } else {
            Err(format!("parsing time {:?}: {name} out of range", self.text))
        }
    }

    /// Hours may be of one digit.
    fn hour(&mut self) -> Result<u32, String> {
        let two = self.rest.len() > 1 && self.rest.as_bytes()[1].is_ascii_digit();
        self.ranged(if two { 2 } else { 1 }, "15", 0..=23, "hour")
    }

    fn literal(&mut self, literal: &str) -> Result<(), String> {
        self.rest = self.rest.strip_prefix(literal).ok_or_else(|| self.wrong(literal))?;
        Ok(())
    }

    /// Nanoseconds.
    fn fraction(&mut self, micro: bool) -> Result<u32, String> {
        let digits = self.rest.strip_prefix(['.', ',']);
        let count = digits.map_or(0, |d| d.bytes().take_while(u8::is_ascii_digit).count());
        let (Some(digits), true) = (digits, count > 0 && (!micro || count >= 6)) else {
            return if micro { Err(self.wrong(".000000")) } else { Ok(0) };
        };
        let count = if micro { 6 } else { count };
        self.rest = &digits[count..];
        let nanos = digits[..count].bytes().chain(std::iter::repeat(b'0')).take(9);
        Ok(nanos.fold(0, |n, b| n * 10 + u32::from(b - b'0')))
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Result<i64, String> {
        if let Some(rest) = self.rest.strip_prefix('Z') {
            self.rest = rest;
            return Ok(0);
        }
        let wrong = self.wrong("Z07:00");
        let sign = match self.rest.as_bytes().first() {
            Some(b'+') => 1,
            Some(b'-') => -1,
            _ => return Err(wrong),
        };
        self.rest = &self.rest[1..];
        let text = self.text;
        let out_of_range = |what| Err(format!("parsing time {text:?}: time zone offset {what} out of range"));
        let hours = self.digits(2, "").map_err(|_| wrong.clone())?;
        if hours > 24 {
            return out_of_range("hour");
        }
        self.literal(":").map_err(|_| wrong.clone())?;
        let minutes = self.digits(2, "").map_err(|_| wrong)?;
        if minutes > 60 {
            return out_of_range("minute");
        }
        Ok(sign * i64::from(hours * 3600 + minutes * 60))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        assert_eq!(time("2026-11-01T05:00:00.123+02:00").unwrap(), "2026-11-01T03:00:00Z");
        assert_eq!(time("2026-11-01T05:00:00Z").unwrap(), "2026-11-01T05:00:00Z");
        assert_eq!(micro_time("2026-11-01T05:00:00.123456Z").unwrap(), "2026-11-01T05:00:00.123456Z");
        assert_eq!(micro_time("2026-11-01T05:00:00.000000-00:30").unwrap(), "2026-11-01T05:30:00.000000Z");
    }

    #[test]
    fn a_time_that_cannot_be_read_says_where_in_the_words_of_go() {
        let cases = [
            ("foo", r#"parsing time "foo" as "2006-01-02T15:04:05Z07:00": cannot parse "foo" as "2006""#),
            ("", r#"parsing time "" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "2006""#),
            ("2026-13-01T00:00:00Z", r#"parsing time "2026-13-01T00:00:00Z": month out of range"#),
            ("2026-02-30T00:00:00Z", r#"parsing time "2026-02-30T00:00:00Z": day out of range"#),
            ("2026-11-01T25:00:00Z", r#"parsing time "2026-11-01T25:00:00Z": hour out of range"#),
            (
                "2026-11-01T05:00:00",
                r#"parsing time "2026-11-01T05:00:00" as "2006-01-02T15:04:05Z07:00": cannot parse "" as "Z07:00""#,
            ),
            ("2026-11-01T05:00:00.123Z x", r#"parsing time "2026-11-01T05:00:00.123Z x": extra text: " x""#),
        ];
        for (text, error) in cases {
            assert_eq!(time(text).unwrap_err(), error);
        }
        assert_eq!(
            micro_time("2026-11-01T05:00:00Z").unwrap_err(),
            r#"parsing time "2026-11-01T05:00:00Z" as "2006-01-02T15:04:05.000000Z07:00": cannot parse "Z" as ".000000""#
        );
    }

    #[test]
    fn base64_may_be_broken_into_lines() {
        assert_eq!(bytes("YQ\n==".into()).unwrap(), "YQ==");
        assert_eq!(bytes("!!".into()).unwrap_err(), "illegal base64 data at input byte 0");
        assert_eq!(bytes("YWJj$".into()).unwrap_err(), "illegal base64 data at input byte 4");
        assert!(bytes("YQ".into()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = (time(&text), micro_time(&text), quantity(&text), bytes(text.clone()), go_quote(&text));
        }

        #[test]
        fn the_canonical_time_is_read_back_as_it_is(
            text in "[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2]?[0-9]:[0-5][0-9]:[0-6][0-9](\\.[0-9]{1,12})?(Z|[+-][0-2][0-9]:[0-6][0-9])"
        ) {
            if let Ok(written) = time(&text) {
                prop_assert_eq!(time(&written).unwrap(), written);
            }
        }
    }
}
