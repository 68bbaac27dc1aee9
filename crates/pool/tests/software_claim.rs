//! How a guest would be claimed where no cache is told of another host's stores and compare-and-swap reaches no other host:
//! software coherence, for which pools are not made yet. This is the decision, and the search that it withstands; no code of
//! the pool follows it.
//!
//! Each word, and the state that is handed over, has one writer and lines of its own. Writers write back and wait; readers
//! invalidate before they read.
//!
//! ```text
//! source                                             target
//! payload, written back                              until the source's word is Frozen: look
//! Frozen, written back                               look at the payload
//! …                                                  Claiming, written back
//! Cancelling, written back                           look again:  Frozen      Claimed, written back; run
//! look at the target's word, until it is none of                  another     Yielded, written back
//!   Claiming: Claimed   released
//!             another   Owned, written back; run
//! ```
//!
//! Each announces what it wants before it looks at the other: so at least one of two sees the other, and the target gives way.
//! Whoever is dead has run the guest only if its word says so *in memory*, looked at after the death was known.

#![cfg(not(loom))]

use std::collections::HashSet;

const SOURCE: usize = 0;
const TARGET: usize = 1;
/// A line by its number; the first two are the words of the two hosts.
const PAYLOAD: usize = 2;

/// What a line says. The payload is Old or New, a word anything else.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Says {
    Old,
    New,
    Nothing,
    Frozen,
    Cancelling,
    Owned,
    Claiming,
    Claimed,
    Yielded,
}

