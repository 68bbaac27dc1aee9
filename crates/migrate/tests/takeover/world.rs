//! The state of the model, and every step that it can take.
//!
//! Changes of the ownership word are [`nil_migrate::protocol::step`]'s, and what is to be done about it
//! [`nil_migrate::recovery::recover`] says, as in the agents. Whoever decides on a word and then swaps it does so in two steps.

use crate::Rule;
use nil_migrate::protocol::{Event, step};
use nil_migrate::recovery::{Liveness, Resolution, recover};
use nil_pool::{Epoch, HostSlot, Ownership};

/// The owner, and two peers. A host watches those before it.
pub(crate) const HOSTS: usize = 3;
/// Ticks after which a thread is kicked: the interval of its lease.
const INTERVAL: u8 = 2;
/// Ticks of an observer's clock after which a lease has expired: three intervals, as few as terms may have. A clock counts a tick
/// once, or twice if it is fast.
const EXPIRY: u8 = 3 * INTERVAL;
/// Steps in which a checkpoint is brought back.
const CHUNKS: u8 = 2;

/// What a host's thread does with the guest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Work {
    None,
    /// It runs it.
    Guest(Epoch),
    /// It brings it back; so many chunks are left.
    Restore(Epoch, u8),
}

/// Where that thread stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum At {
    /// About to take a pending kick back.
    Clear,
    /// About to beat.
    Beat,
    /// About to look whether it may.
    Look,
    /// It may; about to enter the guest, or to write.
    Enter,
    /// In the guest, or writing.
    In,
    /// It has left by itself, and is about to look before it enters again.
    Again,
}

/// What a peer does about a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Duty {
    Watch,
    /// About to declare it dead.
    Declare(usize),
    /// About to say that it fences it; `true`: it has declared it dead itself.
    Begin(usize, bool),
    /// About to look at its lease again.
    Reread(usize),
    /// Waits for so many ticks.
    Wait(usize, u8),
    /// About to say that it has stopped.
    Finish(usize),
    /// About to swap the word.
    Swap(Ownership, Ownership),
}

/// How far a host has been fenced.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Fence {
    Standing,
    Declared,
    Fencing(usize),
    Fenced,
}

/// What an observer knows of a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct View {
    /// The lease has moved since the last look.
    moved: bool,
    /// Ticks for which it stood still.
    still: u8,
    /// It has moved since this host was judged dead.
    moved_since: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Host {
    up: bool,
    work: Work,
    at: At,
    /// Ticks since the last kick was taken back; at [`INTERVAL`] one is pending.
    kick: u8,
    duty: Duty,
    fence: Fence,
    views: [View; HOSTS],
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Sins {
    pub(crate) claimed_unwhole: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    hosts: [Host; HOSTS],
    word: Ownership,
    /// The epoch of which the checkpoint has been brought back whole.
    whole: Option<Epoch>,
    deaths: u8,
    pub(crate) sins: Sins,
}

/// One step; the first number is the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Action {
    /// The host's thread takes its next step.
    Go(usize),
    /// It leaves the guest by itself.
    Leave(usize),
    /// It has brought a chunk back.
    Progress(usize),
    /// The peer takes its next step about that host.
    Attend(usize, usize),
    /// Everything of it is gone.
    Die(usize),
    /// An interval passes. Each observer's clock counts it once, or twice if it is fast; if one of them is paused, not at all.
    Tick { fast: bool, paused: Option<usize> },
}

pub(crate) fn actions() -> impl Iterator<Item = Action> {
    let of_host = |host| {
        let about = (0..host).map(move |other| Action::Attend(host, other));
        [Action::Go(host), Action::Leave(host), Action::Progress(host), Action::Die(host)].into_iter().chain(about)
    };
    let ticks = [None, Some(1), Some(2)].into_iter();
    let ticks = ticks.flat_map(|paused| [false, true].map(|fast| Action::Tick { fast, paused }));
    (0..HOSTS).flat_map(of_host).chain(ticks)
}

fn slot(host: usize) -> HostSlot {
    HostSlot::new(u16::try_from(host).expect("three hosts")).expect("a small slot")
}

impl Host {
    fn is_kicked(&self) -> bool {
        self.kick == INTERVAL
    }
}

fn expiry(rule: Rule) -> u8 {
    if rule == Rule::ExpireEarly { 2 } else { EXPIRY }
}

impl World {
    /// The guest runs on host 0, and has a checkpoint.
    pub(crate) fn running(deaths: u8) -> Self {
        let idle = Host {
            up: true,
            work: Work::None,
            at: At::Clear,
            kick: 0,
            duty: Duty::Watch,
            fence: Fence::Standing,
            views: [View::default(); HOSTS],
        };
        let mut hosts = [idle; HOSTS];
        hosts[0].work = Work::Guest(Epoch(1));
        let word = Ownership::Owned { host: slot(0), epoch: Epoch(1) };
        Self { hosts, word, whole: None, deaths, sins: Sins::default() }
    }

