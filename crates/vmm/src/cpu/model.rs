//! A CPU model: what guests may be promised, under a name.
//!
//! | Model | Features |
//! |---|---|
//! | `x86-64-v1` … `x86-64-v4` | the instructions of that level of the System V psABI, of all levels below, and what every machine has |
//! | `host` | all that one host can offer |
//! | `cluster`, `cluster-NAME` | what all of several hosts can offer |
//!
//! A model is an upper bound for a guest and a promise to it: what is not in the model the guest does not see, and what
//! is in it it sees, or it is not started. Features of the machine (those that KVM makes) alone are given where they are.

use super::feature::{Feature, Features, Rank};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

/// Longest name of a model, in bytes.
const LONGEST_NAME: usize = 64;
/// The most MSRs that a model may list: KVM's own list is a tenth as long.
const MOST_MSRS: usize = 1024;
/// The levels of x86-64.
const LEVELS: std::ops::RangeInclusive<u8> = 1..=4;

/// The name of a model: letters, digits, `.`, `_` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ModelName(String);

/// What is wrong with a CPU model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadModel {
    /// It cannot be called that.
    #[error("a CPU model is named by 1 to 64 letters, digits, `.`, `_` and `-`, and not {0:?}")]
    Name(String),
    /// No model has that name.
    #[error(
        "there is no CPU model named {name}; known: host, cluster, {}, or a file of `nil cpu baseline`",
        known_names()
    )]
    Unknown {
        /// The name.
        name: String,
    },
    /// There is nothing in it.
    #[error("CPU model {name} has no features; a 64-bit guest needs those of x86-64-v1 at least")]
    Empty {
        /// The model.
        name: ModelName,
    },
    /// A guest could not even start with it.
    #[error("CPU model {name} lacks {}, without which no 64-bit guest runs", list(missing))]
    TooSmall {
        /// The model.
        name: ModelName,
        /// What it lacks.
        missing: Features,
    },
    /// Features that make no sense without others.
    #[error("CPU model {name} has {feature} without {needed}, on which it stands")]
    Unfounded {
        /// The model.
        name: ModelName,
        /// What it has.
        feature: Feature,
        /// What it would have to have as well.
        needed: Feature,
    },
    /// It lists more MSRs than there are.
    #[error("CPU model {name} lists more than {MOST_MSRS} MSRs")]
    TooManyMsrs {
        /// The model.
        name: ModelName,
    },
}

/// What guests may be promised.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "Raw")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CpuModel {
    /// Its name.
    name: ModelName,
    /// Its features, in the order of CPUID.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    features: Features,
    /// The MSRs that may travel with a vCPU; `None`: all that its host can carry.
    #[serde(skip_serializing_if = "Option::is_none")]
    msrs: Option<BTreeSet<u32>>,
}