/// What is left out; nothing, as a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mistake {
    None,
    /// The host does not ask for the write-back of this line.
    Forget(usize, usize),
    /// The host does not wait for the write-back of this line.
    Hurry(usize, usize),
    /// The host does not invalidate this line before it looks at it.
    Trust(usize, usize),
    /// The source asks whether the target is dead after it has looked at its word. (A target looks again because of a death.)
    LateObituary,
    /// The target does not look again.
    NoSecondLook,
    /// The target does not give way.
    NoYield,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Cached {
    says: Says,
    dirty: bool,
    asked: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct State {
    memory: [Says; 3],
    caches: [[Option<Cached>; 3]; 2],
    step: [u8; 2],
    dead: [bool; 2],
    /// The other host was dead when this one last began to look.
    mourns: [bool; 2],
    ran: [bool; 2],
    /// What the target has found in the payload.
    found: Says,
}

/// Steps at which a host has come to its end.
const END: u8 = 100;
/// First step of a target that takes over from a dead source.
const TAKE_OVER: u8 = 20;

impl State {
    fn first() -> Self {
        let memory = [Says::Nothing, Says::Nothing, Says::Old];
        Self {
            memory,
            caches: [[None; 3]; 2],
            step: [0; 2],
            dead: [false; 2],
            mourns: [false; 2],
            ran: [false; 2],
            found: Says::Nothing,
        }
    }

    fn at(mut self, host: usize, step: u8) -> Self {
        self.step[host] = step;
        self
    }

    fn store(mut self, host: usize, line: usize, says: Says, next: u8) -> Self {
        self.caches[host][line] = Some(Cached { says, dirty: true, asked: false });
        self.at(host, next)
    }

    fn ask(mut self, mistake: Mistake, host: usize, line: usize, next: u8) -> Self {
        if mistake != Mistake::Forget(host, line)
            && let Some(cached) = &mut self.caches[host][line]
        {
            cached.asked = true;
        }
        self.at(host, next)
    }

    /// Nothing while it waits.
    fn wait(self, mistake: Mistake, host: usize, line: usize, next: u8) -> Option<Self> {
        let pending = self.caches[host][line].is_some_and(|cached| cached.dirty && cached.asked);
        (!pending || mistake == Mistake::Hurry(host, line)).then(|| self.at(host, next))
    }

    fn invalidate(mut self, mistake: Mistake, host: usize, line: usize, next: u8) -> Self {
        if mistake != Mistake::Trust(host, line) {
            self.caches[host][line] = None;
        }
        self.at(host, next)
    }

    /// Begins to look at the other's word: first whether it is dead, then without what the cache has of it.
    fn begin_to_look(mut self, mistake: Mistake, host: usize, next: u8) -> Self {
        self.mourns[host] = self.dead[1 - host];
        self.invalidate(mistake, host, 1 - host, next)
    }

    fn load(mut self, host: usize, line: usize) -> (Says, Self) {
        let fetched = Cached { says: self.memory[line], dirty: false, asked: false };
        let cached = *self.caches[host][line].get_or_insert(fetched);
        (cached.says, self)
    }

    fn runs(mut self, host: usize) -> Self {
        self.ran[host] = true;
        self.at(host, END)
    }

    fn mourns(&self, mistake: Mistake, host: usize) -> bool {
        if mistake == Mistake::LateObituary { self.dead[1 - host] } else { self.mourns[host] }
    }

    /// The source's next step, if it has one now.
    fn source(self, mistake: Mistake) -> Option<Self> {
        Some(match self.step[SOURCE] {
            0 => self.store(SOURCE, PAYLOAD, Says::New, 1),
            1 => self.ask(mistake, SOURCE, PAYLOAD, 2),
            2 => self.wait(mistake, SOURCE, PAYLOAD, 3)?,
            3 => self.store(SOURCE, SOURCE, Says::Frozen, 4),
            4 => self.ask(mistake, SOURCE, SOURCE, 5),
            5 => self.wait(mistake, SOURCE, SOURCE, 6)?,
            // Its patience ends at any time.
            6 => self.store(SOURCE, SOURCE, Says::Cancelling, 7),
            7 => self.ask(mistake, SOURCE, SOURCE, 8),
            8 => self.wait(mistake, SOURCE, SOURCE, 9)?,
            9 => self.begin_to_look(mistake, SOURCE, 10),
            10 => {
                let (says, state) = self.load(SOURCE, TARGET);
                match says {
                    Says::Claimed => state.at(SOURCE, END),
                    Says::Claiming if !state.mourns(mistake, SOURCE) => state.at(SOURCE, 9),
                    _ => state.at(SOURCE, 11),
                }
            }
            11 => self.store(SOURCE, SOURCE, Says::Owned, 12),
            12 => self.ask(mistake, SOURCE, SOURCE, 13),
            13 => self.wait(mistake, SOURCE, SOURCE, 14)?,
            14 => self.runs(SOURCE),
            _ => return None,
        })
    }

    /// The target's next step, if it has one now.
    fn target(self, mistake: Mistake) -> Option<Self> {
        Some(match self.step[TARGET] {
            0 => self.begin_to_look(mistake, TARGET, 1),
            1 => {
                let (says, state) = self.load(TARGET, SOURCE);
                match says {
                    Says::Frozen => state.at(TARGET, 2),
                    Says::Nothing if !state.mourns[TARGET] => state.at(TARGET, 0),
                    _ => state.at(TARGET, END),
                }
            }
            2 => self.invalidate(mistake, TARGET, PAYLOAD, 3),
            3 => {
                let (found, mut state) = self.load(TARGET, PAYLOAD);
                state.found = found;
                state.at(TARGET, if mistake == Mistake::NoSecondLook { 9 } else { 4 })
            }
            4 => self.store(TARGET, TARGET, Says::Claiming, 5),
            5 => self.ask(mistake, TARGET, TARGET, 6),
            6 => self.wait(mistake, TARGET, TARGET, 7)?,
            7 => self.begin_to_look(mistake, TARGET, 8),
            8 => {
                let (says, state) = self.load(TARGET, SOURCE);
                let yields = says != Says::Frozen && mistake != Mistake::NoYield;
                state.at(TARGET, if yields { 13 } else { 9 })
            }
            9 => self.store(TARGET, TARGET, Says::Claimed, 10),
            10 => self.ask(mistake, TARGET, TARGET, 11),
            11 => self.wait(mistake, TARGET, TARGET, 12)?,
            12 => self.runs(TARGET),
            13 => self.store(TARGET, TARGET, Says::Yielded, 14),
            14 => self.ask(mistake, TARGET, TARGET, 15),
            15 => self.wait(mistake, TARGET, TARGET, END)?,
            TAKE_OVER => self.begin_to_look(mistake, TARGET, TAKE_OVER + 1),
            21 => {
                let (says, state) = self.load(TARGET, SOURCE);
                let free = matches!(says, Says::Frozen | Says::Cancelling) && state.mourns(mistake, TARGET);
                state.at(TARGET, if free { 22 } else { END + 1 })
            }
            22 => self.invalidate(mistake, TARGET, PAYLOAD, 23),
            23 => {
                let (found, mut state) = self.load(TARGET, PAYLOAD);
                state.found = found;
                state.at(TARGET, 9)
            }
            // It has given up, and hears later that the source is dead.
            END if self.dead[SOURCE] && !self.ran[TARGET] => self.at(TARGET, TAKE_OVER),
            _ => return None,
        })
    }

    /// All that may happen next.
    fn next(self, mistake: Mistake) -> Vec<Self> {
        let mut next = Vec::new();
        if !self.dead[SOURCE] {
            next.extend(self.source(mistake));
        }
        if !self.dead[TARGET] {
            next.extend(self.target(mistake));
        }
        for host in [SOURCE, TARGET] {
            for line in 0..3 {
                let mut changed = self;
                match self.caches[host][line] {
                    // A line leaves its cache when it likes, and not later than somebody waits for it.
                    Some(cached) if cached.dirty => {
                        changed.memory[line] = cached.says;
                        changed.caches[host][line] = Some(Cached { dirty: false, asked: false, ..cached });
                    }
                    Some(_) => changed.caches[host][line] = None,
                    // Or comes before it is needed.
                    None if !self.dead[host] => changed = self.load(host, line).1,
                    None => {}
                }
                next.push(changed);
            }
            // One of the two may die; what the other concludes from it is the question.
            if self.dead == [false, false] {
                let mut died = self;
                died.dead[host] = true;
                died.caches[host] = [None; 3];
                next.push(died);
            }
        }
        next.retain(|state| *state != self);
        next
    }

    fn wrong(&self) -> Option<&'static str> {
        if self.ran == [true, true] {
            return Some("both have run the guest");
        }
        (self.ran[TARGET] && self.found != Says::New).then_some("the target has run an earlier state")
    }

    /// Whether nobody will ever run it, though somebody could.
    fn is_stuck(&self, mistake: Mistake) -> bool {
        let over = |host: usize, next: Option<Self>| self.dead[host] || next.is_none();
        let nobody = self.ran == [false, false];
        let clean = self.caches.iter().flatten().flatten().all(|cached| !cached.dirty);
        let in_pool = matches!(self.memory[SOURCE], Says::Frozen | Says::Cancelling);
        nobody
            && clean
            && over(SOURCE, self.source(mistake))
            && over(TARGET, self.target(mistake))
            && (!self.dead[SOURCE] || (in_pool && !self.dead[TARGET]))
            && !(self.dead[TARGET] && self.memory[TARGET] == Says::Claimed)
    }
}

