//! A running guest's home moves to another pool of this host: its record and its state area, without its memory.
//!
//! ```text
//! twin made by the agent ─▶ inherit configuration, last landing ─▶ PUBLISH the twin ─▶ source, memory's home ─▶ old unused
//!                           (the first record counts)              (the twin counts)
//! ```
//!
//! The vCPUs run all the while: what they do touches neither record nor state area, except to freeze, and nobody is handed
//! over meanwhile. Up to the publication, one compare-and-swap, whatever fails leaves the guest where it is; afterwards
//! nothing can fail.

use crate::error::{Error, Result};
use crate::vm::{Role, Vm, lock, map_state};
use nil_migrate::Source;
use nil_pool::{Epoch, GuestControl, HostSlot};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How often to look whether a vCPU thread has let go of the old record.
const LOOK: Duration = Duration::from_micros(100);

/// A guest whose home has moved.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rehomed {
    /// The epoch of this host's ownership from now on.
    pub epoch: Epoch,
    /// From before the publication to when everything in this process referred to the new home.
    pub switched: Duration,
}

impl Vm {
    /// Makes `twin`, the guest's second record, its home, in which `me` is this host's slot. All of the memory is in this
    /// host's DRAM. The guest runs all the while, and must not be handed over meanwhile, nor its memory be moved. When
    /// this returns, nothing in this process refers to the old record any more.
    ///
    /// # Errors
    /// [`Error::NotNow`], [`Error::Mover`], [`Error::Pool`], [`Error::Populate`]: the guest has the home that it had.
    pub fn rehome(&self, twin: &GuestControl, me: HostSlot) -> Result<Rehomed> {
        self.report_landing();
        if !matches!(*lock(&self.role), Role::Running) {
            return Err(Error::NotNow { wanted: "be rehomed", state: "not running here" });
        }
        let old = self.shared.source();
        if !old.owns() {
            return Err(Error::NotNow { wanted: "be rehomed", state: "not this host's" });
        }
        let (state, earlier) = (map_state(twin)?, old.epoch());
        let later = earlier.next().ok_or(Error::NotNow { wanted: "be rehomed", state: "at its last epoch" })?;
        if let Some(landed) = earlier.0.checked_sub(1).map(Epoch) {
            state.inherit(old.state(), landed, earlier)?;
        }
        let source = Source::new(twin.clone(), Arc::clone(&state), me, later, self.shared.vcpus())?;
        let home = self.memory().prepare_home(twin, &state)?;
        let begun = Instant::now();
        let epoch = twin.publish_twin(me, earlier)?;
        home.enter(me, epoch);
        drop(self.shared.replace_source(Arc::new(source)));
        let switched = begun.elapsed();
        // A vCPU thread that was kicked for a handoff and comes late may be about to find that there is none.
        while Arc::strong_count(&old) > 1 {
            sleep(LOOK);
        }
        Ok(Rehomed { epoch, switched })
    }
}
