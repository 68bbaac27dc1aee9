//! Pictures as they are, so that a change to one is seen and looked at; and what holds for all of them.

use super::Picture;
use super::layout::{Layout, Rect};
use crate::generate::Shape;
use crate::model::Fabric;
use crate::testing::{any_fabric, fabric_with};
use proptest::prelude::*;

/// Two racks' worth of everything: a cordoned host, a link that is not shared, a namespace of its own.
fn mixed() -> Fabric {
    let cordon = |host: &mut crate::model::Host| host.cordoned = host.name.as_str() == "C";
    fabric_with("A-s B-s C-s s-P s-t t-Q D-t E=Q E-R", cordon, |_| {})
}

#[test]
fn a_small_fabric_in_a_terminal() {
    insta::assert_snapshot!(Picture::of(&mixed()).text());
}

#[test]
fn a_small_fabric_for_graphviz() {
    insta::assert_snapshot!(Picture::of(&mixed()).dot());
}

#[test]
fn a_small_fabric_as_a_picture() {
    insta::assert_snapshot!(Picture::of(&mixed()).svg());
}

#[test]
fn two_racks_as_a_picture() {
    let fabric = Fabric::generate(&Shape { racks: 2, hosts: 3, devices: 2, seed: 1 }).expect("a fabric");
    insta::assert_snapshot!(Picture::of(&fabric).svg());
}

fn overlap(a: Rect, b: Rect) -> bool {
    a.x < b.right() && b.x < a.right() && a.y < b.bottom() && b.y < a.bottom()
}

/// Whether a straight piece of line, which runs level or upright, goes through a box.
fn crosses((a, b): ((f64, f64), (f64, f64)), place: Rect) -> bool {
    let (left, right) = (a.0.min(b.0), a.0.max(b.0));
    let (top, bottom) = (a.1.min(b.1), a.1.max(b.1));
    left < place.right() - 0.1 && right > place.x + 0.1 && top < place.bottom() - 0.1 && bottom > place.y + 0.1
}

fn sound(fabric: &Fabric) -> Result<(), TestCaseError> {
    let picture = Picture::of(fabric);
    let layout = Layout::of(&picture);
    let boxes: Vec<Rect> = layout.boxes.values().copied().collect();
    prop_assert_eq!(boxes.len(), fabric.hosts().len() + fabric.switches().len() + fabric.devices().len());
    for (at, one) in boxes.iter().enumerate() {
        prop_assert!(one.x >= 0.0 && one.y >= 0.0 && one.right() <= layout.width && one.bottom() <= layout.height);
        for other in &boxes[at + 1..] {
            prop_assert!(!overlap(*one, *other), "{:?} lies over {:?}", one, other);
        }
    }
    for wire in layout.wires.iter().filter(|wire| wire.far) {
        let own = fabric.link(wire.link).ends.map(|end| layout.boxes[&end]);
        // The pieces between its first and its last, in which it leaves and comes in through its own panels.
        for piece in wire.points.windows(2).skip(1).rev().skip(1) {
            for panel in &layout.panels {
                let inside = own.iter().any(|place| overlap(*place, panel.place));
                prop_assert!(inside || !crosses((piece[0], piece[1]), panel.place), "{:?} in {:?}", piece, panel.title);
            }
        }
    }
    let svg = picture.svg();
    prop_assert!(!svg.contains("NaN") && !svg.contains("inf"));
    prop_assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
    prop_assert_eq!(&svg, &Picture::of(fabric).svg());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_box_lies_over_another_and_no_line_between_racks_crosses_a_third(fabric in any_fabric()) {
        sound(&fabric)?;
    }

    #[test]
    fn nor_in_racks(racks in 1_u32..12, hosts in 1_u32..40, devices in 0_u32..12, seed in any::<u64>()) {
        sound(&Fabric::generate(&Shape { racks, hosts, devices, seed }).expect("a fabric"))?;
    }
}

#[test]
fn a_fabric_without_anything_has_a_picture_too() {
    let nothing = Fabric::default();
    assert!(Picture::of(&nothing).svg().contains("</svg>"));
    assert!(Picture::of(&nothing).text().starts_with("nothing"));
}
