//! A simulated medium: the pool's memory as several hosts see it, each through caches of its own. For this crate's tests, which
//! run the pool's own code on it.
//!
//! ```text
//!   host 0                            host 1
//!   store buffer                      store buffer          in any order, but for releases; a compare-and-swap and a
//!     │                                 │                    sequentially consistent fence empty it
//!   cache: lines of 64 bytes          cache                 seen by every host; dies with its host
//!     └──── written back ─────┬─────────┘
//!                   the pool's memory                       survives
//! ```
//!
//! A word of a mapping is known by its place in its file, so that two mappings of it are one. While a simulation runs on a
//! thread, [`AtomicU64`], [`fence`] and the copies of `mapping.rs` go through the caches of the *current* host. What they write
//! stays in the simulation: the file is as it was when it ends.
//!
//! **Coherent by hardware**: a load sees the newest store whoever made it, and a line that a peer looks at or writes has been
//! written back before. When a host dies, each line that its cache holds has got as far as any one of the stores to it since it
//! was last written back: lines leave in any order, a line's stores in theirs.
//!
//! **Coherent by software**: a load sees what the host's own cache has of the line, from when it was fetched, until the host drops
//! it; a store fetches the line; and what is written back is the whole line, over whatever the memory has. Nobody is told of
//! another's stores, and a compare-and-swap is one in the own cache. Hosts fetch lines, too, before they need them.

mod atomic;
mod mutation;
mod places;
#[cfg(test)]
mod tests;

pub(crate) use atomic::AtomicU64;
pub use atomic::fence;
pub(crate) use mutation::Mutation;
pub(crate) use places::{mapped, unmapped};

use crate::backing::Backing;
use crate::format::header::Coherence;
use crate::persist::Point;
use places::Place;
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

/// Bytes of a cache line.
const LINE: u64 = 64;
/// Words of a cache line.
const WORDS: usize = 8;
const LINE_BYTES: usize = 64;
/// So many stores of a store buffer are candidates for leaving it next.
const WINDOW: usize = 16;
/// Hosts of a simulation.
const HOSTS: usize = 4;

thread_local! {
    static RUNNING: RefCell<Option<Medium>> = const { RefCell::new(None) };
}

/// What becomes of a host's lines when it dies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fate {
    /// Whatever was not written back is lost.
    Lost,
    /// Everything had left the caches.
    Kept,
    /// Each line for itself.
    Chance,
}

/// What is simulated.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// Whether the memory outlives its hosts, so that they write back. Else their caches outlive them, as those of processes.
    pub(crate) outlived: bool,
    /// Whether the kernel can make zeros, as in a file.
    pub(crate) punches: bool,
    /// How the hosts' caches agree. By software the memory outlives its hosts in any case.
    pub(crate) coherence: Coherence,
    pub(crate) mutation: Option<Mutation>,
    pub(crate) seed: u64,
    /// Before which writes hosts die: every so many, from this one on.
    pub(crate) every: usize,
    pub(crate) first: usize,
}

impl Settings {
    /// Of hosts whose caches do not agree.
    pub(crate) fn software() -> Self {
        Self { coherence: Coherence::Software, ..Self::default() }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            outlived: true,
            punches: true,
            coherence: Coherence::Hardware,
            mutation: None,
            seed: 1,
            every: 1,
            first: 0,
        }
    }
}

/// A line in a host's cache that its memory does not know yet.
#[derive(Clone, Debug, Default)]
struct Line {
    /// Word of the line and its value, in order, since the line was last written back.
    stores: Vec<(u8, u64)>,
    /// So many of them are to be written back, by a host that has not waited for it.
    asked: usize,
}

/// A store that has not left its host's store buffer.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    place: Place,
    value: u64,
    /// Releases that it must not overtake.
    releases: usize,
}

#[derive(Clone, Debug, Default)]
struct Host {
    buffer: VecDeque<Waiting>,
    releases: usize,
    lines: BTreeMap<Place, Line>,
    /// What its cache has of lines, without the stores in `lines`; where it is not what the other hosts have.
    fetched: BTreeMap<Place, [u64; WORDS]>,
    dead: bool,
}

impl Host {
    fn is_empty(&self) -> bool {
        self.buffer.is_empty() && self.lines.is_empty()
    }
}

