//! Names and other texts in records: UTF-8 in a field of fixed length, padded with zeros.

use super::BadRecord;

/// Bytes of a name or label in a record.
pub const NAME_BYTES: usize = 64;

/// A text that cannot be a name or a label.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("'{text}' cannot be a {what}: {why}")]
pub struct BadText {
    /// What it was to be.
    pub what: &'static str,
    /// The text.
    pub text: String,
    /// The rule that it breaks.
    pub why: &'static str,
}

/// Encodes a label: at most 64 bytes without control characters; it may be empty.
///
/// # Errors
/// [`BadText`] with the rule that it breaks.
pub fn encode_label(what: &'static str, text: &str) -> Result<[u8; NAME_BYTES], BadText> {
    encode(what, text, "it is longer than 64 bytes")
}

/// Encodes a name: a label that is not empty and holds no `/` and no spaces at its ends, because names become file names.
///
/// # Errors
/// [`BadText`] with the rule that it breaks.
pub fn encode_name(what: &'static str, text: &str) -> Result<[u8; NAME_BYTES], BadText> {
    let bad = |why| BadText { what, text: text.to_owned(), why };
    match text {
        "" => Err(bad("it is empty")),
        "." | ".." => Err(bad("it would be a directory")),
        _ if text.contains('/') => Err(bad("it contains a '/'")),
        _ if text.trim() != text => Err(bad("it begins or ends with a space")),
        _ => encode_label(what, text),
    }
}

/// Encodes a text that a zero ends, so that it has at most `N - 1` bytes; it may be empty. `too_long` is what is said of
/// a longer one.
///
/// # Errors
/// [`BadText`] with the rule that it breaks.
pub fn encode_ended<const N: usize>(
    what: &'static str,
    text: &str,
    too_long: &'static str,
) -> Result<[u8; N], BadText> {
    if text.len() >= N {
        return Err(BadText { what, text: text.to_owned(), why: too_long });
    }
    encode(what, text, too_long)
}

fn encode<const N: usize>(what: &'static str, text: &str, too_long: &'static str) -> Result<[u8; N], BadText> {
    let bad = |why| BadText { what, text: text.to_owned(), why };
    if text.chars().any(char::is_control) {
        return Err(bad("it contains control characters"));
    }
    let mut bytes = [0; N];
    bytes.get_mut(..text.len()).ok_or_else(|| bad(too_long))?.copy_from_slice(text.as_bytes());
    Ok(bytes)
}

/// Decodes a text that a zero ends.
///
/// # Errors
/// As [`decode`], and when there is no zero.
pub fn decode_ended<const N: usize>(field: &'static str, bytes: &[u8; N]) -> Result<String, BadRecord> {
    decode(field, bytes).and_then(|text| if text.len() < N { Ok(text) } else { Err(BadRecord::Field(field)) })
}

/// Decodes a name or a label.
///
/// # Errors
/// [`BadRecord::Field`] when the bytes are not UTF-8 padded with zeros, or hold control characters.
pub fn decode<const N: usize>(field: &'static str, bytes: &[u8; N]) -> Result<String, BadRecord> {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(N);
    let (text, padding) = bytes.split_at(end);
    let text = std::str::from_utf8(text).map_err(|_| BadRecord::Field(field))?;
    if padding.iter().any(|&byte| byte != 0) || text.chars().any(char::is_control) {
        return Err(BadRecord::Field(field));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_as_they_were_written() {
        for name in ["a", "büro-3", &"x".repeat(64)] {
            let bytes = encode_name("guest name", name).expect("a good name");
            assert_eq!(decode("name", &bytes), Ok(name.to_owned()));
        }
    }

    #[test]
    fn bad_names_are_refused_with_the_rule_they_break() {
        for name in ["", "..", "a/b", " a", "a\nb", &"x".repeat(65)] {
            assert!(encode_name("guest name", name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn bytes_behind_the_end_of_a_name_are_damage() {
        let mut bytes = encode_name("guest name", "abc").expect("a good name");
        bytes[10] = b'x';
        assert_eq!(decode("name", &bytes), Err(BadRecord::Field("name")));
    }
}
