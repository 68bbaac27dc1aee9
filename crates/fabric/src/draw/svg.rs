//! A fabric as a picture that a person would show to others.

use super::layout::{FOOTER, HEADER, Layout, MARGIN, Panel, Rect, Wire};
use super::{Picture, count, percent};
use crate::model::{DeviceId, HostId, Node};
use std::fmt::Write;

const INK: &str = "#0f172a";
const QUIET: &str = "#64748b";
const HOST: &str = "#475569";
const SWITCH: &str = "#334155";
const DEVICE: &str = "#4f46e5";
const FAR: &str = "#0d9488";
const CRITICAL: &str = "#ea580c";
/// How far corners of lines are rounded.
const CORNER: f64 = 7.0;

impl Picture<'_> {
    /// The fabric as an SVG document of its own.
    #[must_use]
    pub fn svg(&self) -> String {
        let layout = Layout::of(self);
        // The caption and the legend need some width of their own.
        let width = layout.width.max(640.0);
        let height = layout.height;
        let mut text = String::new();
        let _ = writeln!(
            text,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" width=\"{width:.0}\" \
             height=\"{height:.0}\" font-family=\"Inter, 'Helvetica Neue', 'DejaVu Sans', sans-serif\" role=\"img\">"
        );
        let _ = writeln!(text, "<title>{}</title>", self.caption());
        let _ = writeln!(text, "<rect width=\"{width:.0}\" height=\"{height:.0}\" fill=\"#ffffff\"/>");
        label(&mut text, (MARGIN, 34.0), "start", 19.0, INK, "600", "Fabric");
        label(&mut text, (MARGIN, HEADER - 18.0), "start", 12.5, QUIET, "400", &self.caption());
        for panel in &layout.panels {
            self.panel(&mut text, panel);
        }
        // What is marked lies above what is not.
        let (marked, plain): (Vec<&Wire>, Vec<&Wire>) =
            layout.wires.iter().partition(|wire| self.is_marked_link(wire.link));
        for wire in plain.into_iter().chain(marked) {
            self.wire(&mut text, wire);
        }
        for (node, place) in &layout.boxes {
            match node {
                Node::Host(id) => self.host(&mut text, *id, *place),
                Node::Switch(_) => self.switch(&mut text, *node, *place),
                Node::Device(id) => self.device(&mut text, *id, *place),
            }
        }
        legend(&mut text, height - FOOTER / 2.0 + 4.0, self, &layout);
        text.push_str("</svg>\n");
        text
    }

    fn panel(&self, text: &mut String, panel: &Panel) {
        let Rect { x, y, width, height } = panel.place;
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"12\" fill=\"#f8fafc\" stroke=\"#e2e8f0\"/>"
        );
        let left = x + 18.0;
        label(text, (left, y + 34.0), "start", 15.0, INK, "600", &panel.title);
        let hosts = panel.hosts.iter().filter_map(|node| match node {
            Node::Host(host) => Some(*host),
            Node::Switch(_) | Node::Device(_) => None,
        });
        let spaces = self.of_hosts(hosts);
        let mut lines = vec![
            count(panel.hosts.len(), "host", "hosts"),
            count(panel.switches.len(), "switch", "switches"),
            count(panel.devices.len(), "device", "devices"),
        ];
        lines.retain(|line| !line.starts_with("no "));
        // Which namespace is worth a line only where there are several.
        if self.namespaces.list().len() > 1 && !panel.title.starts_with("namespace ") {
            let numbers: Vec<String> = spaces.iter().take(4).map(|number| (number + 1).to_string()).collect();
            let more = if spaces.len() > 4 { ", …" } else { "" };
            lines.push(format!("namespace {}{more}", numbers.join(", ")));
        }
        for (at, line) in (0_u16..).zip(&lines) {
            label(text, (left, y + 54.0 + f64::from(at) * 15.0), "start", 10.5, QUIET, "400", line);
        }
    }

    fn wire(&self, text: &mut String, wire: &Wire) {
        let link = self.fabric.link(wire.link);
        let (colour, width) = match (self.is_marked_link(wire.link), wire.far) {
            (true, _) => (CRITICAL, 2.2),
            (false, true) => (FAR, 1.6),
            (false, false) => ("#94a3b8", 1.1),
        };
        let dashes = if link.shared { "" } else { " stroke-dasharray=\"2 4\"" };
        let path = if wire.far { rounded(&wire.points) } else { falling(&wire.points) };
        let [a, b] = link.ends.map(|end| self.fabric.name(end));
        let _ = writeln!(
            text,
            "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"{dashes}><title>{a} – {b}: {} ns, {}</title></path>",
            link.latency_ns, link.bandwidth
        );
    }

    /// The frame of a box; critical ones have a mark at the corner.
    fn frame(&self, text: &mut String, node: Node, place: Rect, fill: &str, stroke: &str) {
        let Rect { x, y, width, height } = place;
        let critical = self.is_marked(node);
        let (stroke, thick) = if critical { (CRITICAL, 2.0) } else { (stroke, 1.0) };
        let closed = matches!(node, Node::Host(id) if self.fabric.host(id).cordoned);
        let dashes = if closed { " stroke-dasharray=\"4 3\"" } else { "" };
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" rx=\"6\" fill=\"{fill}\" stroke=\"{stroke}\" stroke-width=\"{thick}\"{dashes}/>"
        );
        if critical {
            let (cx, cy) = (place.right() - 1.0, y + 1.0);
            let _ = writeln!(text, "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"7\" fill=\"{CRITICAL}\"/>");
            label(text, (cx, cy + 3.7), "middle", 10.5, "#ffffff", "700", "!");
        }
    }

    fn host(&self, text: &mut String, id: HostId, place: Rect) {
        let host = self.fabric.host(id);
        let (fill, ink) = if host.cordoned { ("#f1f5f9", QUIET) } else { ("#ffffff", INK) };
        self.frame(text, Node::Host(id), place, fill, "#94a3b8");
        label(text, (place.middle(), place.y + 18.0), "middle", 11.5, ink, "600", &fitting(host.name.as_str(), 10));
        let load = if host.cordoned { "cordoned".to_owned() } else { format!("{:.0} % busy", host.load * 100.0) };
        label(text, (place.middle(), place.y + 32.0), "middle", 9.0, QUIET, "400", &load);
        bar(text, place, host.load, HOST);
    }

    fn switch(&self, text: &mut String, node: Node, place: Rect) {
        self.frame(text, node, place, SWITCH, SWITCH);
        let name = fitting(self.fabric.name(node).as_str(), 13);
        label(text, (place.middle(), place.y + 19.0), "middle", 11.5, "#ffffff", "600", &name);
    }

    fn device(&self, text: &mut String, id: DeviceId, place: Rect) {
        let device = self.fabric.device(id);
        self.frame(text, Node::Device(id), place, "#eef2ff", "#a5b4fc");
        label(text, (place.middle(), place.y + 18.0), "middle", 11.5, INK, "600", &fitting(device.name.as_str(), 16));
        let free = format!("{} of {} free", device.free, device.size).replace("iB", "");
        label(text, (place.middle(), place.y + 32.0), "middle", 9.0, QUIET, "400", &free);
        let used = percent(device.size.0 - device.free.0, device.size.0);
        bar(text, place, f64::from(u32::try_from(used).unwrap_or(100)) / 100.0, DEVICE);
    }
}