    pub(crate) fn take(&self, action: Action, rule: Rule) -> Option<Self> {
        let mut next = *self;
        match action {
            Action::Go(host) => next.go(host, rule)?,
            Action::Leave(host) => next.leave(host)?,
            Action::Progress(host) => next.progress(host)?,
            Action::Attend(host, other) => next.attend(host, other, rule)?,
            Action::Die(host) => next.die(host)?,
            Action::Tick { fast, paused } => next.tick(fast, paused, rule)?,
        }
        next.forget();
        Some(next)
    }

    /// Forgets what nobody will ask for any more, so that states that behave alike are one.
    fn forget(&mut self) {
        let fences = self.hosts.map(|host| host.fence);
        for host in &mut self.hosts {
            let judging = matches!(host.duty, Duty::Declare(_) | Duty::Begin(_, true) | Duty::Reread(_));
            for (view, fence) in host.views.iter_mut().zip(fences) {
                view.moved_since &= judging;
                if fence == Fence::Fenced || !host.up {
                    *view = View::default();
                }
            }
            if host.work == Work::None {
                (host.at, host.kick) = (At::Clear, 0);
            }
        }
    }

    fn die(&mut self, host: usize) -> Option<()> {
        self.deaths = self.deaths.checked_sub(1)?;
        if !self.hosts[host].up {
            return None;
        }
        self.stop(host);
        Some(())
    }

    /// Nothing of a host is left.
    fn stop(&mut self, host: usize) {
        let was = &mut self.hosts[host];
        (was.up, was.work, was.duty) = (false, Work::None, Duty::Watch);
    }

    /// An interval passes: the assumption about kernels. Whoever was kicked in the last one has left the guest by now.
    pub(crate) fn tick(&mut self, fast: bool, paused: Option<usize>, rule: Rule) -> Option<()> {
        let unbound = matches!(rule, Rule::NoTimer | Rule::KernelStops | Rule::KernelStopsBehindFence);
        if !unbound && self.hosts.iter().any(|host| host.at == At::In && host.is_kicked()) {
            return None;
        }
        let expiry = expiry(rule);
        for (index, host) in self.hosts.iter_mut().enumerate().filter(|(_, host)| host.up) {
            if host.work != Work::None && rule != Rule::NoTimer {
                host.kick = (host.kick + 1).min(INTERVAL);
            }
            if paused == Some(index) {
                continue;
            }
            let counts = if fast { 2 } else { 1 };
            if let Duty::Wait(_, left) = &mut host.duty {
                *left = left.saturating_sub(counts);
            }
            for view in &mut host.views[..index] {
                view.still = if view.moved { 0 } else { (view.still + counts).min(expiry) };
                view.moved = false;
            }
        }
        Some(())
    }

    fn has_expired(&self, observer: usize, host: usize, rule: Rule) -> bool {
        rule != Rule::NeverExpire && self.hosts[observer].views[host].still >= expiry(rule)
    }

    /// What a process asks before it enters the guest: is it still mine, and have I not been fenced?
    fn may(&self, host: usize) -> bool {
        let mine = match (self.hosts[host].work, self.word) {
            (Work::Guest(epoch), word) => word == Ownership::Owned { host: slot(host), epoch },
            (Work::Restore(epoch, _), Ownership::Taken { taker, epoch: now, .. }) => {
                taker == slot(host) && now == epoch
            }
            (Work::Restore(..) | Work::None, _) => false,
        };
        mine && self.hosts[host].fence == Fence::Standing
    }

    /// The thread that runs the guest, or brings it back.
    fn go(&mut self, host: usize, rule: Rule) -> Option<()> {
        let Host { up, work, at, .. } = self.hosts[host];
        let kicked = self.hosts[host].is_kicked();
        if !up || work == Work::None {
            return None;
        }
        let may = self.may(host) || rule == Rule::DoNotLook;
        let next = match at {
            At::Clear => {
                self.hosts[host].kick = 0;
                if rule == Rule::LookThenBeat { At::Look } else { At::Beat }
            }
            At::Beat => {
                for observer in &mut self.hosts[host + 1..] {
                    observer.views[host].moved = true;
                    observer.views[host].moved_since = true;
                }
                if rule == Rule::LookThenBeat { At::Enter } else { At::Look }
            }
            At::Look | At::Again if at == At::Again && rule == Rule::EnterUnchecked => At::Enter,
            At::Look | At::Again => {
                if !may {
                    self.stop(host);
                    return Some(());
                }
                if rule == Rule::LookThenBeat && at == At::Look { At::Beat } else { At::Enter }
            }
            // A kick that is pending ends KVM_RUN before the guest is entered.
            At::Enter if kicked && rule != Rule::EnterUnchecked => At::Clear,
            At::Enter => At::In,
            At::In if kicked => At::Clear,
            At::In => return None,
        };
        self.hosts[host].at = next;
        Some(())
    }

