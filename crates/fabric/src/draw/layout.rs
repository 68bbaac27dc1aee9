//! Where everything is in a picture.
//!
//! Each rack is a panel (what stands in no rack goes into one for its namespace): hosts above, in rows that are offset
//! by half a place so that their links pass between the boxes below; then switches, then devices. Panels stand in a
//! grid, as near to a screen's proportions as it gets. Links within a panel are drawn straight; those between panels
//! run in the gutters of the grid, each in a lane of its own, and cross no box.

use super::Picture;
use crate::model::{Fabric, LinkId, Node, SwitchId};
use crate::namespaces::Namespaces;
use std::collections::{BTreeMap, BTreeSet};

const HOST: (f64, f64) = (74.0, 50.0);
const SWITCH: (f64, f64) = (96.0, 30.0);
const DEVICE: (f64, f64) = (118.0, 50.0);
const GAP: f64 = 12.0;
const ROW_GAP: f64 = 16.0;
/// Between hosts, switches and devices.
const TIER_GAP: f64 = 58.0;
const PADDING: f64 = 22.0;
/// The strip at the left of a panel, for its title: as wide as the title, and not less than this.
const STRIP: f64 = 116.0;
const LETTER: f64 = 9.6;
const GUTTER: f64 = 30.0;
const LANE: f64 = 8.0;
/// Lanes of one gutter take no more than this.
const LANES: f64 = 160.0;
pub(super) const MARGIN: f64 = 36.0;
pub(super) const HEADER: f64 = 72.0;
pub(super) const FOOTER: f64 = 56.0;
/// Width to height, as of a screen.
const PROPORTION: f64 = 1.6;
/// Hosts in a row at most, and in one single row.
const ROW: usize = 16;
const ONE_ROW: usize = 8;

/// A box: where its upper left corner is, and its size.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub(super) struct Rect {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Rect {
    pub(super) fn middle(self) -> f64 {
        self.x + self.width / 2.0
    }

    pub(super) fn bottom(self) -> f64 {
        self.y + self.height
    }

    pub(super) fn right(self) -> f64 {
        self.x + self.width
    }
}

/// A group of things that are drawn together.
#[derive(Clone, Debug)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) hosts: Vec<Node>,
    pub(super) switches: Vec<Node>,
    pub(super) devices: Vec<Node>,
    pub(super) place: Rect,
}

/// A line through points, with what it stands for.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Wire {
    pub(super) link: LinkId,
    pub(super) points: Vec<(f64, f64)>,
    /// Between panels.
    pub(super) far: bool,
}

/// Rows of boxes of one kind, with their size.
type Tier<'a> = (Vec<&'a [Node]>, (f64, f64));

/// All places.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) panels: Vec<Panel>,
    pub(super) boxes: BTreeMap<Node, Rect>,
    pub(super) wires: Vec<Wire>,
    pub(super) width: f64,
    pub(super) height: f64,
}

impl Layout {
    pub(super) fn of(picture: &Picture<'_>) -> Self {
        let mut panels = panels(picture.fabric, &picture.namespaces);
        let grid = Grid::best(picture.fabric, &mut panels);
        let mut boxes = BTreeMap::new();
        for panel in &panels {
            panel.arrange(&mut boxes);
        }
        let wires = picture.fabric.link_ids().map(|link| grid.wire(picture.fabric, link, &panels, &boxes));
        let wires = wires.collect();
        Self { wires, boxes, width: grid.width, height: grid.height, panels }
    }
}