/// Every state that can be reached: how many, or what is wrong with one.
fn search(mistake: Mistake) -> Result<usize, &'static str> {
    let mut seen = HashSet::from([State::first()]);
    let mut open = vec![State::first()];
    while let Some(state) = open.pop() {
        if let Some(wrong) = state.wrong() {
            return Err(wrong);
        }
        if state.is_stuck(mistake) {
            return Err("nobody runs the guest any more");
        }
        open.extend(state.next(mistake).into_iter().filter(|next| seen.insert(*next)));
    }
    Ok(seen.len())
}

#[test]
fn one_of_two_gets_the_guest_without_compare_and_swap() {
    let states = search(Mistake::None).expect("it holds in every state");
    assert!(states > 1000, "only {states} states");
    println!("{states} states");
}

#[test]
fn every_write_back_wait_and_look_is_needed() {
    let mistakes = [
        Mistake::Forget(SOURCE, PAYLOAD),
        Mistake::Forget(SOURCE, SOURCE),
        Mistake::Forget(TARGET, TARGET),
        Mistake::Hurry(SOURCE, PAYLOAD),
        Mistake::Hurry(SOURCE, SOURCE),
        Mistake::Hurry(TARGET, TARGET),
        Mistake::Trust(SOURCE, TARGET),
        Mistake::Trust(TARGET, SOURCE),
        Mistake::Trust(TARGET, PAYLOAD),
        Mistake::LateObituary,
        Mistake::NoSecondLook,
        Mistake::NoYield,
    ];
    let unnoticed: Vec<Mistake> = mistakes.into_iter().filter(|mistake| search(*mistake).is_ok()).collect();
    assert!(unnoticed.is_empty(), "nothing goes wrong with {unnoticed:?}");
}