    fn leave(&mut self, host: usize) -> Option<()> {
        let is_in = self.hosts[host].at == At::In && !self.hosts[host].is_kicked();
        is_in.then(|| self.hosts[host].at = At::Again)
    }

    fn progress(&mut self, host: usize) -> Option<()> {
        let (Work::Restore(epoch, left), At::In) = (self.hosts[host].work, self.hosts[host].at) else { return None };
        let left = left.checked_sub(1)?;
        self.hosts[host].work = Work::Restore(epoch, left);
        if left == 0 {
            self.whole = Some(epoch);
            (self.hosts[host].work, self.hosts[host].at) = (Work::None, At::Clear);
        }
        Some(())
    }

    /// What a peer does about a host.
    fn attend(&mut self, me: usize, other: usize, rule: Rule) -> Option<()> {
        if !self.hosts[me].up {
            return None;
        }
        match self.hosts[me].duty {
            Duty::Watch => self.watch(me, other, rule),
            Duty::Declare(of) if of == other => {
                let first = self.hosts[of].fence == Fence::Standing;
                if first {
                    self.hosts[of].fence = Fence::Declared;
                }
                self.set(me, if first { Duty::Begin(of, true) } else { Duty::Watch })
            }
            Duty::Begin(of, mine) if of == other => {
                let by = match self.hosts[of].fence {
                    Fence::Declared => None,
                    Fence::Fencing(by) if by != me && self.is_gone(me, by, rule) => Some(by),
                    Fence::Standing | Fence::Fencing(_) | Fence::Fenced => return self.set(me, Duty::Watch),
                };
                self.hosts[of].fence = Fence::Fencing(me);
                self.set(me, if mine && by.is_none() { Duty::Reread(of) } else { Duty::Wait(of, EXPIRY) })
            }
            Duty::Reread(of) if of == other => {
                let moved = self.hosts[me].views[of].moved_since && rule != Rule::DoNotReread;
                let wait = moved && rule != Rule::DoNotWait;
                self.set(me, if wait { Duty::Wait(of, EXPIRY) } else { Duty::Finish(of) })
            }
            Duty::Wait(of, 0) if of == other => self.set(me, Duty::Finish(of)),
            Duty::Finish(of) if of == other => {
                if self.hosts[of].fence == Fence::Fencing(me) {
                    if rule == Rule::KernelStopsBehindFence {
                        // Whatever it does, it reaches the memory no more.
                        self.stop(of);
                    }
                    self.hosts[of].fence = Fence::Fenced;
                }
                self.set(me, Duty::Watch)
            }
            Duty::Swap(seen, next) if other == 0 => self.swap(me, seen, next, rule),
            Duty::Declare(_)
            | Duty::Begin(..)
            | Duty::Reread(_)
            | Duty::Wait(..)
            | Duty::Finish(_)
            | Duty::Swap(..) => None,
        }
    }

    fn set(&mut self, me: usize, duty: Duty) -> Option<()> {
        self.hosts[me].duty = duty;
        Some(())
    }

    /// Whether a host that was to do something does nothing more, as far as `me` knows.
    fn is_gone(&self, me: usize, host: usize, rule: Rule) -> bool {
        host < me && (self.hosts[host].fence != Fence::Standing || self.has_expired(me, host, rule))
    }

    fn watch(&mut self, me: usize, other: usize, rule: Rule) -> Option<()> {
        match self.hosts[other].fence {
            Fence::Standing if rule == Rule::TakeFromExpired && self.has_expired(me, other, rule) => {}
            Fence::Standing if self.has_expired(me, other, rule) => {
                let view = &mut self.hosts[me].views[other];
                view.moved_since = view.moved;
                return self.set(me, Duty::Declare(other));
            }
            Fence::Standing => return None,
            Fence::Declared if rule == Rule::TakeFromDeclared => {}
            Fence::Declared | Fence::Fencing(_) if rule == Rule::LeaveHalfFenced => return None,
            Fence::Declared => return self.set(me, Duty::Begin(other, false)),
            Fence::Fencing(by) if by != me && self.is_gone(me, by, rule) => {
                return self.set(me, Duty::Begin(other, false));
            }
            Fence::Fencing(_) => return None,
            Fence::Fenced => {}
        }
        if self.word.hosts().contains(&Some(slot(other))) { self.decide(me, rule) } else { None }
    }

