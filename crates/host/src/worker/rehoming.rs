//! The guest's home moves to another pool of this host, while it runs.

use super::orders::{Orders, Post};
use crate::error::{Error, Result};
use crate::message::{HomeOrder, Phase, WorkerReply};
use nil_pool::{Access, HostSlot, Pool};
use std::time::Instant;

impl Orders {
    /// Makes the guest's record in another pool its home. Either it is when this returns, or everything is as it was.
    pub(super) fn rehome(&self, order: &HomeOrder) -> Result<WorkerReply> {
        let Some(me) = HostSlot::new(order.host) else {
            return Err(Error::refused(format!("{} is not a host's slot in a pool", order.host)));
        };
        let vm = self.vm()?;
        let _no_handoff = self.no_handoff(&[Phase::Running])?;
        let former = self.post().control;
        if former.is_protected() {
            return Err(Error::refused("the guest is protected, and its commits lie in the pool that it would leave"));
        }
        let pool = match former.pool().companion(order.pool) {
            Some(pool) => pool,
            None => {
                let pool = Pool::open(&order.path, Access::ReadWrite)?;
                pool.add_companion(former.pool());
                pool
            }
        };
        let twin = pool.guest(order.slot, former.id())?;
        // From here on it acts in its host's name there, too.
        pool.show_presence(me)?;
        self.moves.close_for("the guest's home is moving to another pool")?;
        let begun = Instant::now();
        let rehomed = vm.rehome(&twin, me);
        if rehomed.is_ok() {
            self.take_post(Post { control: twin.clone(), me });
            self.board().show_home(&twin);
        }
        self.moves.reopen();
        let rehomed = rehomed?;
        tracing::info!("its home is pool {} now, after {:?}", pool.path().display(), begun.elapsed());
        let switched_ns = u64::try_from(rehomed.switched.as_nanos()).unwrap_or(u64::MAX);
        Ok(WorkerReply::Rehomed { epoch: rehomed.epoch.0, switched_ns })
    }
}
