//! The planner: a fabric prepared for many questions.

use crate::alternatives;
use crate::cost::{Cost, CostModel, Pace, Relocation};
use crate::error::{Error, Result};
use crate::model::{DeviceId, Fabric, HostId, LinkId};
use crate::namespaces::{self, Namespaces};
use crate::path::{Begin, End, Leg, Path, PathRequest, Step};
use crate::quantity::{Bytes, Duration, Rate};
use crate::routes::{Route, Routes};
use crate::search::{Bound, Place, Rules, Search, Start};
use crate::sharing::Sharing;
use std::ops::ControlFlow;

/// Answers questions about one fabric. Making it costs about as much as reading the fabric's links a few times.
pub struct Planner<'a> {
    fabric: &'a Fabric,
    model: CostModel,
    sharing: Sharing,
    routes: Routes,
    widest: Rate,
    /// Each host's pace, and one that is no worse than any of them.
    paces: Vec<Pace>,
    best: Pace,
    /// Hosts that reach two devices at least, so that a guest can go on from there.
    leads_on: Vec<bool>,
}

impl<'a> Planner<'a> {
    /// Prepares a fabric, with the default figures.
    #[must_use]
    pub fn new(fabric: &'a Fabric) -> Self {
        Self::with_model(fabric, CostModel::default())
    }

    /// Prepares a fabric, with figures of one's own.
    #[must_use]
    pub fn with_model(fabric: &'a Fabric, model: CostModel) -> Self {
        let sharing = Sharing::of(fabric);
        let routes = Routes::of(fabric, &sharing);
        let widest = |rates: &mut dyn Iterator<Item = Rate>| rates.max().unwrap_or_default();
        let links = widest(&mut fabric.links().iter().map(|link| link.bandwidth));
        let devices = widest(&mut fabric.devices().iter().map(|device| device.bandwidth));
        let leads_on = |host| {
            let mut reached = sharing.reached_by(host);
            reached.next().is_some_and(|first| reached.any(|device| device != first))
        };
        let leads_on = fabric.host_ids().map(leads_on).collect();
        let paces: Vec<Pace> = fabric.hosts().iter().map(|host| model.pace(host)).collect();
        let best = model.best(&paces);
        Self { fabric, model, sharing, routes, widest: links.min(devices), paces, best, leads_on }
    }

