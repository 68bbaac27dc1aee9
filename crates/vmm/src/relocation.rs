//! A running guest's memory moves between this host's DRAM and the pool.

use crate::error::{Error, Result};
use crate::kick;
use crate::vm::{Role, Vm, lock};
use nil_mover::{Move, MoveControl, MovePlan, MoveProgress, MoveReport};
use nil_pool::{Deadman, Tether};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;

impl Vm {
    /// Moves memory as planned while the guest runs, and returns when that is over. `progress` hears of it all the while.
    ///
    /// # Errors
    /// [`Error::NotNow`] when the guest does not run here; [`Error::Mover`] when memory cannot be moved, or is lost: then
    /// the guest has been stopped.
    pub fn move_memory(
        &self,
        plan: MovePlan,
        control: &MoveControl,
        progress: impl FnMut(&MoveProgress),
    ) -> Result<MoveReport> {
        self.report_landing();
        if !matches!(*lock(&self.role), Role::Running) {
            return Err(Error::NotNow { wanted: "have its memory moved", state: "not running here" });
        }
        // What is copied into the pool must not go on behind the back of a peer that has fenced this host.
        let source = self.shared.source();
        let _deadman = Deadman::guard(Tether::new(source.control().pool(), source.host())?)?;
        drop(source);
        let threads = self.shared.vcpu_threads().collect();
        let moved = Move::new(Arc::clone(self.memory()), plan, threads)?.run(control, progress);
        if self.memory().lost().is_some() {
            // No vCPU may have touched the page yet; all of them are to notice.
            lock(&self.threads).iter().for_each(|thread| kick::kick(thread.as_pthread_t()));
        }
        Ok(moved?)
    }
}