/// The groups: racks by name, as far as they have numbers in the order of those; then what stands in none.
fn panels(fabric: &Fabric, namespaces: &Namespaces) -> Vec<Panel> {
    let mut device_space = BTreeMap::new();
    for (number, space) in namespaces.list().iter().enumerate() {
        for device in &space.devices {
            device_space.insert(*device, number);
        }
    }
    let shared = |switch: SwitchId| {
        let near = |link: &&crate::model::Link| link.ends.contains(&Node::Switch(switch));
        fabric.links().iter().filter(near).flat_map(|link| link.ends).find_map(|end| match end {
            Node::Host(host) => Some(namespaces.of_host(host)),
            Node::Device(device) => device_space.get(&device).copied(),
            Node::Switch(_) => None,
        })
    };
    // Racks in the order in which they are named, then namespaces.
    let mut keys: Vec<String> = Vec::new();
    let mut groups: BTreeMap<String, Panel> = BTreeMap::new();
    let hosts = fabric.host_ids().map(Node::Host);
    let switches = (0..fabric.switches().len()).map(|at| Node::Switch(SwitchId::at(at)));
    let devices = fabric.device_ids().map(Node::Device);
    for node in hosts.chain(switches).chain(devices) {
        let key = match (fabric.rack(node), node) {
            (Some(rack), _) => rack.to_string(),
            (None, Node::Host(host)) => space_title(Some(namespaces.of_host(host))),
            (None, Node::Switch(switch)) => space_title(shared(switch)),
            (None, Node::Device(device)) => space_title(device_space.get(&device).copied()),
        };
        let panel = groups.entry(key.clone()).or_insert_with(|| {
            keys.push(key.clone());
            let (hosts, switches, devices) = (Vec::new(), Vec::new(), Vec::new());
            Panel { title: key, hosts, switches, devices, place: Rect::default() }
        });
        match node {
            Node::Host(_) => panel.hosts.push(node),
            Node::Switch(_) => panel.switches.push(node),
            Node::Device(_) => panel.devices.push(node),
        }
    }
    keys.into_iter().filter_map(|key| groups.remove(&key)).collect()
}

fn space_title(number: Option<usize>) -> String {
    number.map_or_else(|| "unshared".to_owned(), |number| format!("namespace {}", number + 1))
}

/// As a length: pictures have fewer than 2⁵³ of anything.
#[expect(clippy::cast_precision_loss)]
fn length(count: usize) -> f64 {
    count as f64
}

/// How wide a row of boxes is.
fn row_width(count: usize, size: (f64, f64)) -> f64 {
    if count == 0 { 0.0 } else { length(count) * (size.0 + GAP) - GAP }
}

impl Panel {
    fn host_rows(&self) -> Vec<&[Node]> {
        let count = self.hosts.len();
        let per_row = if count <= ONE_ROW { count } else { count.div_ceil(2).min(ROW) };
        self.hosts.chunks(per_row.max(1)).collect()
    }

    fn device_rows(&self) -> Vec<&[Node]> {
        self.devices.chunks(ONE_ROW).collect()
    }

    fn switch_rows(&self) -> Vec<&[Node]> {
        self.switches.chunks(ONE_ROW).collect()
    }

    /// The rows of each tier, with the size of their boxes.
    fn tiers(&self) -> Vec<Tier<'_>> {
        let all = [(self.host_rows(), HOST), (self.switch_rows(), SWITCH), (self.device_rows(), DEVICE)];
        all.into_iter().filter(|(rows, _)| !rows.is_empty()).collect()
    }

    fn strip(&self) -> f64 {
        STRIP.max(length(self.title.chars().count()) * LETTER + 40.0)
    }

    fn size(&self) -> (f64, f64) {
        let mut inner: f64 = 150.0;
        let mut height = 2.0 * PADDING;
        for (number, (rows, size)) in self.tiers().iter().enumerate() {
            let offset = if rows.len() > 1 { (size.0 + GAP) / 2.0 } else { 0.0 };
            let widest = rows.iter().map(|row| row_width(row.len(), *size)).fold(0.0, f64::max);
            inner = inner.max(widest + offset);
            height += length(rows.len()) * (size.1 + ROW_GAP) - ROW_GAP + if number > 0 { TIER_GAP } else { 0.0 };
        }
        (self.strip() + inner + PADDING, height.max(112.0))
    }

    /// Gives each box its place, the whole in the middle of the panel.
    fn arrange(&self, boxes: &mut BTreeMap<Node, Rect>) {
        let (_, own_height) = self.size();
        let left = self.place.x + self.strip();
        let inner = self.place.width - self.strip() - PADDING;
        let mut y = self.place.y + PADDING + (self.place.height - own_height) / 2.0;
        for (rows, size) in self.tiers() {
            let step = size.0 + GAP;
            let stagger = if rows.len() > 1 { step / 2.0 } else { 0.0 };
            let widest = rows.iter().map(|row| row_width(row.len(), size)).fold(0.0, f64::max) + stagger;
            let start = left + (inner - widest) / 2.0;
            for (number, row) in rows.iter().enumerate() {
                let shift = if number % 2 == 1 { stagger } else { 0.0 };
                for (at, node) in row.iter().enumerate() {
                    let x = start + shift + length(at) * step;
                    boxes.insert(*node, Rect { x, y, width: size.0, height: size.1 });
                }
                y += size.1 + ROW_GAP;
            }
            y += TIER_GAP - ROW_GAP;
        }
    }
}

