//! A guest on a rack whose memory travels with it: out of the DRAM of one host, through the pool, into that of the other.
//!
//! ```text
//! host A  DRAM ──decouple──▶ pool ──┐ handoff
//! host B  DRAM ◀──recouple── pool ◀─┘
//! ```
//!
//! It is ordered about through the agents, as `nil decouple`, `nil migrate --stay-in-pool` and `nil recouple` do it, one
//! step at a time, so that each can be measured. It is watched through the process that runs it, because at no other place
//! all of its memory is to be seen while it moves.

use super::canary::Span;
use super::frequency::Frequency;
use super::interrupt;
use super::observe::Observer;
use super::overhead::Overhead;
use super::pulse::{Finder, Pulse, PulseRecord};
use super::rack::{Rack, Side};
use super::shuttle::GuestPlan;
use super::verdict::Verdict;
use super::view::View;
use anyhow::{Context, bail, ensure};
use nil_guest_abi::{Options, Program};
use nil_host::{
    Client, GuestName, GuestReport, HostName, ImageSource, MemoryIn, Migrate, MigrationOutcome, MigrationReport,
    MoveMemory, RunVm, Settling,
};
use nil_migrate::tsc;
use nil_mover::{Budget, Direction, MoveOutcome, MoveReport};
use nil_pool::{GuestControl, GuestId, Stamp};
use std::fs;
use std::time::Duration;

/// How long a guest may stand frozen before its source takes it back.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the agent of a host that a guest has come to may take to say which process runs it.
const ARRIVAL: Duration = Duration::from_secs(5);
/// How long a guest is watched undisturbed before it is moved.
pub(crate) const QUIET: Duration = Duration::from_millis(300);
/// How long it is watched after that.
pub(crate) const SETTLED: Duration = Duration::from_millis(20);
/// What the names of a worker's vCPU threads begin with.
const VCPU_THREAD: &str = "vcpu";

/// A guest on a rack.
#[derive(Debug)]
pub(crate) struct Traveller<'rack> {
    rack: &'rack Rack,
    name: GuestName,
    control: GuestControl,
    observer: Observer,
    home: Home,
    plan: GuestPlan,
    side: Side,
}

/// The process that runs a guest, and where it has the guest's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Home {
    pid: i32,
    address: u64,
}

/// A move of all memory, one way, as seen from outside.
#[derive(Clone, Debug)]
pub(crate) struct Moved {
    /// What the mover says.
    pub(crate) report: MoveReport,
    /// When it was under way, in host ticks.
    pub(crate) span: Span,
    /// From the order until its answer.
    pub(crate) ordered: Span,
}

/// The whole way by one order.
#[derive(Clone, Debug)]
pub(crate) struct Travelled {
    /// What the agents say.
    pub(crate) report: MigrationReport,
    /// From the order until its answer.
    pub(crate) ordered: Span,
    /// The guest's pulse, from [`QUIET`] before the order until a little after its end.
    pub(crate) record: PulseRecord,
}

/// A change of hosts.
#[derive(Clone, Debug)]
pub(crate) struct Landed {
    /// What the agents say.
    pub(crate) report: MigrationReport,
    /// When the target had claimed the guest, in host ticks.
    pub(crate) claimed: u64,
    /// From the order until its answer.
    pub(crate) ordered: Span,
}

impl<'rack> Traveller<'rack> {
    /// Boots the guest on host A, in its DRAM, and waits until it has filled its memory and runs.
    pub(crate) fn boot(
        rack: &'rack Rack,
        plan: GuestPlan,
        program: Program,
        frequency: Frequency,
    ) -> anyhow::Result<Self> {
        let name: GuestName = "guest".parse()?;
        let options = Options { mode: plan.mode, tsc_khz: frequency.khz(), ..Options::default() };
        let order = RunVm {
            name: name.clone(),
            pool: rack.pool().id(),
            memory_bytes: plan.memory_bytes,
            memory_in: MemoryIn::Dram,
            vcpus: plan.vcpus,
            image: ImageSource::Builtin(program.name().into()),
            command_line: options.to_string(),
            hosts: Vec::new(),
            cpu: None,
        };
        let report = rack.call(Side::A)?.run_vm(&order).context("the guest could not be started")?;
        let info = rack.pool().find_guest(&report.id.to_string()).context("the guest is not in the pool")?;
        let control = rack.pool().guest(info.slot, report.id)?;
        let home = await_home(rack, Side::A, &control)?;
        let mut observer = Observer::through(home.view()?, plan.memory_bytes, frequency);
        observer.await_running().with_context(|| format!("the guest does not run{}", rack.logs()))?;
        Ok(Self { rack, name, control, observer, home, plan, side: Side::A })
    }