/// How much of something is used, at the foot of its box.
fn bar(text: &mut String, place: Rect, part: f64, colour: &str) {
    let (x, y, width) = (place.x + 9.0, place.bottom() - 11.0, place.width - 18.0);
    let _ =
        writeln!(text, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"4\" rx=\"2\" fill=\"#e2e8f0\"/>");
    let filled = width * part.clamp(0.0, 1.0);
    if filled >= 1.0 {
        let _ = writeln!(
            text,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{filled:.1}\" height=\"4\" rx=\"2\" fill=\"{colour}\"/>"
        );
    }
}

fn label(text: &mut String, (x, y): (f64, f64), anchor: &str, size: f64, colour: &str, weight: &str, what: &str) {
    let _ = writeln!(
        text,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\" font-weight=\"{weight}\" fill=\"{colour}\">{what}</text>"
    );
}

/// A name that fits, or its beginning and its end. Names have nothing in them that XML would have escaped.
fn fitting(name: &str, most: usize) -> String {
    if name.len() <= most {
        return name.to_owned();
    }
    let (begin, end) = (most / 2 - 1, name.len() - (most - most / 2));
    format!("{}…{}", &name[..begin], &name[end..])
}

/// Straight down to below the tier, then a curve to the end.
fn falling(points: &[(f64, f64)]) -> String {
    match points {
        [(ax, ay), (bx, by), (cx, cy)] => {
            let bend = (cy - by) * 0.55;
            format!(
                "M{ax:.1} {ay:.1}L{bx:.1} {by:.1}C{bx:.1} {:.1} {cx:.1} {:.1} {cx:.1} {cy:.1}",
                by + bend,
                cy - bend
            )
        }
        _ => rounded(points),
    }
}

