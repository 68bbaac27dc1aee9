//! Parts of a guest's memory as people write them: `0x40000000+64M`.

use nil_host::GuestRange;
use nil_pool::Bytes;

/// A guest-physical address: hexadecimal behind `0x`, or decimal.
pub(crate) fn parse_address(text: &str) -> Result<u64, String> {
    let number = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(&digits.replace('_', ""), 16),
        None => text.parse(),
    };
    number.map_err(|_| format!("`{text}` is not an address; write it as 0x40000000"))
}

/// An address and a size: `ADDRESS+SIZE`.
pub(crate) fn parse(text: &str) -> Result<GuestRange, String> {
    let Some((address, size)) = text.split_once('+') else {
        return Err(format!("`{text}` is not a range; write ADDRESS+SIZE, such as 0x40000000+64M"));
    };
    let bytes: Bytes = size.parse().map_err(|error: nil_pool::BadSize| error.to_string())?;
    let range = GuestRange { address: parse_address(address)?, bytes: bytes.get() };
    match range.address.checked_add(range.bytes) {
        Some(_) => Ok(range),
        None => Err(format!("`{text}` reaches past the end of all addresses")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_as_they_are_shown() {
        for text in ["0x0+2M", "0x40000000+64M", "0x1000+4K"] {
            assert_eq!(parse(text).expect("a range").to_string(), text);
        }
        assert_eq!(parse("4096+4096").expect("a range"), GuestRange { address: 4096, bytes: 4096 });
    }

    #[test]
    fn what_is_no_range_is_refused_with_an_example() {
        for text in ["", "0x1000", "+2M", "0x1000+", "0xfg+2M", "0x0+0", "0xffffffffffffffff+2M", "-1+2M", "0x0+2X"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("2M").expect_err("no range").contains("0x40000000+64M"));
    }
}
