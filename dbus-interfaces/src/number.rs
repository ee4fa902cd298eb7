//! Numbers as text.

/// Reads an unsigned integer as people write marks and sources: decimal, or hexadecimal after `0x`. A decimal with
/// a leading zero is refused, because C would read it as octal. `None` also for what does not fit `T`.
pub fn parse_number<T: TryFrom<u64>>(text: &str) -> Option<T> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if text.len() > 1 && text.starts_with('0') => return None,
        None => (text, 10),
    };
    // from_str_radix takes a sign.
    let valid = digits.chars().all(|digit| digit.is_digit(radix));
    let number = if valid { u64::from_str_radix(digits, radix).ok()? } else { return None };
    T::try_from(number).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_and_hexadecimal_are_read_and_octal_is_refused() {
        assert_eq!(parse_number::<u32>("67895552"), Some(0x040c_0100));
        assert_eq!(parse_number::<u32>("0x040C0100"), Some(0x040c_0100));
        assert_eq!(parse_number::<u32>("0"), Some(0));
        assert_eq!(parse_number::<u64>("18446744073709551615"), Some(u64::MAX));
        for text in ["", "0x", "010", "+1", "-1", "0x+1", "0o7", "1 ", "4294967296", "x", "0x1_0"] {
            assert_eq!(parse_number::<u32>(text), None, "{text}");
        }
    }
}