/// A model as it is written down: the name of a level, or everything.
enum Raw {
    Named(String),
    Told(RawModel),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a level, or a whole CPU model")
    }

    fn visit_str<E: de::Error>(self, name: &str) -> Result<Raw, E> {
        Ok(Raw::Named(name.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Raw, A::Error> {
        RawModel::deserialize(MapAccessDeserializer::new(fields)).map(Raw::Told)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    name: ModelName,
    features: Features,
    #[serde(default)]
    msrs: Option<BTreeSet<u32>>,
}

impl TryFrom<Raw> for CpuModel {
    type Error = BadModel;

    fn try_from(raw: Raw) -> Result<Self, BadModel> {
        match raw {
            Raw::Named(name) => Self::named(&name),
            Raw::Told(RawModel { name, features, msrs }) => Self::new(name, features, msrs),
        }
    }
}

impl CpuModel {
    /// A model of these features.
    ///
    /// # Errors
    /// No guest could run with it.
    pub fn new(name: ModelName, features: Features, msrs: Option<BTreeSet<u32>>) -> Result<Self, BadModel> {
        if features.is_empty() {
            return Err(BadModel::Empty { name });
        }
        let missing: Features = instructions(1).filter(|feature| !features.contains(feature)).collect();
        if !missing.is_empty() {
            return Err(BadModel::TooSmall { name, missing });
        }
        if msrs.as_ref().is_some_and(|msrs| msrs.len() > MOST_MSRS) {
            return Err(BadModel::TooManyMsrs { name });
        }
        match features.iter().find_map(|&feature| Some((feature, unfounded(feature, &features)?))) {
            Some((feature, needed)) => Err(BadModel::Unfounded { name, feature, needed }),
            None => Ok(Self { name, features, msrs }),
        }
    }

    /// One of `x86-64-v1` to `x86-64-v4`.
    ///
    /// # Errors
    /// [`BadModel::Unknown`].
    pub fn named(name: &str) -> Result<Self, BadModel> {
        let level = LEVELS.into_iter().find(|&level| level_name(level) == name);
        let Some(level) = level else {
            return Err(BadModel::Unknown { name: name.chars().take(LONGEST_NAME).collect() });
        };
        let platform = Feature::all().filter(|feature| feature.rank() == Rank::Platform);
        let features = (1..=level).flat_map(instructions).chain(platform).collect();
        Ok(Self { name: ModelName(name.to_owned()), features, msrs: None })
    }

    /// What all of `models` have in common. `None` when there are no models.
    ///
    /// # Errors
    /// They have less in common than a guest needs.
    pub fn common<'a>(name: ModelName, models: impl IntoIterator<Item = &'a Self>) -> Result<Option<Self>, BadModel> {
        let meet = |sum: Self, model: &Self| Self {
            name: sum.name,
            features: sum.features.intersection(&model.features).copied().collect(),
            msrs: match (sum.msrs, &model.msrs) {
                (Some(sum), Some(msrs)) => Some(sum.intersection(msrs).copied().collect()),
                (sum, msrs) => sum.or_else(|| msrs.clone()),
            },
        };
        let mut models = models.into_iter();
        let Some(first) = models.next() else { return Ok(None) };
        let Self { name, mut features, msrs } = models.fold(Self { name, ..first.clone() }, meet);
        // What stands on something that not all of them have falls with it.
        while let Some(&loose) = features.iter().find(|&&feature| unfounded(feature, &features).is_some()) {
            features.remove(&loose);
        }
        Self::new(name, features, msrs).map(Some)
    }

    /// The same under another name.
    #[must_use]
    pub fn renamed(self, name: ModelName) -> Self {
        Self { name, ..self }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &ModelName {
        &self.name
    }

    /// Its features, in the order of CPUID.
    #[must_use]
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// The MSRs that may travel with a vCPU; `None`: all that its host can carry.
    #[must_use]
    pub fn msrs(&self) -> Option<&BTreeSet<u32>> {
        self.msrs.as_ref()
    }

    /// What a host with the features `offered` lacks to run guests of this model. Features of the machine do not count.
    #[must_use]
    pub fn missing_from(&self, offered: &Features) -> Features {
        let lacking = self.features.difference(offered).copied();
        lacking.filter(|feature| feature.rank() != Rank::Platform).collect()
    }

    /// The highest level of x86-64 that is in it; 0 is none.
    #[must_use]
    pub fn level(&self) -> u8 {
        let whole = |level: &u8| instructions(*level).all(|feature| self.features.contains(&feature));
        LEVELS.take_while(whole).last().unwrap_or(0)
    }

    /// `x86-64-v1` to `x86-64-v4`.
    pub fn level_names() -> impl Iterator<Item = String> {
        LEVELS.map(level_name)
    }
}

/// What a feature needs that is not there: state that only XSAVE saves, registers that others are the lower half of.
fn unfounded(feature: Feature, features: &Features) -> Option<Feature> {
    let on = |name: &str| name.parse().ok().filter(|needed| !features.contains(needed));
    match feature.name() {
        "avx" | "xsaveopt" => on("xsave"),
        "avx512f" => on("avx2"),
        name if name.starts_with("avx512") => on("avx512f"),
        "avx2" | "fma" | "f16c" | "xop" | "fma4" | "vaes" | "vpclmulqdq" => on("avx"),
        name if name.starts_with("avx-") => on("avx2"),
        _ => None,
    }
}

/// The instructions that a level adds to those below it.
fn instructions(level: u8) -> impl Iterator<Item = Feature> {
    Feature::all().filter(move |feature| feature.rank() == Rank::Level(level))
}

fn level_name(level: u8) -> String {
    format!("x86-64-v{level}")
}

fn known_names() -> String {
    CpuModel::level_names().collect::<Vec<_>>().join(", ")
}

fn list(features: &Features) -> String {
    features.iter().map(|feature| feature.name()).collect::<Vec<_>>().join(", ")
}

impl ModelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = BadModel;

    fn from_str(name: &str) -> Result<Self, BadModel> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(plain) {
            Ok(Self(name.to_owned()))
        } else {
            Err(BadModel::Name(name.chars().take(LONGEST_NAME).collect()))
        }
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl From<ModelName> for String {
    fn from(name: ModelName) -> Self {
        name.0
    }
}

impl TryFrom<String> for ModelName {
    type Error = BadModel;

    fn try_from(name: String) -> Result<Self, BadModel> {
        name.parse()
    }
}