    /// The fabric.
    #[must_use]
    pub fn fabric(&self) -> &'a Fabric {
        self.fabric
    }

    /// The figures that predictions are made of.
    #[must_use]
    pub fn model(&self) -> &CostModel {
        &self.model
    }

    /// The migration namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::of(&self.sharing, self.fabric.hosts().len(), self.fabric.devices().len())
    }

    /// How many handoffs each host is away from `host`, as [`Fabric::handoffs_from`].
    #[must_use]
    pub fn handoffs_from(&self, host: HostId) -> Vec<Option<u32>> {
        namespaces::handoffs_from(&self.sharing, host, self.fabric.hosts().len(), self.fabric.devices().len())
    }

    /// The best route from a host to a device, if that can be shared from there.
    #[must_use]
    pub fn route(&self, host: HostId, device: DeviceId) -> Option<Route> {
        self.routes.best(self.fabric, &self.sharing, host, device)
    }

    /// The links of that route.
    #[must_use]
    pub fn links(&self, host: HostId, device: DeviceId) -> Vec<LinkId> {
        self.routes.links(self.fabric, &self.sharing, host, device)
    }

    /// The way that is predicted to be the quickest.
    ///
    /// # Errors
    /// There is none; the error says what is in the way.
    pub fn path(&self, request: &PathRequest) -> Result<Path> {
        self.alternatives(request, 1).map(|mut paths| paths.swap_remove(0))
    }

    /// The `count` quickest ways, the quickest first; fewer if there are no more. No way passes a host or a device twice.
    ///
    /// # Errors
    /// There is none at all; the error says what is in the way.
    pub fn alternatives(&self, request: &PathRequest, count: usize) -> Result<Vec<Path>> {
        let paths = alternatives::find(self, request, &self.rules(request), count.max(1));
        if paths.is_empty() { Err(self.no_way(request)) } else { Ok(paths) }
    }

    pub(crate) fn sharing(&self) -> &Sharing {
        &self.sharing
    }

    pub(crate) fn pace(&self, host: HostId) -> Pace {
        self.paces[host.index()]
    }

    /// No relocation costs less than this.
    pub(crate) fn least_relocation(&self, memory: Bytes) -> Duration {
        self.model.least_relocation(memory, self.widest, self.best)
    }

    /// No handoff into this host costs less.
    pub(crate) fn least_arrival(&self, host: HostId, memory: Bytes) -> Duration {
        let reached = self.sharing.reached_by(host).filter_map(|device| self.route(host, device));
        let costs = reached.map(|route| self.model.take(memory, route, self.pace(host)).total());
        costs.min().unwrap_or_default()
    }

    pub(crate) fn leads_on(&self, host: HostId) -> bool {
        self.leads_on[host.index()]
    }

    pub(crate) fn rules<'r>(&'r self, request: &'r PathRequest) -> Permitted<'r> {
        Permitted { planner: self, request, cordons: true, avoidance: true, room: true }
    }

    /// The path along these places, which alternate between hosts and devices, with its costs.
    pub(crate) fn priced(&self, places: &[Place], memory: Bytes, begin: Begin, end: End) -> Path {
        let hosts: Vec<HostId> = places
            .iter()
            .filter_map(|place| match place {
                Place::Host(host) => Some(*host),
                Place::Device(_) => None,
            })
            .collect();
        let devices = places.iter().filter_map(|place| match place {
            Place::Device(device) => Some(*device),
            Place::Host(_) => None,
        });
        let mut legs = Vec::new();
        let mut lies = begin;
        for (pair, over) in hosts.windows(2).zip(devices) {
            let (from, to) = (pair[0], pair[1]);
            legs.extend(self.brought(from, lies, over, memory));
            legs.push(self.handed(from, to, over, memory));
            lies = Begin::Device(over);
        }
        let (from, to) = (hosts[0], hosts[hosts.len() - 1]);
        if let (End::Dram, Begin::Device(device)) = (end, lies) {
            let route = self.known_route(to, device);
            let copies = self.model.recouple(memory, route, self.pace(to));
            legs.push(Leg::of_copies(Step::Recouple { at: to, from: device }, copies));
        }
        Path { from, to, memory, legs }
    }

    /// How the memory comes to lie on a device, unless it does.
    fn brought(&self, at: HostId, lies: Begin, into: DeviceId, memory: Bytes) -> Option<Leg> {
        let (to, pace) = (self.known_route(at, into), self.pace(at));
        match lies {
            Begin::AnyDevice => None,
            Begin::Device(device) if device == into => None,
            Begin::Dram => Some(Leg::of_copies(Step::Decouple { at, into }, self.model.decouple(memory, to, pace))),
            Begin::Device(device) => {
                let copies = self.model.relocate(memory, self.known_route(at, device), to, pace);
                Some(Leg::of_copies(Step::Relocate { at, from: device, to: into }, copies))
            }
        }
    }

    fn handed(&self, from: HostId, to: HostId, over: DeviceId, memory: Bytes) -> Leg {
        let (hand, take) = (self.known_route(from, over), self.known_route(to, over));
        let costs = [self.model.hand(hand), self.model.take(memory, take, self.pace(to))];
        let cost: Cost = costs.into_iter().sum();
        Leg { step: Step::Handoff { from, to, over }, cost, copies: Vec::new() }
    }

    fn known_route(&self, host: HostId, device: DeviceId) -> Route {
        self.route(host, device).expect("the search went this way")
    }

    /// Why there is no way: whatever there would have to be otherwise for there to be one.
    fn no_way(&self, request: &PathRequest) -> Error {
        let fabric = self.fabric;
        let name = |host| fabric.host(host).name.clone();
        let strict = self.rules(request);
        let without = |rules: &Permitted<'_>| !alternatives::find(self, request, rules, 1).is_empty();
        let why = if request.from == request.to {
            "it is there".to_owned()
        } else if fabric.host(request.to).cordoned {
            format!("{} is cordoned; `nil uncordon {}` allows guests there", name(request.to), name(request.to))
        } else if let Begin::Device(device) = request.begin
            && self.route(request.from, device).is_none()
        {
            format!(
                "{} does not reach {}, on which its memory is said to lie",
                name(request.from),
                fabric.device(device).name
            )
        } else if request.end == End::Dram && fabric.host(request.to).dram_free < request.memory {
            format!("{} has {} of free DRAM", name(request.to), fabric.host(request.to).dram_free)
        } else if without(&Permitted { avoidance: false, ..strict }) {
            "every way passes what is to be avoided".to_owned()
        } else if without(&Permitted { cordons: false, ..strict }) {
            "every way passes a host that is cordoned".to_owned()
        } else if without(&Permitted { room: false, ..strict }) {
            "on every way, a device has too little free, or a host between too little DRAM".to_owned()
        } else if without(&Permitted { room: false, cordons: false, avoidance: false, ..strict }) {
            "every way has a host that is cordoned or to be avoided, or too little free memory".to_owned()
        } else {
            "they share no memory, over however many hosts".to_owned()
        };
        Error::NoWay { from: name(request.from), to: name(request.to), memory: request.memory, why }
    }
}

/// What one request permits.
#[derive(Clone, Copy)]
pub(crate) struct Permitted<'r> {
    planner: &'r Planner<'r>,
    request: &'r PathRequest,
    cordons: bool,
    avoidance: bool,
    room: bool,
}

impl Permitted<'_> {
    fn avoided(&self, host: HostId) -> bool {
        self.avoidance && self.request.avoid_hosts.contains(&host)
    }
}

impl Rules for Permitted<'_> {
    fn may_hop(&self, host: HostId) -> bool {
        let closed = self.cordons && self.planner.fabric.host(host).cordoned;
        let end = host == self.request.from || host == self.request.to;
        !(end || closed || self.avoided(host))
    }

    fn may_relocate(&self, host: HostId) -> bool {
        match self.planner.model.relocation {
            Relocation::Direct => true,
            Relocation::ThroughDram => !self.room || self.planner.fabric.host(host).dram_free >= self.request.memory,
        }
    }

    fn may_lie(&self, device: DeviceId) -> bool {
        !(self.avoidance && self.request.avoid_devices.contains(&device))
    }

    fn has_room(&self, device: DeviceId) -> bool {
        !self.room || self.planner.fabric.device(device).free >= self.request.memory
    }

    fn may_end(&self, host: HostId) -> bool {
        let target = self.planner.fabric.host(host);
        host == self.request.to
            && host != self.request.from
            && !self.avoided(host)
            && !target.cordoned
            && (self.request.end == End::Device || target.dram_free >= self.request.memory)
    }
}

/// The cheapest way from `start`, as places.
pub(crate) fn cheapest<R: Rules>(
    planner: &Planner<'_>,
    request: &PathRequest,
    rules: &R,
    bound: &Bound,
    start: Start,
    banned: &[Place],
) -> Option<Vec<Place>> {
    let search = Search { planner, rules, memory: request.memory, end: request.end, bound: Some(bound) };
    let mut way = None;
    search.run(start, banned, |_, places, _| {
        way = Some(places());
        ControlFlow::Break(())
    });
    way
}
