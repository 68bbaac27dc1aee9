//! Documents in which whatever is to be an object is one.
//!
//! What serde derives takes an array for a struct, too: its elements for the fields in their order. From a program that asks
//! an agent for something that is a mistake, and it is refused at whatever depth it stands. So this passes everything on
//! to serde_json as it is, and asks for a map wherever a struct is wanted.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Unexpected,
    VariantAccess, Visitor,
};
use std::fmt;

/// Understands the whole of `bytes` as one document.
pub(super) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    let mut document = serde_json::Deserializer::from_slice(bytes);
    let understood = T::deserialize(Strict(&mut document))?;
    document.end()?;
    Ok(understood)
}

/// Something of serde's, and the same strictness for whatever it leads to.
struct Strict<T>(T);

/// What wants the fields of a struct.
struct Fields<V>(V);

macro_rules! pass_on {
    ($($method:ident($($argument:ident: $kind:ty),*))*) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $kind,)* visitor: V) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Strict(visitor))
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(Strict(visitor))
    }

    pass_on! {
        deserialize_any() deserialize_bool() deserialize_char()
        deserialize_i8() deserialize_i16() deserialize_i32() deserialize_i64() deserialize_i128()
        deserialize_u8() deserialize_u16() deserialize_u32() deserialize_u64() deserialize_u128()
        deserialize_f32() deserialize_f64() deserialize_str() deserialize_string() deserialize_bytes() deserialize_byte_buf()
        deserialize_option() deserialize_unit() deserialize_seq() deserialize_map()
        deserialize_identifier() deserialize_ignored_any()
        deserialize_unit_struct(name: &'static str) deserialize_newtype_struct(name: &'static str)
        deserialize_tuple(length: usize) deserialize_tuple_struct(name: &'static str, length: usize)
        deserialize_enum(name: &'static str, variants: &'static [&'static str])
    }

    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! visit {
    ($($method:ident: $kind:ty),*) => {$(
        fn $method<E: Error>(self, value: $kind) -> Result<V::Value, E> {
            self.0.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    visit! {
        visit_bool: bool, visit_char: char,
        visit_i8: i8, visit_i16: i16, visit_i32: i32, visit_i64: i64, visit_i128: i128,
        visit_u8: u8, visit_u16: u16, visit_u32: u32, visit_u128: u128,
        visit_f32: f32, visit_f64: f64, visit_str: &str, visit_borrowed_str: &'de str, visit_string: String,
        visit_bytes: &[u8], visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>
    }

    /// The description of the API says that numbers have 63 bits.
    fn visit_u64<E: Error>(self, value: u64) -> Result<V::Value, E> {
        if i64::try_from(value).is_err() {
            return Err(E::invalid_value(Unexpected::Unsigned(value), &"a number below 2^63"));
        }
        self.0.visit_u64(value)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Strict(inner))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Strict(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, elements: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Strict(elements))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Strict(fields))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, variant: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(Strict(variant))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.0.deserialize(Strict(inner))
    }
}

impl<'de, V: Visitor<'de>> DeserializeSeed<'de> for Fields<V> {
    type Value = V::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        inner.deserialize_map(Strict(self.0))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_element_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        self.0.next_value_seed(Strict(seed))
    }

    fn size_hint(&self) -> Option<usize> {
        self.0.size_hint()
    }
}

impl<'de, A: EnumAccess<'de>> EnumAccess<'de> for Strict<A> {
    type Error = A::Error;
    type Variant = Strict<A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, content) = self.0.variant_seed(seed)?;
        Ok((name, Strict(content)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.0.unit_variant()
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.0.newtype_variant_seed(Strict(seed))
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.0.tuple_variant(length, Strict(visitor))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, A::Error> {
        self.0.newtype_variant_seed(Fields(visitor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::{MigrationBody, MoveBody, PinBody};
    use crate::order::{Drain, RunVm, SettleOrder};
    use serde::Deserialize;

    #[derive(PartialEq, Debug, Deserialize)]
    struct Point {
        x: u32,
        y: Option<u32>,
    }

    #[derive(PartialEq, Debug, Deserialize)]
    enum Shape {
        Dot,
        At(Point),
        Line(Point, Point),
        Circle { middle: Point, radius: u32 },
    }

    fn shapes(text: &str) -> serde_json::Result<Vec<Option<Shape>>> {
        from_slice(text.as_bytes())
    }

    #[test]
    fn what_is_said_as_it_should_be_is_understood() {
        let text = r#"["Dot", null, {"At": {"x": 1}}, {"Line": [{"x": 1, "y": 2}, {"x": 3, "y": null}]},
                       {"Circle": {"middle": {"x": 5}, "radius": 6}}]"#;
        let point = |x, y| Point { x, y };
        let expected = vec![
            Some(Shape::Dot),
            None,
            Some(Shape::At(point(1, None))),
            Some(Shape::Line(point(1, Some(2)), point(3, None))),
            Some(Shape::Circle { middle: point(5, None), radius: 6 }),
        ];
        assert_eq!(shapes(text).expect("a good document"), expected);
    }

    #[test]
    fn an_array_is_no_object_at_any_depth() {
        for text in [
            r#"[{"At": [1, 2]}]"#,
            r#"[{"Line": [[1, 2], {"x": 3}]}]"#,
            r#"[{"Circle": [{"x": 5}, 6]}]"#,
            r#"[{"Circle": {"middle": [5, null], "radius": 6}}]"#,
        ] {
            let error = shapes(text).expect_err(text).to_string();
            assert!(error.contains("invalid type: sequence"), "{text}: {error}");
        }
    }

    fn refuse<T: DeserializeOwned + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let error = from_slice::<T>(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains("sequence"), "{text}: {error}");
            // Without this module it would be taken.
            serde_json::from_str::<T>(text).expect(text);
        }
    }

    #[test]
    fn the_bodies_of_requests_are_objects_of_objects() {
        let pool = "6e696c00-0000-4000-8000-000000000001";
        refuse::<Drain>(&["[]", "[4]", "[4, null]"]);
        refuse::<PinBody>(&[r#"[[0, 4096], "me", "DMA"]"#, r#"{"range": [0, 4096], "owner": "me", "reason": "DMA"}"#]);
        refuse::<MoveBody>(&[r#"{"direction": "decouple", "range": [0, 4096]}"#]);
        let striping = format!(r#"{{"to": "B", "striping": {{"granularity": 2097152, "shares": [["{pool}", 1]]}}}}"#);
        refuse::<MigrationBody>(&[r#"["B"]"#, &striping]);
        refuse::<SettleOrder>(&[
            r#"{"guest": "g", "ranges": [[0, 4096]], "budget": {"pace": "fast"}, "stall_timeout_us": 1}"#,
            r#"{"guest": "g", "ranges": [], "budget": {"pace": {"paced": [500, 20]}}, "stall_timeout_us": 1}"#,
        ]);
        let cpu = r#"["one", ["fpu"], null]"#;
        let vm = format!(
            r#"{{"name": "g", "pool": "{pool}", "memory_bytes": 1, "memory_in": "dram", "vcpus": 1, "image": {{"builtin": "demo"}},
                 "command_line": "", "cpu": {cpu}}}"#
        );
        from_slice::<RunVm>(vm.as_bytes()).expect_err("a model is an object");
    }

    #[test]
    fn numbers_have_as_many_bits_as_the_description_says() {
        let drain = |limit: u64| from_slice::<Drain>(format!(r#"{{"time_limit_us": {limit}}}"#).as_bytes());
        assert_eq!(drain(i64::MAX.unsigned_abs()).expect("a limit").time_limit_us, Some(i64::MAX.unsigned_abs()));
        let error = drain(1 << 63).expect_err("too large").to_string();
        assert!(error.contains("below 2^63"), "{error}");
    }

    #[test]
    fn what_follows_a_document_is_no_part_of_it() {
        assert!(shapes("[] []").is_err() && shapes("").is_err());
    }
}
