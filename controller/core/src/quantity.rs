//! Kubernetes' quantities (`100Mi`, `1500m`, `2e3`): parsing, comparing, adding, and the one canonical way to
//! write each (k8s.io/apimachinery resource.Quantity).

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

/// An amount, exact to 10^-9; anything finer is rounded up, as in Kubernetes.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Ki, Mi, Gi, ...
    Binary,
    /// m, k, M, G, ...
    Decimal,
    /// 1e3
    Exponent,
}

const NANO: i128 = 1_000_000_000;
/// Kubernetes caps what it reads at 2^63-1.
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;
const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];

/// Why a text is no quantity, in Kubernetes' words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    pub const ZERO: Quantity = Quantity { nanos: 0, format: Format::Decimal };

    /// Whole units written with binary suffixes: bytes.
    pub fn bytes(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * NANO, format: Format::Binary }
    }

    /// Thousandths: milli-cores.
    pub fn millis(value: i64) -> Quantity {
        Quantity { nanos: i128::from(value) * (NANO / 1000), format: Format::Decimal }
    }

    /// The quantity in a JSON value; numbers count too (`cpu: 1`).
    pub fn of(value: &Value) -> Result<Quantity, ParseError> {
        match value {
            Value::String(text) => text.parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseError::Format),
        }
    }

    /// The quantity in a JSON value, zero if there is none.
    pub fn or_zero(value: &Value) -> Quantity {
        Quantity::of(value).unwrap_or(Quantity::ZERO)
    }

    /// Whole units, rounded up: bytes.
    pub fn value(self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded up: milli-cores.
    pub fn milli_value(self) -> i64 {
        saturate(div_up(self.nanos, NANO / 1000))
    }

    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    pub fn is_positive(self) -> bool {
        self.nanos > 0
    }
}

/// `value` written canonically (`"1024Mi"` and `1024Mi` become `"1Gi"`); None if it is no quantity.
pub fn canonical(value: &Value) -> Option<String> {
    Quantity::of(value).ok().map(|q| q.to_string())
}

fn div_up(a: i128, b: i128) -> i128 {
    a.div_euclid(b) + i128::from(a.rem_euclid(b) != 0)
}

fn saturate(n: i128) -> i64 {
    n.clamp(i128::from(i64::MIN), i128::from(i64::MAX)) as i64
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Quantity) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Quantity) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Quantity) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl std::ops::Add for Quantity {
    type Output = Quantity;

    fn add(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_add(other.nanos), format }
    }
}

impl std::ops::Sub for Quantity {
    type Output = Quantity;

    fn sub(self, other: Quantity) -> Quantity {
        let format = if self.is_zero() { other.format } else { self.format };
        Quantity { nanos: self.nanos.saturating_sub(other.nanos), format }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Quantity>>(iter: I) -> Quantity {
        iter.fold(Quantity::ZERO, |a, b| a + b)
    }
}

/// What a suffix stands for: `2^shift * 10^exponent`.
fn suffix_scale(suffix: &str) -> Option<(Format, u32, i32)> {
    if let Some(power) = BINARY.iter().skip(1).position(|s| *s == suffix) {
        return Some((Format::Binary, 10 * (power as u32 + 1), 0));
    }
    if let Some(index) = DECIMAL.iter().position(|s| *s == suffix) {
        return Some((Format::Decimal, 0, 3 * (index as i32 - 3)));
    }
    let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    // Beyond these there is nothing left to tell apart: the caps are 2^63-1 and 10^-9.
    Some((Format::Exponent, 0, exponent.clamp(-100, 100)))
}

/// `n * 10^exponent`, rounded up, saturating.
fn times_ten(n: i128, exponent: i32) -> i128 {
    match 10_i128.checked_pow(exponent.unsigned_abs()) {
        Some(power) if exponent >= 0 => n.saturating_mul(power),
        Some(power) => div_up(n, power),
        None if exponent >= 0 => n.saturating_mul(i128::MAX),
        None => i128::from(n != 0),
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Quantity, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(ParseError::Format);
        }
        let (format, shift, exponent) = suffix_scale(suffix).ok_or(ParseError::Suffix)?;

        // Eighteen decimal places are kept; what is beyond them can only round up.
        let (kept, dropped) = fraction.split_at(fraction.len().min(18));
        let digits = whole.bytes().chain(kept.bytes()).map(|b| i128::from(b - b'0'));
        let mantissa = digits.fold(0_i128, |n, digit| n.saturating_mul(10).saturating_add(digit));
        let mantissa = mantissa.saturating_add(i128::from(dropped.bytes().any(|b| b != b'0')));
        let nanos = times_ten(mantissa.saturating_mul(1 << shift), exponent + 9 - kept.len() as i32);
        let nanos = nanos.min(MAX_NANOS);
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }
}

