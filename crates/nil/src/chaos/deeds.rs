//! Doing what a plan says, each act on a thread of its own.

use super::fate::{Fate, Standing};
use super::plan::{Act, Plan};
use super::watch::Watch;
use crate::lab::chronicle::Chronicle;
use crate::lab::errand::Errand;
use crate::lab::fleet::Fleet;
use crate::lab::interrupt;
use crate::lab::lock::lock;
use crate::lab::prey::{self, Prey};
use crate::lab::resident::Resident;
use crate::lab::view::View;
use anyhow::{Context, anyhow, bail, ensure};
use nil_host::{MoveMemory, ProtectGuest, Takeover};
use nil_mover::Direction;
use nil_pool::{
    CapacityRequest, Epoch, Fence, GRANULE, HostIdentity, HostSlot, Membership, OutputRule, Ownership, Tag,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long anything may take that must happen.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an order to migrate is taken to last, by those that are called off.
const TYPICAL: Duration = Duration::from_millis(150);
/// How often an order to take over is given again while the dead host is not known to be dead.
const ASK_AGAIN: Duration = Duration::from_millis(20);
/// Room for what changes from one commit of a guest to the next.
const LOG_BYTES: u64 = 4 << 20;

/// A round, while it is played.
pub(super) struct Stage<'a> {
    pub(super) fleet: &'a Fleet,
    pub(super) guests: &'a [Resident],
    pub(super) plan: &'a Plan,
    pub(super) output: OutputRule,
    pub(super) expiry: Duration,
    pub(super) watch: &'a Watch,
    pub(super) chronicle: &'a Chronicle,
    /// What may become of each guest.
    pub(super) fates: &'a Mutex<Vec<Fate>>,
    pub(super) acts: &'a Mutex<BTreeMap<&'static str, u64>>,
}

/// Has commits made of a guest.
pub(super) fn protect(fleet: &Fleet, guest: &Resident, interval: Duration, output: OutputRule) -> anyhow::Result<()> {
    let owner = guest.owner(fleet)?;
    let order = ProtectGuest {
        guest: guest.name().clone(),
        interval_us: u64::try_from(interval.as_micros())?,
        output,
        log_bytes: Some(LOG_BYTES),
    };
    fleet.call(owner.host)?.protect(&order)?;
    Ok(())
}

