//! What the handoff knows of a guest: parts that save themselves into sections and load themselves from sections.

use nil_pool::{SectionWriter, Sections};

/// A piece of a guest's state with a thread of its own to save and load it: one vCPU, or the machine around them.
///
/// Both methods run on the critical path: they allocate nothing, log nothing and take no lock that anybody else holds.
pub trait Part {
    /// Why a part could not be saved or loaded.
    type Error;

    /// Writes all of the part's state. The part has stopped, and stays stopped until its thread knows the outcome.
    ///
    /// # Errors
    /// Whatever keeps the state from being whole. The handoff is then withdrawn and the guest goes on at its source, so
    /// the part has to be able to go on.
    fn save(&mut self, out: &mut SectionWriter<'_>) -> Result<(), Self::Error>;

    /// Takes over the state in `sections`.
    ///
    /// Called ahead of time with the state of an earlier landing, as often as the target likes, and then with the frozen
    /// state; a part remembers what it holds and at the second call writes only what differs.
    ///
    /// # Errors
    /// Whatever keeps the part from going on exactly there. The handoff is then refused and the guest goes on at its
    /// source; the part is not run.
    fn load(&mut self, sections: &Sections<'_>) -> Result<(), Self::Error>;
}