/// A gutter between panels: lies before the row or column of its number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Gutter {
    Row(usize),
    Column(usize),
}

/// How panels stand, and how far links run in which gutter.
struct Grid {
    columns: usize,
    panel_of: BTreeMap<Node, usize>,
    lanes: BTreeMap<(Gutter, LinkId), f64>,
    width: f64,
    height: f64,
}

impl Grid {
    fn best(fabric: &Fabric, panels: &mut [Panel]) -> Self {
        let panel_of: BTreeMap<Node, usize> = panels
            .iter()
            .enumerate()
            .flat_map(|(at, panel)| {
                let nodes = panel.hosts.iter().chain(&panel.switches).chain(&panel.devices);
                nodes.map(move |node| (*node, at)).collect::<Vec<_>>()
            })
            .collect();
        let most = panels.len().clamp(1, 64);
        let unlike = |grid: &Self| (grid.width / grid.height / PROPORTION).ln().abs();
        let best = (1..=most).map(|columns| (columns, unlike(&Self::place(fabric, panels, &panel_of, columns))));
        let best = best.collect::<Vec<_>>().into_iter().min_by(|(_, a), (_, b)| a.total_cmp(b));
        Self::place(fabric, panels, &panel_of, best.map_or(1, |(columns, _)| columns))
    }

    /// Puts the panels into so many columns.
    fn place(fabric: &Fabric, panels: &mut [Panel], panel_of: &BTreeMap<Node, usize>, columns: usize) -> Self {
        let rows = panels.len().div_ceil(columns).max(1);
        let mut grid = Self { columns, panel_of: panel_of.clone(), lanes: BTreeMap::new(), width: 0.0, height: 0.0 };
        let mut users: BTreeMap<Gutter, BTreeSet<LinkId>> = BTreeMap::new();
        for link in fabric.link_ids() {
            for gutter in grid.gutters(fabric, link) {
                users.entry(gutter).or_default().insert(link);
            }
        }
        let lanes = |gutter: Gutter| users.get(&gutter).map_or(0, BTreeSet::len);
        let spacing = |gutter: Gutter| LANE.min(LANES / length(lanes(gutter).max(1)));
        // The outermost gutters are there only for the links in them.
        let breadth = |gutter: Gutter, outer: bool| match (lanes(gutter), outer) {
            (0, true) => 0.0,
            (used, true) => GAP + length(used) * spacing(gutter),
            (used, false) => GUTTER + length(used) * spacing(gutter),
        };
        let sizes: Vec<(f64, f64)> = panels.iter().map(Panel::size).collect();
        let mut lane_at = BTreeMap::new();
        let mut note = |gutter: Gutter, from: f64, breadth: f64| {
            let first = from + (breadth - (length(lanes(gutter)) - 1.0) * spacing(gutter)) / 2.0;
            for (at, link) in users.get(&gutter).into_iter().flatten().enumerate() {
                lane_at.insert((gutter, *link), first + length(at) * spacing(gutter));
            }
        };
        let mut x = MARGIN;
        for column in 0..=columns {
            let gutter = Gutter::Column(column);
            let wide = breadth(gutter, column == 0 || column == columns);
            note(gutter, x, wide);
            x += wide;
            let members = || (column..panels.len()).step_by(columns);
            if column < columns {
                let widest = members().map(|at| sizes[at].0).fold(0.0, f64::max);
                for at in members() {
                    (panels[at].place.x, panels[at].place.width) = (x, widest);
                }
                x += widest;
            }
        }
        let mut y = HEADER;
        for row in 0..=rows {
            let gutter = Gutter::Row(row);
            let high = breadth(gutter, row == 0 || row == rows);
            note(gutter, y, high);
            y += high;
            let members = || row * columns..((row + 1) * columns).min(panels.len());
            if row < rows {
                let highest = members().map(|at| sizes[at].1).fold(0.0, f64::max);
                for at in members() {
                    (panels[at].place.y, panels[at].place.height) = (y, highest);
                }
                y += highest;
            }
        }
        (grid.lanes, grid.width, grid.height) = (lane_at, x + MARGIN, y + FOOTER);
        grid
    }