/// A simulation, of one thread.
#[derive(Debug)]
pub(crate) struct Medium {
    settings: Settings,
    hosts: Vec<Host>,
    current: usize,
    /// What differs from the file.
    memory: BTreeMap<Place, u64>,
    /// What the kernel has made zeros; what was written there afterwards is in `memory`.
    zeros: Vec<Range<Place>>,
    random: u64,
    /// How soon stores leave a store buffer by themselves: 0 never, 2 at once.
    eagerness: usize,
    /// How often the mutation has left something out.
    left_out: usize,
    /// A word that a line was written back over although somebody else had changed it.
    overwritten: Option<Place>,
}

/// Begins a simulation; host 0 is the current one.
pub(crate) fn start(settings: Settings) {
    let random = settings.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let hosts = vec![Host::default(); HOSTS];
    let mut medium = Medium {
        settings,
        hosts,
        current: 0,
        memory: BTreeMap::new(),
        zeros: Vec::new(),
        random,
        eagerness: 0,
        left_out: 0,
        overwritten: None,
    };
    medium.eagerness = medium.draw(3);
    RUNNING.set(Some(medium));
}

/// Ends the simulation; how often its mutation has left something out.
pub(crate) fn end() -> usize {
    RUNNING.take().map_or(0, |medium| medium.left_out)
}

/// From now on this thread is that host.
pub(crate) fn become_host(host: usize) {
    with(|medium| medium.current = host);
}

/// Which host this thread is.
pub(crate) fn current_host() -> usize {
    with(|medium| medium.current).unwrap_or(0)
}

/// A host dies, with what its caches hold.
pub(crate) fn die(host: usize, fate: Fate) {
    with(|medium| medium.die(host, fate));
}

/// Whether that host has died.
pub(crate) fn has_died(host: usize) -> bool {
    with(|medium| medium.hosts.get(host).is_some_and(|host| host.dead)).unwrap_or(false)
}

/// Whether the simulated hosts keep their caches coherent by themselves; nothing when no simulation runs.
pub(crate) fn is_software_coherent() -> Option<bool> {
    with(|medium| medium.is_software_coherent())
}

/// Where in its pool a word has been lost because another one of its line was written back.
pub(crate) fn overwritten() -> Option<u64> {
    with(|medium| medium.overwritten.map(|place| place.offset)).flatten()
}

/// See [`crate::persist::refresh`]; false when nothing is simulated there.
pub(crate) fn refresh(start: *const u8, bytes: usize) -> bool {
    with_place(start.addr(), |medium, place| medium.refresh(place.line()..place.after(bytes.max(1)))).is_some()
}

/// A number below `bound`, from the simulation's seed.
pub(crate) fn draw(bound: usize) -> usize {
    with(|medium| medium.draw(bound)).unwrap_or(0)
}

fn with<R>(work: impl FnOnce(&mut Medium) -> R) -> Option<R> {
    // A signal handler that comes in between sees the memory as it is.
    RUNNING.with(|running| running.try_borrow_mut().ok()?.as_mut().map(work))
}

fn is_running() -> bool {
    with(|_| ()).is_some()
}

/// The same for a word of the pool at this address; nothing when no simulation runs, or for memory that is no pool's.
fn with_place<R>(address: usize, work: impl FnOnce(&mut Medium, Place) -> R) -> Option<R> {
    with(|medium| Some(work(medium, places::find(address)?))).flatten()
}

/// See [`crate::persist`]; false when nothing is simulated there.
pub(crate) fn persist(point: Point, start: *const u8, bytes: usize) -> bool {
    if !is_running() {
        return false;
    }
    // Whoever dies may die between the store and its write-back, and before it is sure of that.
    crate::fault::step();
    with_place(start.addr(), |medium, place| medium.write_back(point, place.line()..place.after(bytes)));
    crate::fault::step();
    with(|medium| medium.wait(point));
    true
}