impl fmt::Display for Quantity {
    /// No fraction, and the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let whole = self.nanos / NANO;
        if self.format == Format::Binary && self.nanos % NANO == 0 && whole.abs() >= 1024 {
            let mut number = whole;
            let mut power = 0;
            while number % 1024 == 0 && power + 1 < BINARY.len() {
                number /= 1024;
                power += 1;
            }
            return write!(f, "{number}{}", BINARY[power]);
        }
        let mut number = self.nanos;
        let mut power = 0;
        while number % 1000 == 0 && power + 1 < DECIMAL.len() {
            number /= 1000;
            power += 1;
        }
        match (self.format, 3 * (power as i32 - 3)) {
            (Format::Exponent, 0) => write!(f, "{number}"),
            (Format::Exponent, exponent) => write!(f, "{number}e{exponent}"),
            _ => write!(f, "{number}{}", DECIMAL[power]),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn q(text: &str) -> Quantity {
        text.parse().unwrap()
    }

    #[test]
    fn a_quantity_is_written_in_its_canonical_form() {
        let cases = [
            ("0", "0"),
            ("0Gi", "0"),
            ("1Gi", "1Gi"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1.5Ki", "1536"),
            ("1000", "1k"),
            ("100000", "100k"),
            ("0.1", "100m"),
            ("1500m", "1500m"),
            ("2000m", "2"),
            ("1e3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("1Ei", "1Ei"),
            ("-1500m", "-1500m"),
            ("+1", "1"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("100Mi", "100Mi"),
            ("512Ki", "512Ki"),
            ("999999999999999999999999", "9223372036854775807"),
        ];
        for (text, canonical) in cases {
            assert_eq!(q(text).to_string(), canonical, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_in_kubernetes_words() {
        for text in ["", "Gi", "-", "1.2.3", "abc"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Format), "{text}");
        }
        for text in ["1GiB", "1gb", "1e", "1 Gi", "1ki"] {
            assert_eq!(text.parse::<Quantity>(), Err(ParseError::Suffix), "{text}");
        }
    }

    #[test]
    fn quantities_compare_by_amount_however_they_are_written() {
        assert_eq!(q("1Gi"), q("1024Mi"));
        assert_eq!(q("0.1"), q("100m"));
        assert!(q("1G") < q("1Gi"));
        assert_eq!(q("250m").milli_value(), 250);
        assert_eq!(q("1n").milli_value(), 1);
        assert_eq!(q("1.5").value(), 2);
        assert_eq!(q("100Mi").value(), 104_857_600);
        assert_eq!((q("1Gi") + q("1Gi")).to_string(), "2Gi");
        assert_eq!(Quantity::of(&serde_json::json!(2)).unwrap(), q("2"));
    }

    proptest! {
        #[test]
        fn the_canonical_form_means_the_same_and_is_canonical(text in "[+-]?[0-9]{1,25}(\\.[0-9]{0,25})?(|m|k|M|G|Ki|Mi|Ei|e3|e-7|E12)") {
            let parsed = q(&text);
            let written = parsed.to_string();
            prop_assert_eq!(q(&written), parsed);
            prop_assert_eq!(q(&written).to_string(), written);
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            let _ = text.parse::<Quantity>();
        }
    }
}