    fn row(&self, panel: usize) -> usize {
        panel / self.columns
    }

    fn column(&self, panel: usize) -> usize {
        panel % self.columns
    }

    /// Into which gutter a link leaves a thing: hosts upwards, devices downwards, switches to the right.
    fn exit(&self, node: Node) -> Gutter {
        let panel = self.panel_of[&node];
        match node {
            Node::Host(_) => Gutter::Row(self.row(panel)),
            Node::Switch(_) => Gutter::Column(self.column(panel) + 1),
            Node::Device(_) => Gutter::Row(self.row(panel) + 1),
        }
    }

    /// The gutters in which a link runs, from its first end to its second; none within a panel.
    fn gutters(&self, fabric: &Fabric, link: LinkId) -> Vec<Gutter> {
        let [a, b] = fabric.link(link).ends;
        let (from, to) = (self.panel_of[&a], self.panel_of[&b]);
        if from == to {
            return Vec::new();
        }
        let (out, into) = (self.exit(a), self.exit(b));
        let beside = self.column(to) + usize::from(self.column(from) > self.column(to));
        match (out, into) {
            (one, other) if one == other => vec![one],
            (Gutter::Row(_), Gutter::Row(_)) => vec![out, Gutter::Column(beside), into],
            (Gutter::Column(_), Gutter::Column(_)) => vec![out, Gutter::Row(self.row(to)), into],
            _ => vec![out, into],
        }
    }

    /// The line of a link.
    fn wire(&self, fabric: &Fabric, link: LinkId, panels: &[Panel], boxes: &BTreeMap<Node, Rect>) -> Wire {
        let [a, b] = fabric.link(link).ends;
        let gutters = self.gutters(fabric, link);
        if gutters.is_empty() {
            return Wire { link, points: within(a, b, &panels[self.panel_of[&a]], boxes), far: false };
        }
        let leave = |node: Node| {
            let place = boxes[&node];
            match node {
                Node::Host(_) => (place.middle(), place.y),
                Node::Switch(_) => (place.right(), place.y + place.height / 2.0),
                Node::Device(_) => (place.middle(), place.bottom()),
            }
        };
        let mut points = vec![leave(a)];
        for gutter in &gutters {
            let (x, y) = points[points.len() - 1];
            let lane = self.lanes[&(*gutter, link)];
            points.push(match gutter {
                Gutter::Row(_) => (x, lane),
                Gutter::Column(_) => (lane, y),
            });
        }
        let (x, y) = points[points.len() - 1];
        let end = leave(b);
        points.push(match gutters[gutters.len() - 1] {
            Gutter::Row(_) => (end.0, y),
            Gutter::Column(_) => (x, end.1),
        });
        points.push(end);
        Wire { link, points, far: true }
    }
}

/// The line of a link within a panel: down from the one that stands higher, past the boxes of its own tier, to the other.
fn within(a: Node, b: Node, panel: &Panel, boxes: &BTreeMap<Node, Rect>) -> Vec<(f64, f64)> {
    let (upper, lower) = if boxes[&a].y <= boxes[&b].y { (a, b) } else { (b, a) };
    let (from, to) = (boxes[&upper], boxes[&lower]);
    if matches!((a, b), (Node::Switch(_), Node::Switch(_))) {
        let (left, right) = if from.x <= to.x { (from, to) } else { (to, from) };
        let level = |place: Rect| place.y + place.height / 2.0;
        return vec![(left.right(), level(left)), (right.x, level(right))];
    }
    let own = match upper {
        Node::Host(_) => &panel.hosts,
        Node::Switch(_) => &panel.switches,
        Node::Device(_) => &panel.devices,
    };
    let past = own.iter().map(|node| boxes[node].bottom()).fold(from.bottom(), f64::max);
    vec![(from.middle(), from.bottom()), (from.middle(), past), (to.middle(), to.y)]
}