/// See [`crate::mapping::copy_in`]; false when nothing is simulated there.
pub(crate) fn copy_in(to: *mut u8, bytes: &[u8]) -> bool {
    if !is_running() || places::find(to.addr()).is_none() {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() {
        let address = to.addr() + at;
        let (word, within) = (address & !7, address % 8);
        let count = (8 - within).min(bytes.len() - at);
        // Once for each line: what its stores leave in between is a matter of how far it has got when its host dies.
        if at == 0 || address.is_multiple_of(64) {
            crate::fault::step();
        }
        with_place(word, |medium, place| {
            let mut value = medium.load(place, || atomic::native(word)).to_le_bytes();
            value[within..within + count].copy_from_slice(&bytes[at..at + count]);
            medium.store(place, u64::from_le_bytes(value), false);
        });
        at += count;
    }
    true
}

/// See [`crate::mapping::copy_out`]; false when nothing is simulated there.
pub(crate) fn copy_out(from: *const u8, bytes: &mut [u8]) -> bool {
    if !is_running() || places::find(from.addr()).is_none() {
        return false;
    }
    let mut at = 0;
    while at < bytes.len() {
        let address = from.addr() + at;
        let (word, within) = (address & !7, address % 8);
        let count = (8 - within).min(bytes.len() - at);
        let value = with_place(word, |medium, place| medium.load(place, || atomic::native(word)));
        let value = value.unwrap_or(0).to_le_bytes();
        bytes[at..at + count].copy_from_slice(&value[within..within + count]);
        at += count;
    }
    true
}

/// Writes zeros; false when nothing is simulated there.
pub(crate) fn zero(start: *mut u8, bytes: usize) -> bool {
    for word in (start.addr()..start.addr() + bytes).step_by(8) {
        if with_place(word, |medium, place| medium.enter(medium.current, place, 0)).is_none() {
            return false;
        }
    }
    true
}

/// Whether the kernel is to be asked for zeros. The simulation has made them then, and the file stays as it is.
pub(crate) fn punch(backing: &Backing, offset: u64, bytes: u64) -> Option<bool> {
    with(|medium| {
        if medium.settings.punches {
            medium.punch(places::file_of(backing), offset, bytes);
        }
        medium.settings.punches
    })
}

impl Medium {
    fn draw(&mut self, bound: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        usize::try_from(self.random >> 33).unwrap_or(0) % bound.max(1)
    }

    fn word(&self, place: Place) -> Option<u64> {
        let zero = || self.zeros.iter().any(|range| range.contains(&place)).then_some(0);
        self.memory.get(&place).copied().or_else(zero)
    }

    /// What the current host sees. `file` is what lies in the file.
    fn load(&mut self, place: Place, file: impl FnOnce() -> u64) -> u64 {
        if self.is_software_coherent() {
            self.fetch(self.current, place.line());
        } else {
            self.look_at(place);
        }
        let host = &self.hosts[self.current];
        let buffered = host.buffer.iter().rev().find(|waiting| waiting.place == place).map(|waiting| waiting.value);
        let stored = || newest(host.lines.get(&place.line())?, place.word());
        let fetched = || host.fetched.get(&place.line()).map(|words| words[usize::from(place.word())]);
        let cached = || stored().or_else(fetched);
        buffered.or_else(cached).or_else(|| self.word(place)).unwrap_or_else(file)
    }

    /// The other hosts let the current one see their newest version of a line: what they have stored, and perhaps what still
    /// waits in a store buffer.
    fn look_at(&mut self, place: Place) {
        for host in 0..HOSTS {
            if host == self.current || self.hosts[host].is_empty() {
                continue;
            }
            while let Some(at) = self.hosts[host].buffer.iter().position(|waiting| waiting.place == place) {
                // It leaves by itself sooner or later: in some simulations at once, in some not before it must.
                let leaves = self.draw(2) < self.eagerness;
                if !leaves {
                    break;
                }
                let before = self.hosts[host].buffer[at].releases;
                if self.hosts[host].buffer[0].releases < before {
                    self.push_out_of(host, |waiting| waiting.releases < before);
                }
                let at = self.hosts[host].buffer.iter().position(|waiting| waiting.place == place);
                self.leave_buffer(host, at.unwrap_or(0));
            }
            self.write_line_back(host, place.line(), usize::MAX);
        }
    }

    /// The current host stores a word. With `release`, everything that it stored before is seen before.
    fn store(&mut self, place: Place, value: u64, release: bool) {
        let host = &mut self.hosts[self.current];
        host.releases += usize::from(release);
        host.buffer.push_back(Waiting { place, value, releases: host.releases });
    }

    /// What the current host stores from now on is not seen before what it has stored until now.
    fn release(&mut self) {
        self.hosts[self.current].releases += 1;
    }

    /// The current host changes a word at once, if `change` says to what; what it was before.
    fn change(
        &mut self,
        place: Place,
        release: bool,
        file: impl FnOnce() -> u64,
        change: impl FnOnce(u64) -> Option<u64>,
    ) -> u64 {
        self.push_out(|waiting| release || waiting.place == place);
        let before = self.load(place, file);
        if let Some(after) = change(before) {
            self.enter(self.current, place, after);
        }
        before
    }

    fn push_out(&mut self, wanted: impl Fn(&Waiting) -> bool) {
        self.push_out_of(self.current, wanted);
    }

    /// What waits in a host's store buffer reaches its cache: in an order of chance, but for releases, and of the stores to one
    /// word the first comes first.
    fn push_out_of(&mut self, host: usize, wanted: impl Fn(&Waiting) -> bool) {
        let buffer = std::mem::take(&mut self.hosts[host].buffer);
        let (leaving, staying): (VecDeque<_>, VecDeque<_>) = buffer.into_iter().partition(wanted);
        self.hosts[host].buffer = leaving;
        while !self.hosts[host].buffer.is_empty() {
            let drawn = self.draw(self.hosts[host].buffer.len().min(WINDOW));
            let buffer = &self.hosts[host].buffer;
            let releases = buffer[0].releases;
            let chosen = if buffer[drawn].releases == releases { buffer[drawn].place } else { buffer[0].place };
            let first = buffer.iter().position(|waiting| waiting.place == chosen);
            self.leave_buffer(host, first.unwrap_or(0));
        }
        self.hosts[host].buffer = staying;
    }

    fn leave_buffer(&mut self, host: usize, at: usize) {
        if let Some(Waiting { place, value, .. }) = self.hosts[host].buffer.remove(at) {
            self.enter(host, place, value);
        }
    }

    /// A store reaches a host's cache: no other cache has the line any more.
    fn enter(&mut self, host: usize, place: Place, value: u64) {
        if self.is_software_coherent() {
            self.fetch(host, place.line());
            return self.hosts[host].lines.entry(place.line()).or_default().stores.push((place.word(), value));
        }
        for other in (0..HOSTS).filter(|other| *other != host) {
            self.write_line_back(other, place.line(), usize::MAX);
        }
        self.hosts[host].lines.entry(place.line()).or_default().stores.push((place.word(), value));
    }

    /// The first `count` stores to a line reach the memory.
    fn write_line_back(&mut self, host: usize, line: Place, count: usize) {
        if self.is_software_coherent() {
            self.let_others_fetch(host, line);
        }
        let Some(cached) = self.hosts[host].lines.get_mut(&line) else { return };
        let count = count.min(cached.stores.len());
        let stores: Vec<_> = cached.stores.drain(..count).collect();
        cached.asked = cached.asked.saturating_sub(count);
        if cached.stores.is_empty() {
            self.hosts[host].lines.remove(&line);
        }
        if self.is_software_coherent() {
            return self.write_whole_line(host, line, &stores);
        }
        for (word, value) in stores {
            self.memory.insert(line.at_word(word), value);
        }
    }

    fn is_software_coherent(&self) -> bool {
        self.settings.coherence == Coherence::Software
    }

    /// Whether hosts write back because their caches die with them, or because nobody else sees what is there.
    fn outlives(&self) -> bool {
        self.settings.outlived || self.is_software_coherent()
    }

    /// The line as it is in memory.
    fn in_memory(&self, line: Place) -> [u64; WORDS] {
        let mut words = [0; WORDS];
        if let Some(address) =
            places::address_of(line).filter(|_| !self.zeros.iter().any(|range| range.contains(&line)))
        {
            for (at, value) in words.iter_mut().enumerate() {
                *value = atomic::native(address + 8 * at);
            }
        }
        for (place, value) in self.memory.range(line..line.after(LINE_BYTES)) {
            words[usize::from(place.word())] = *value;
        }
        words
    }

    /// A host's cache has the line, as it is there or as it was when it came.
    fn fetch(&mut self, host: usize, line: Place) {
        if !self.hosts[host].fetched.contains_key(&line) {
            let words = self.in_memory(line);
            self.hosts[host].fetched.insert(line, words);
        }
    }

    /// Before a line changes in memory others may have fetched it, although nothing there has asked for it.
    fn let_others_fetch(&mut self, host: usize, line: Place) {
        for other in (0..HOSTS).filter(|other| *other != host) {
            if self.draw(2) == 0 {
                self.fetch(other, line);
            }
        }
    }

    /// A line goes back as a whole, with the words that its host has not stored as they were when it fetched them.
    fn write_whole_line(&mut self, host: usize, line: Place, stores: &[(u8, u64)]) {
        if stores.is_empty() {
            return;
        }
        let before = self.in_memory(line);
        let cached = self.hosts[host].fetched.entry(line).or_insert(before);
        let fetched = *cached;
        for (word, value) in stores {
            cached[usize::from(*word)] = *value;
        }
        let words = *cached;
        for (word, value) in (0..).zip(words) {
            let (place, at) = (line.at_word(word), usize::from(word));
            let stored = stores.iter().any(|(stored, _)| *stored == word);
            if !stored && fetched[at] != before[at] {
                self.overwritten.get_or_insert(place);
            }
            self.memory.insert(place, value);
        }
    }

    /// The current host's cache holds none of these lines any more; its stores to them are in memory.
    fn refresh(&mut self, lines: Range<Place>) {
        if self.leaves_out(|mutation| mutation.trusts(lines.start)) {
            return;
        }
        self.push_out(|waiting| lines.contains(&waiting.place));
        let stored: Vec<_> = self.hosts[self.current].lines.range(lines.clone()).map(|(line, _)| *line).collect();
        stored.into_iter().for_each(|line| self.write_line_back(self.current, line, usize::MAX));
        let host = &mut self.hosts[self.current];
        let fetched: Vec<_> = host.fetched.range(lines).map(|(line, _)| *line).collect();
        for line in fetched {
            host.fetched.remove(&line);
        }
    }

    /// The current host asks for lines to be written back.
    fn write_back(&mut self, point: Point, lines: Range<Place>) {
        if !self.outlives() || self.leaves_out(|mutation| mutation.forgets(point, lines.start)) {
            return;
        }
        self.push_out(|_| true);
        for (_, cached) in self.hosts[self.current].lines.range_mut(lines) {
            cached.asked = cached.stores.len();
        }
    }

    /// The current host waits until all that it has asked for has been written back.
    fn wait(&mut self, point: Point) {
        if !self.outlives() || self.leaves_out(|mutation| mutation.hurries(point)) {
            return;
        }
        self.push_out(|_| true);
        let asked: Vec<_> = self.hosts[self.current].lines.iter().map(|(line, cached)| (*line, cached.asked)).collect();
        for (line, count) in asked {
            self.write_line_back(self.current, line, count);
        }
    }

    /// Whether the mutation leaves something out here.
    fn leaves_out(&mut self, does: impl FnOnce(&Mutation) -> bool) -> bool {
        let leaves = self.settings.mutation.as_ref().is_some_and(does);
        self.left_out += usize::from(leaves);
        leaves
    }

    fn punch(&mut self, file: places::FileId, offset: u64, bytes: u64) {
        let range = Place { file, offset }..Place { file, offset: offset + bytes };
        for host in &mut self.hosts {
            host.buffer.retain(|waiting| !range.contains(&waiting.place));
            host.lines.retain(|line, _| !range.contains(line));
        }
        self.hosts[self.current].fetched.retain(|line, _| !range.contains(line));
        self.memory.retain(|at, _| !range.contains(at));
        self.zeros.push(range);
    }

    fn die(&mut self, host: usize, fate: Fate) {
        let current = std::mem::replace(&mut self.current, host);
        // A process that dies has made its stores: they are seen. A host's may never have left it.
        let fate = if self.outlives() { fate } else { Fate::Kept };
        let waiting = self.hosts[host].buffer.len();
        let left = match fate {
            Fate::Lost => 0,
            Fate::Kept => waiting,
            Fate::Chance => self.draw(waiting + 1),
        };
        self.hosts[host].buffer.truncate(left);
        self.push_out(|_| true);
        let lines: Vec<_> = self.hosts[host].lines.iter().map(|(line, cached)| (*line, cached.stores.len())).collect();
        // By chance: each line for itself, or all those before some place, or all those behind it.
        let (manner, border) = (self.draw(3), self.draw(lines.len() + 1));
        for (number, (line, stores)) in lines.into_iter().enumerate() {
            let count = match fate {
                Fate::Lost => 0,
                Fate::Kept => stores,
                Fate::Chance if manner == 1 => {
                    if number < border {
                        stores
                    } else {
                        0
                    }
                }
                Fate::Chance if manner == 2 => {
                    if number < border {
                        0
                    } else {
                        stores
                    }
                }
                // Half of the lines whole or not at all, the others up to some store.
                Fate::Chance if self.draw(2) == 0 => stores * self.draw(2),
                Fate::Chance => self.draw(stores + 1),
            };
            self.write_line_back(host, line, count);
        }
        self.hosts[host] = Host { dead: true, ..Host::default() };
        self.current = current;
    }
}

/// The newest value of a word in a line.
fn newest(line: &Line, word: u8) -> Option<u64> {
    line.stores.iter().rev().find(|(at, _)| *at == word).map(|(_, value)| *value)
}