/// Through all points, with rounded corners.
fn rounded(points: &[(f64, f64)]) -> String {
    let mut path = String::new();
    let Some((first, rest)) = points.split_first() else { return path };
    let _ = write!(path, "M{:.1} {:.1}", first.0, first.1);
    for at in 1..points.len().saturating_sub(1) {
        let (before, corner, after) = (points[at - 1], points[at], points[at + 1]);
        let near = |end: (f64, f64)| {
            let (dx, dy) = (end.0 - corner.0, end.1 - corner.1);
            let far = dx.hypot(dy).max(0.1);
            let part = CORNER.min(far / 2.0) / far;
            (corner.0 + dx * part, corner.1 + dy * part)
        };
        let (into, out) = (near(before), near(after));
        let _ = write!(path, "L{:.1} {:.1}Q{:.1} {:.1} {:.1} {:.1}", into.0, into.1, corner.0, corner.1, out.0, out.1);
    }
    if let Some((x, y)) = rest.last() {
        let _ = write!(path, "L{x:.1} {y:.1}");
    }
    path
}

/// What the looks of things mean, as far as they are seen.
fn legend(text: &mut String, y: f64, picture: &Picture<'_>, layout: &Layout) {
    let fabric = picture.fabric;
    let square = |fill: &str, stroke: &str, more: &str| {
        format!("<rect y=\"-6.5\" width=\"22\" height=\"13\" rx=\"3\" fill=\"{fill}\" stroke=\"{stroke}\"{more}/>")
    };
    let line =
        |stroke: &str, more: &str| format!("<path d=\"M0 0h22\" stroke=\"{stroke}\" stroke-width=\"1.8\"{more}/>");
    let entries = [
        (!fabric.hosts().is_empty(), "host", square("#ffffff", "#94a3b8", "")),
        (
            fabric.hosts().iter().any(|host| host.cordoned),
            "cordoned",
            square("#f1f5f9", "#94a3b8", " stroke-dasharray=\"4 3\""),
        ),
        (!fabric.switches().is_empty(), "switch", square(SWITCH, SWITCH, "")),
        (!fabric.devices().is_empty(), "memory device", square("#eef2ff", "#a5b4fc", "")),
        (layout.wires.iter().any(|wire| wire.far), "between racks", line(FAR, "")),
        (fabric.links().iter().any(|link| !link.shared), "not shared", line("#94a3b8", " stroke-dasharray=\"2 4\"")),
        (!picture.marked.is_empty(), "its loss splits a namespace", square("#ffffff", CRITICAL, " stroke-width=\"2\"")),
    ];
    let mut x = MARGIN;
    for (_, what, drawn) in entries.iter().filter(|(seen, _, _)| *seen) {
        let _ = writeln!(text, "<g transform=\"translate({x:.1} {y:.1})\">{drawn}</g>");
        label(text, (x + 30.0, y + 4.0), "start", 10.5, QUIET, "400", what);
        // No legend has letters enough to count them inexactly.
        x += 56.0 + f64::from(u16::try_from(what.len()).unwrap_or(u16::MAX)) * 5.8;
    }
}