    /// Moves all of its memory one way, within that budget.
    pub(crate) fn move_memory(
        &mut self,
        direction: Direction,
        budget: Budget,
        mut progress: impl FnMut(u64, u64),
    ) -> anyhow::Result<Moved> {
        interrupt::check()?;
        let order = MoveMemory { budget, ..MoveMemory::all_of(self.name.clone(), direction) };
        let begin = tsc::now();
        let mut last_word = None;
        let told = self.call()?.move_memory(&order, |told| {
            if let Some(moving) = &told.moving {
                last_word = Some(tsc::now());
                progress(moving.done_bytes, moving.total_bytes);
            }
        });
        let told = told.with_context(|| format!("cannot {}{}", direction.verb(), self.rack.logs()))?;
        let ordered = Span { begin, end: tsc::now() };
        let report = told.moved.with_context(|| format!("there was nothing to {}", direction.verb()))?;
        ensure!(
            report.outcome == MoveOutcome::Done,
            "the guest's memory did not {}: {:?}",
            direction.verb(),
            report.outcome
        );
        let span = self.span_of(&report, last_word.unwrap_or(ordered.end), begin);
        Ok(Moved { report, span, ordered })
    }

    /// Hands the guest, all of whose memory is in the pool, to the other host.
    pub(crate) fn handoff(&mut self) -> anyhow::Result<Landed> {
        interrupt::check()?;
        let to = self.rack.host(self.side.other()).name().clone();
        let order = Migrate {
            deadline_us: u64::try_from(DEADLINE.as_micros())?,
            settling: Settling::StayInPool,
            ..Migrate::new(self.name.clone(), to)
        };
        let begin = tsc::now();
        let report = self.call()?.migrate(&order, |_| {});
        let ordered = Span { begin, end: tsc::now() };
        let report = self.arrive(report)?;
        let claimed = self.control.timeline().get(Stamp::Claimed);
        Ok(Landed { report, claimed, ordered })
    }

    /// Moves it to the other host by one order, out of this host's DRAM and into that one's.
    pub(crate) fn journey(&mut self, budget: Budget, mut progress: impl FnMut(u64, u64)) -> anyhow::Result<Travelled> {
        interrupt::check()?;
        let to = self.rack.host(self.side.other()).name().clone();
        let order = Migrate {
            deadline_us: u64::try_from(DEADLINE.as_micros())?,
            budget,
            ..Migrate::new(self.name.clone(), to)
        };
        self.await_pass()?;
        let pulse = Pulse::start(self.home.view()?, self.finder(), &self.observer.clocks())?;
        std::thread::sleep(QUIET);
        let begin = tsc::now();
        let report = self.call()?.migrate(&order, |told| {
            if let Some(moving) = &told.moving {
                progress(moving.done_bytes, moving.total_bytes);
            }
        });
        let ordered = Span { begin, end: tsc::now() };
        let report = self.arrive(report)?;
        // So that the last look lies behind the end.
        std::thread::sleep(SETTLED);
        Ok(Travelled { report, ordered, record: pulse.finish()? })
    }

    /// Looks for the process that runs the guest on the other host, until there is one.
    fn finder(&self) -> Finder {
        let (host, id) = (self.rack.host(self.side.other()).clone(), self.control.id());
        let mut found = false;
        Box::new(move || {
            if found {
                return None;
            }
            let guests = Client::connect(&host).ok()?.ps().ok()?;
            let view = home_in(guests, id)?.view().ok()?;
            found = true;
            Some(view)
        })
    }