    /// What is to be done about the guest of a fenced host.
    fn decide(&mut self, me: usize, rule: Rule) -> Option<()> {
        if self.hosts[me].work != Work::None {
            return None;
        }
        let gone = |host: usize| match self.hosts[host].fence {
            Fence::Fenced => true,
            Fence::Declared => rule == Rule::TakeFromDeclared,
            Fence::Standing => rule == Rule::TakeFromExpired && host < me && self.has_expired(me, host, rule),
            Fence::Fencing(_) => false,
        };
        let liveness = |host: HostSlot| match host.index() {
            index if index == me => Liveness::Idle,
            index if gone(index) => Liveness::Gone,
            _ => Liveness::Unknown,
        };
        let seen = self.word;
        let event = match recover(seen, liveness) {
            Resolution::Bury(dead) | Resolution::SalvageOrBury(dead) => Event::Take { dead },
            Resolution::Retake(_) if rule == Rule::LeaveHalfTaken => return None,
            Resolution::Retake(dead) => Event::Retake { dead },
            Resolution::BringBack(_) => match seen.epoch() {
                Some(epoch) if self.whole == Some(epoch) || rule == Rule::RaiseEarly => Event::Raise,
                epoch => {
                    (self.hosts[me].work, self.hosts[me].at) = (Work::Restore(epoch?, CHUNKS), At::Clear);
                    return Some(());
                }
            },
            Resolution::TakeOver(_) => Event::Claim,
            Resolution::Stranded { target, .. } => Event::Redirect { dead: target },
            Resolution::Nothing | Resolution::LeaveTo(_) | Resolution::TakeBack(_) | Resolution::Lost(_) => {
                return None;
            }
        };
        let next = step(seen, slot(me), event).expect("recovery asks for legal events");
        self.set(me, Duty::Swap(seen, next))
    }

    fn swap(&mut self, me: usize, seen: Ownership, next: Ownership, rule: Rule) -> Option<()> {
        self.set(me, Duty::Watch);
        if self.word != seen && rule != Rule::TakeWithoutComparing {
            return Some(());
        }
        self.word = next;
        match (seen, next) {
            (Ownership::Frozen { epoch: of, .. }, Ownership::Owned { epoch, .. }) => {
                self.sins.claimed_unwhole |= self.whole != Some(of);
                (self.hosts[me].work, self.hosts[me].at) = (Work::Guest(epoch), At::Clear);
            }
            // In the same breath, so that whoever overwrites another's word is seen to write beside it.
            (_, Ownership::Taken { epoch, .. }) if rule == Rule::TakeWithoutComparing => {
                (self.hosts[me].work, self.hosts[me].at) = (Work::Restore(epoch, CHUNKS), At::Clear);
            }
            _ => {}
        }
        Some(())
    }

    pub(crate) fn runs_on(&self, host: usize) -> bool {
        matches!(self.hosts[host].work, Work::Guest(_)) && self.hosts[host].at == At::In
    }

    /// A process of a fenced host has ended that nobody had killed.
    pub(crate) fn has_stopped(&self, deaths: u8) -> bool {
        self.deaths == deaths && self.hosts.iter().any(|host| host.fence == Fence::Fenced && !host.up)
    }

    /// A peer has judged a host dead, and the host has beaten since.
    pub(crate) fn must_wait(&self) -> bool {
        let reads = |host: &Host| matches!(host.duty, Duty::Reread(of) if host.views[of].moved_since);
        self.hosts.iter().any(reads)
    }

    /// A fencer goes on with what another had begun.
    pub(crate) fn has_replaced_a_fencer(&self) -> bool {
        self.hosts[0].fence == Fence::Fencing(2) && self.hosts[1].fence != Fence::Standing
    }

    /// The guest was taken from a host that had taken it.
    pub(crate) fn has_replaced_a_taker(&self) -> bool {
        self.hosts[1].fence == Fence::Fenced && self.word.epoch() > Some(Epoch(3))
    }

    /// A peer is about to swap a word that is another one by now.
    pub(crate) fn is_late(&self) -> bool {
        self.hosts.iter().any(|host| matches!(host.duty, Duty::Swap(seen, _) if seen != self.word))
    }

    pub(crate) fn runners(&self) -> usize {
        (0..HOSTS).filter(|host| self.runs_on(*host)).count()
    }

    pub(crate) fn writers(&self) -> usize {
        self.hosts.iter().filter(|host| host.work != Work::None && host.at == At::In).count()
    }

    pub(crate) fn a_fenced_host_writes(&self) -> bool {
        self.hosts.iter().any(|host| host.work != Work::None && host.at == At::In && host.fence == Fence::Fenced)
    }

    /// Whether the guest is where it should be when nothing more happens.
    pub(crate) fn is_settled(&self) -> bool {
        // The last host that may take it watches all others; nobody watches it.
        !self.hosts[HOSTS - 1].up || (0..HOSTS).any(|host| self.hosts[host].work != Work::None)
    }
}
