//! Quantities: `500m`, `64Mi`, `1e3` (Kubernetes API reference, "Quantity").
//!
//! Decides their numeric value in thousandths. It must not know which resource is meant.

use std::fmt;

/// An amount in thousandths, exact for every suffix from `m` up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Quantity(pub i128);

/// The text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a quantity: write a number with an optional suffix such as m, k, M, Ki, Mi or Gi")]
pub struct QuantityError(pub String);

const SUFFIXES: [(&str, i128, i128); 16] = [
    ("Ki", 1 << 10, 1),
    ("Mi", 1 << 20, 1),
    ("Gi", 1 << 30, 1),
    ("Ti", 1 << 40, 1),
    ("Pi", 1 << 50, 1),
    ("Ei", 1 << 60, 1),
    ("n", 1, 1_000_000_000),
    ("u", 1, 1_000_000),
    ("m", 1, 1_000),
    ("k", 1_000, 1),
    ("M", 1_000_000, 1),
    ("G", 1_000_000_000, 1),
    ("T", 1_000_000_000_000, 1),
    ("P", 1_000_000_000_000_000, 1),
    ("E", 1_000_000_000_000_000_000, 1),
    ("", 1, 1),
];

impl Quantity {
    /// Parses the text form; parts below a thousandth are rounded up, as Kubernetes does.
    pub fn parse(text: &str) -> Result<Quantity, QuantityError> {
        let fail = || QuantityError(text.chars().take(64).collect());
        let (number, multiply, divide) = split(text).ok_or_else(fail)?;
        let (mantissa, exponent) = match number.split_once(['e', 'E']) {
            Some((head, tail)) => (head, tail.parse::<i32>().map_err(|_| fail())?),
            None => (number, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = format!("{whole}{fraction}");
        if digits.trim_start_matches(['+', '-']).is_empty()
            || digits.len() > 24
            || !(-18..=18).contains(&exponent)
        {
            return Err(fail());
        }
        let value: i128 = digits.parse().map_err(|_| fail())?;
        let scale = exponent - fraction.len() as i32;
        let up = value.checked_mul(multiply).and_then(|v| v.checked_mul(1000)).ok_or_else(fail)?;
        let up = if scale > 0 { up.checked_mul(10i128.pow(scale as u32)).ok_or_else(fail)? } else { up };
        let below = if scale < 0 { 10i128.checked_pow((-scale) as u32).ok_or_else(fail)? } else { 1 };
        let below = below.checked_mul(divide).ok_or_else(fail)?;
        Ok(Quantity(round_up(up, below)))
    }

    /// Whole units, rounded up: bytes for memory, pods for pods.
    pub fn units(self) -> i64 {
        i64::try_from(round_up(self.0, 1000)).unwrap_or(if self.0 < 0 { i64::MIN } else { i64::MAX })
    }

    /// Thousandths: millicores for cpu.
    pub fn millis(self) -> i64 {
        i64::try_from(self.0).unwrap_or(if self.0 < 0 { i64::MIN } else { i64::MAX })
    }
}

fn round_up(value: i128, by: i128) -> i128 {
    let (quotient, rest) = (value / by, value % by);
    if rest > 0 { quotient + 1 } else { quotient }
}

fn split(text: &str) -> Option<(&str, i128, i128)> {
    for (suffix, multiply, divide) in SUFFIXES {
        let Some(number) = text.strip_suffix(suffix) else { continue };
        let plain =
            number.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'+' | b'-' | b'e' | b'E'));
        if plain && !number.is_empty() && number.ends_with(|c: char| c.is_ascii_digit() || c == '.') {
            return Some((number, multiply, divide));
        }
    }
    None
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 % 1000 == 0 { write!(f, "{}", self.0 / 1000) } else { write!(f, "{}m", self.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_mean_what_the_reference_says() {
        for (text, millis) in [
            ("500m", 500),
            ("1", 1000),
            ("0.5", 500),
            ("1e3", 1_000_000),
            ("1k", 1_000_000),
            ("64Mi", 67_108_864_000),
            ("100n", 1),
            ("-1", -1000),
            ("1.5Gi", 1_610_612_736_000),
        ] {
            assert_eq!(Quantity::parse(text), Ok(Quantity(millis)), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "m", "abc", "1x", "1.2.3", "--1", "1e99", "9999999999999999999999999999"] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
    }
}