    /// Notes that the guest has changed hosts, or fails with the reason why it has not.
    fn arrive(&mut self, report: nil_host::Result<MigrationReport>) -> anyhow::Result<MigrationReport> {
        let to = self.rack.host(self.side.other()).name();
        let report =
            report.with_context(|| format!("the guest could not be handed to host {to}{}", self.rack.logs()))?;
        match &report.outcome {
            MigrationOutcome::Moved => {}
            MigrationOutcome::TakenBack { why }
            | MigrationOutcome::Cancelled { why }
            | MigrationOutcome::Stalled { why } => {
                bail!("host {to} did not get the guest: {why}{}", self.rack.logs())
            }
        }
        self.side = self.side.other();
        self.home = await_home(self.rack, self.side, &self.control)?;
        self.observer.look_through(self.home.view()?);
        Ok(report)
    }

    /// Waits until it has come by all of its memory, so that what it can do is not what it can do cold.
    pub(crate) fn await_pass(&self) -> anyhow::Result<()> {
        self.home.view()?.await_pass()
    }

    /// Follows its work and its pauses from now on, on the host that runs it now.
    pub(crate) fn pulse(&self) -> anyhow::Result<Pulse> {
        Pulse::through(self.home.view()?, &self.observer.clocks())
    }

    /// Has the guest verify every page and register.
    pub(crate) fn verify_all(&self) -> anyhow::Result<Verdict> {
        self.observer.verify_all()
    }

    /// What it has found so far.
    pub(crate) fn verdict(&self) -> anyhow::Result<Verdict> {
        self.observer.verdict()
    }

    /// What nil takes for it besides its own memory.
    pub(crate) fn overhead(&self) -> anyhow::Result<Overhead> {
        let info = self.rack.pool().find_guest(&self.control.id().to_string());
        let state = info.and_then(|info| info.state).and_then(|tag| self.rack.pool().find_capacity(tag));
        let state = state.context("the guest has no state in the pool")?.bytes;
        let memory = self.home.address..self.home.address.saturating_add(self.plan.memory_bytes);
        Overhead::of(self.home.pid, &memory, state)
    }

    /// Nanoseconds that its vCPU threads have waited for a core, while they could have run, in their lives.
    pub(crate) fn waited_for_a_core(&self) -> anyhow::Result<u64> {
        waiting_of_vcpus(self.home.pid)
    }

    /// The host that runs it now.
    pub(crate) fn host(&self) -> &HostName {
        self.rack.host(self.side).name()
    }

    /// Stops the guest and frees its memory.
    pub(crate) fn stop(self) -> anyhow::Result<()> {
        Ok(self.call()?.stop(&self.name)?)
    }

    fn call(&self) -> anyhow::Result<Client> {
        self.rack.call(self.side)
    }

    /// When a move was under way: it took as long as the mover says, and the last word of its progress came at its end. (The
    /// answer comes later: when the capacity is empty, it is released first.)
    fn span_of(&self, report: &MoveReport, end: u64, ordered: u64) -> Span {
        let took = self.observer.frequency().ticks(Duration::from_micros(report.elapsed_us));
        Span { begin: end.saturating_sub(took).max(ordered), end }
    }
}

impl Home {
    fn view(self) -> anyhow::Result<View> {
        View::of_process(self.pid, self.address)
    }
}

/// Waits until the agent says which process runs the guest, and where that has its memory.
fn await_home(rack: &Rack, side: Side, control: &GuestControl) -> anyhow::Result<Home> {
    let arrived = "the agent has not said which process runs the guest, and where it has the guest's memory";
    interrupt::wait_for(arrived, ARRIVAL, || Ok(home_in(rack.call(side)?.ps()?, control.id())))
}

/// Where the guest lives, by what an agent says of its guests.
fn home_in(guests: Vec<GuestReport>, id: GuestId) -> Option<Home> {
    let ours = guests.into_iter().find(|guest| guest.id == id)?;
    Some(Home { pid: ours.worker_pid?, address: ours.memory_address? })
}

/// Nanoseconds that the vCPU threads of the process `pid` have waited for a core: the second number in their `schedstat`.
fn waiting_of_vcpus(pid: i32) -> anyhow::Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut waited = 0_u64;
    for task in fs::read_dir(&tasks).with_context(|| format!("cannot list {tasks}"))?.flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        if read("comm").starts_with(VCPU_THREAD) {
            waited = waited.saturating_add(run_delay(&read("schedstat")).unwrap_or(0));
        }
    }
    Ok(waited)
}

fn run_delay(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_a_core_is_the_second_number() {
        assert_eq!(run_delay("123456 789 10\n"), Some(789));
        assert_eq!(run_delay(""), None);
    }
}