impl Stage<'_> {
    /// Does all of it; returns when every host is up again. The error is a violation, or an interruption.
    pub(super) fn play(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let acts = self.plan.acts.iter().map(|timed| {
                scope.spawn(move || {
                    std::thread::sleep(timed.after.saturating_sub(begun.elapsed()));
                    interrupt::check()?;
                    self.chronicle.note(timed.act.to_string());
                    *lock(self.acts).entry(timed.act.name()).or_default() += 1;
                    self.carry_out(timed.act).with_context(|| timed.act.to_string())
                })
            });
            let acts: Vec<_> = acts.collect();
            // All of them end before the first that went wrong is told.
            let ended = acts.into_iter().map(|act| act.join().unwrap_or_else(|_| bail!("an act panicked")));
            ended.collect::<Vec<_>>().into_iter().collect()
        })
    }

    fn carry_out(&self, act: Act) -> anyhow::Result<()> {
        match act {
            Act::KillHost { host, away } => self.kill_host(host, away),
            Act::KillAgent { host, away } => self.kill_agent(host, away),
            Act::KillWorker { guest } => self.kill_worker(guest),
            Act::StopHost { host, longer } => self.stop_host(host, longer),
            Act::PauseHost { host, share } => self.pause_host(host, share),
            Act::Migrate { guest, errand } => self.migrate(guest, errand),
            Act::Protect { guest, interval } => {
                self.answer(guest, protect(self.fleet, &self.guests[guest], interval, self.output));
                Ok(())
            }
            Act::Unprotect { guest } => {
                self.answer(guest, self.unprotect(guest));
                Ok(())
            }
            Act::Move { guest, direction } => {
                self.answer(guest, self.move_memory(guest, direction));
                Ok(())
            }
            Act::FillPool { span } => self.fill_pool(span),
        }
    }

    fn name(&self, host: usize) -> &str {
        self.fleet.hosts()[host].name().as_str()
    }

    /// A host's slot in the pool, and its life.
    fn life(&self, host: usize) -> anyhow::Result<(HostSlot, Epoch)> {
        let info = self.fleet.pools()[0].find_host(self.name(host));
        let life = info.and_then(|info| Some((info.slot, info.life?.epoch)));
        life.with_context(|| format!("host {} is not listed in the pool", self.name(host)))
    }

    fn standings(&self) -> anyhow::Result<Vec<Standing>> {
        self.guests.iter().map(|guest| Standing::of(&guest.control())).collect()
    }

    /// The host in that slot does nothing any more: what may become of its guests.
    fn struck(&self, victim: HostSlot, before: &[Standing]) -> anyhow::Result<()> {
        let after = self.standings()?;
        let mut fates = lock(self.fates);
        for (index, (guest, (before, after))) in self.guests.iter().zip(before.iter().zip(&after)).enumerate() {
            let fate = fates[index].after_blow(victim, *before, *after, self.plan.handles(index));
            if fate != fates[index] {
                let Standing { word, commit } = after;
                self.chronicle.note(format!("guest {}: {word}, commit {commit:?}: {fate:?}", guest.name()));
                fates[index] = fate;
            }
        }
        Ok(())
    }

    fn kill_host(&self, host: usize, away: Duration) -> anyhow::Result<()> {
        let (slot, life) = self.life(host)?;
        self.watch.strike(self.name(host));
        let before = self.standings()?;
        interrupt::wait_for("a killed host is not dead", PATIENCE, || {
            // Whoever was about to start a worker is killed first, so that this comes to an end.
            let household = Prey::household(&self.fleet.hosts()[host]);
            household.iter().for_each(|prey| {
                prey.kill();
            });
            Ok(household.is_empty().then_some(()))
        })?;
        self.struck(slot, &before)?;
        std::thread::sleep(away);
        // At times the agent is back before anybody was told to take over.
        if self.plan.takeover == Takeover::Ask && !away.as_micros().is_multiple_of(3) {
            self.order_takeover(host, slot, life)?;
        }
        self.bring_up(host)
    }

    fn bring_up(&self, host: usize) -> anyhow::Result<()> {
        self.fleet.bring_up(host)?;
        self.chronicle.note(format!("agent {}: is up again", self.name(host)));
        Ok(())
    }

    /// Tells any of the others to take over, until one does; or until the host has another life.
    fn order_takeover(&self, host: usize, slot: HostSlot, life: Epoch) -> anyhow::Result<()> {
        let name = self.name(host);
        let mut refusal = None;
        let taken = interrupt::wait_for("no host takes over as it was told to", PATIENCE, || {
            if self.fleet.pools()[0].life(slot).is_none_or(|now| now.epoch != life) {
                return Ok(Some(None));
            }
            // One that stands still would not answer before it goes on.
            for taker in (0..self.fleet.hosts().len()).filter(|taker| self.plan.leaves_in_peace(*taker)) {
                match self.fleet.call(taker).and_then(|mut agent| agent.take_over(name)) {
                    Ok(reports) => return Ok(Some(Some((taker, reports.len())))),
                    Err(error) => refusal = Some(error.story()),
                }
            }
            std::thread::sleep(ASK_AGAIN);
            Ok(None)
        });
        match taken.with_context(|| format!("host {name}: {}", refusal.unwrap_or_default()))? {
            Some((taker, guests)) => {
                self.chronicle.note(format!("host {name}: h{taker} has taken over {guests} guests as it was told to"));
            }
            None => self.chronicle.note(format!("host {name}: is another one already")),
        }
        Ok(())
    }

    fn kill_agent(&self, host: usize, away: Duration) -> anyhow::Result<()> {
        // A host without guests is dead without its agent.
        self.watch.strike(self.name(host));
        let (slot, _) = self.life(host)?;
        let before = self.standings()?;
        let household = Prey::household(&self.fleet.hosts()[host]);
        let agent = household.first().context("the host has no agent")?;
        agent.kill();
        interrupt::wait_for("a killed agent is not dead", PATIENCE, || Ok(agent.is_dead().then_some(())))?;
        if Prey::household(&self.fleet.hosts()[host]).is_empty() {
            self.struck(slot, &before)?;
        }
        std::thread::sleep(away);
        self.bring_up(host)
    }

    fn kill_worker(&self, index: usize) -> anyhow::Result<()> {
        let guest = &self.guests[index];
        let Ok(owner) = guest.owner(self.fleet) else {
            self.chronicle.note(format!("guest {}: is nobody's just now", guest.name()));
            return Ok(());
        };
        let before = self.standings()?;
        let is_its = |worker: &prey::Worker| worker.guest == guest.id() && worker.host == self.name(owner.host);
        let run_dir = self.fleet.run_dir();
        let prey = prey::workers(run_dir).into_iter().find(is_its).and_then(|worker| Prey::of(&worker, run_dir));
        let Some(prey) = prey.filter(Prey::kill) else {
            self.chronicle.note(format!("guest {}: has no worker just now", guest.name()));
            return Ok(());
        };
        interrupt::wait_for("a killed worker is not dead", PATIENCE, || Ok(prey.is_dead().then_some(())))?;
        // Of the guest that was hit alone: the others of this host run on.
        let after = Standing::of(&guest.control())?;
        let mut fates = lock(self.fates);
        fates[index] = fates[index].after_blow(owner.slot, before[index], after, self.plan.handles(index));
        let Standing { word, commit } = after;
        self.chronicle.note(format!("guest {}: {word}, commit {commit:?}: {:?}", guest.name(), fates[index]));
        Ok(())
    }

    /// Stops all processes of a host.
    fn stop_all(&self, host: usize) -> anyhow::Result<Vec<Prey>> {
        let mut known = Vec::new();
        // Whom the agent was about to start when it was stopped is there a moment later.
        for _ in 0..3 {
            let household = Prey::household(&self.fleet.hosts()[host]);
            household.iter().for_each(Prey::stop);
            known = household;
            std::thread::sleep(Duration::from_millis(5));
        }
        ensure!(!known.is_empty(), "host {} has no process", self.name(host));
        Ok(known)
    }

    fn pause_host(&self, host: usize, share: u64) -> anyhow::Result<()> {
        let span = self.expiry * u32::try_from(share)? / 1_000;
        let begun = Instant::now();
        let stopped = self.stop_all(host)?;
        std::thread::sleep(span.saturating_sub(begun.elapsed()));
        stopped.iter().for_each(Prey::go_on);
        self.chronicle.note(format!("host {}: goes on after {} ms", self.name(host), begun.elapsed().as_millis()));
        Ok(())
    }

    fn stop_host(&self, host: usize, longer: Duration) -> anyhow::Result<()> {
        let (slot, life) = self.life(host)?;
        self.watch.strike(self.name(host));
        let before = self.standings()?;
        let stopped = self.stop_all(host)?;
        let fenced = self.struck(slot, &before).and_then(|()| self.await_fence(host, slot, life));
        if fenced.is_ok() {
            std::thread::sleep(longer);
        }
        let woken = fenced.and_then(|()| self.wake(host, slot, &stopped, longer.as_micros().is_multiple_of(2)));
        // Whatever went wrong, nobody is left standing.
        stopped.iter().for_each(Prey::go_on);
        woken?;
        self.bring_up(host)
    }

    fn await_fence(&self, host: usize, slot: HostSlot, life: Epoch) -> anyhow::Result<()> {
        if self.plan.takeover == Takeover::Ask {
            return self.order_takeover(host, slot, life);
        }
        interrupt::wait_for("a host that stands still has not been fenced", PATIENCE, || {
            let now = self.fleet.pools()[0].life(slot);
            Ok(now.is_none_or(|now| now.epoch != life || now.fence == Fence::Fenced).then_some(()))
        })
        .with_context(|| format!("host {}", self.name(host)))
    }

    /// Lets a host go on that has been fenced meanwhile: it must end, and write nothing.
    fn wake(&self, host: usize, slot: HostSlot, stopped: &[Prey], workers_first: bool) -> anyhow::Result<()> {
        let (pool, name) = (&self.fleet.pools()[0], self.name(host));
        let lease = pool.life(slot).map(|life| (life.epoch, life.lease));
        let remains = self.remains(slot);
        let (agent, workers) = stopped.split_first().context("nobody was stopped")?;
        if !workers_first {
            agent.go_on();
        }
        workers.iter().for_each(Prey::go_on);
        if workers_first {
            // Nobody else is there who could end them.
            interrupt::wait_for("a worker of a fenced host has woken up and not ended", PATIENCE, || {
                Ok(workers.iter().all(Prey::is_dead).then_some(()))
            })?;
            agent.go_on();
        }
        interrupt::wait_for("a fenced host has woken up and not ended", PATIENCE, || {
            Ok(stopped.iter().all(Prey::is_dead).then_some(()))
        })
        .with_context(|| format!("host {name}"))?;
        ensure!(
            pool.life(slot).map(|life| (life.epoch, life.lease)) == lease,
            "host {name}: its lease has moved after it had been fenced"
        );
        for (guest, view, turns) in remains {
            let now = view.turns(0)?;
            ensure!(now == turns, "guest {guest}: it ran on host {name} after that had been fenced: {turns}, {now}");
        }
        self.chronicle.note(format!("host {name}: has woken up fenced, and ended"));
        Ok(())
    }

    /// The guests that were lost with a host and whose memory is all in the pool, and how far they had come.
    fn remains(&self, slot: HostSlot) -> Vec<(String, View, u64)> {
        let lost = self.guests.iter().filter(|guest| {
            let word = guest.control().ownership().load();
            let summary = guest.map().summary();
            matches!(word, Ok(Ownership::Lost { host, .. }) if host == slot) && summary.away() == 0
        });
        let look = |guest: &Resident| {
            let view = View::of_pool(&guest.control()).ok()?;
            let turns = view.turns(0).ok()?;
            Some((guest.name().to_string(), view, turns))
        };
        lost.filter_map(look).collect()
    }

    fn migrate(&self, index: usize, errand: Errand) -> anyhow::Result<()> {
        let guest = &self.guests[index];
        let Ok(owner) = guest.owner(self.fleet) else {
            self.chronicle.note(format!("guest {}: is nobody's just now", guest.name()));
            return Ok(());
        };
        let done = errand.run(self.fleet, guest, owner, TYPICAL);
        let why = done.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        let (from, to) = (owner.host, done.to);
        self.chronicle.note(format!("guest {}: h{from} → h{to}: {}{why}", guest.name(), done.outcome));
        Ok(())
    }

    fn unprotect(&self, index: usize) -> anyhow::Result<()> {
        let guest = &self.guests[index];
        let owner = guest.owner(self.fleet)?;
        Ok(self.fleet.call(owner.host)?.unprotect(guest.name())?)
    }

    fn move_memory(&self, index: usize, direction: Direction) -> anyhow::Result<()> {
        let guest = &self.guests[index];
        let owner = guest.owner(self.fleet)?;
        let order = MoveMemory::all_of(guest.name().clone(), direction);
        self.fleet.call(owner.host)?.move_memory(&order, |_| {})?;
        Ok(())
    }

    /// Takes note of how an order was answered: a host that is struck, a guest that moves, a full pool may refuse it.
    fn answer(&self, index: usize, answer: anyhow::Result<()>) {
        let answer = answer.map_or_else(|error| format!("{error:#}"), |()| "done".to_owned());
        self.chronicle.note(format!("guest {}: {answer}", self.guests[index].name()));
    }

    fn fill_pool(&self, span: Duration) -> anyhow::Result<()> {
        let pool = &self.fleet.pools()[0];
        let membership = pool.join(&HostIdentity::tool()).context("the pool cannot be joined to fill it")?;
        let (tag, bytes) = take_all(&membership)?;
        self.chronicle.note(format!("pool: {bytes} bytes are taken, {} are left", pool.usage().free));
        std::thread::sleep(span);
        if bytes > 0 {
            membership.release_capacity(tag).context("what filled the pool cannot be released")?;
        }
        membership.leave()?;
        self.chronicle.note("pool: has room again".into());
        Ok(())
    }
}

/// Takes the largest piece that there is; 0 bytes if there is none.
fn take_all(membership: &Membership) -> anyhow::Result<(Tag, u64)> {
    let tag = Tag::random();
    let mut bytes = membership.pool().usage().free / GRANULE * GRANULE;
    while bytes >= GRANULE {
        let request = CapacityRequest { label: "ballast".to_owned(), ..CapacityRequest::shared(tag, bytes) };
        match membership.add_capacity(&request) {
            Ok(_) => return Ok((tag, bytes)),
            // Somebody was quicker, or it is in pieces.
            Err(nil_pool::Error::NoRoom { .. } | nil_pool::Error::Fragmented { .. }) => {
                bytes = bytes / 2 / GRANULE * GRANULE;
            }
            Err(error) => return Err(anyhow!(error).context("the pool cannot be filled")),
        }
    }
    Ok((tag, 0))
}
