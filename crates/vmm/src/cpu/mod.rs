//! CPU models: what a guest may rely on, whichever host it runs on.
//!
//! ```text
//! feature    one thing that a CPU can do, by its name and its bit in CPUID
//! model      a named set of features: a level of x86-64, a host, a cluster
//! cpuid      both as the CPUID that KVM is given, and back
//! ```

pub(crate) mod cpuid;
mod feature;
mod model;
#[cfg(test)]
mod tests;

pub use cpuid::XsaveState;
pub use feature::{Feature, Features, UnknownFeature};
pub use model::{BadModel, CpuModel, ModelName};
