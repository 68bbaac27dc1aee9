//! What is said to be critical, against taking it away and looking.

use super::*;
use crate::testing::{any_fabric, by_hand, fabric};
use proptest::prelude::*;

fn told(fabric: &Fabric) -> Vec<String> {
    let name = |element| match element {
        Element::Host(id) => fabric.name(Node::Host(id)).to_string(),
        Element::Device(id) => fabric.name(Node::Device(id)).to_string(),
        Element::Switch(id) => fabric.name(Node::Switch(id)).to_string(),
        Element::Link(id) => fabric.link(id).ends.map(|end| fabric.name(end).to_string()).join("-"),
    };
    let sizes = |parts: &[Part]| parts.iter().map(|part| part.hosts.to_string()).collect::<Vec<_>>().join("|");
    fabric.critical().iter().map(|one| format!("{} {}", name(one.element), sizes(&one.parts))).collect()
}

#[test]
fn the_only_device_and_every_link_to_it_are_critical() {
    assert_eq!(told(&fabric("A-P B-P")), ["P 1|1", "A-P 1|1", "B-P 1|1"]);
}

#[test]
fn with_two_devices_nothing_is() {
    assert_eq!(told(&fabric("A-P B-P A-Q B-Q")), [""; 0]);
}

#[test]
fn a_host_between_two_devices_is() {
    assert_eq!(told(&fabric("A-P B-P B-Q C-Q A-R B-R B-S C-S")), ["B 1|1"]);
}

#[test]
fn the_last_device_at_a_switch_is_although_the_switch_still_joins_its_hosts() {
    assert_eq!(told(&fabric("A-s B-s s-P")), ["P 1|1", "s 1|1", "A-s 1|1", "B-s 1|1", "s-P 1|1"]);
}

#[test]
fn the_last_host_at_a_switch_is_although_the_switch_still_joins_its_devices() {
    let fabric = fabric("C-s s-P s-Q A-P B-Q");
    assert!(told(&fabric).contains(&"C 1|1".to_owned()), "{:?}", told(&fabric));
    assert!(told(&fabric).contains(&"C-s 1|1|1".to_owned()), "{:?}", told(&fabric));
}

#[test]
fn a_link_that_is_not_shared_is_never_critical_and_helps_nobody() {
    assert_eq!(told(&fabric("A-P B-P B=Q A=Q")), ["P 1|1", "A-P 1|1", "B-P 1|1"]);
}

/// The sizes of what each namespace falls into, without something: found by taking it away.
fn taken_away(fabric: &Fabric, element: Element) -> Vec<usize> {
    let (node, link) = match element {
        Element::Host(id) => (Some(Node::Host(id)), None),
        Element::Device(id) => (Some(Node::Device(id)), None),
        Element::Switch(id) => (Some(Node::Switch(id)), None),
        Element::Link(id) => (None, Some(id)),
    };
    let less = by_hand::without(fabric, node, link);
    let after = by_hand::namespaces(&less);
    for space in by_hand::namespaces(fabric) {
        let names: Vec<_> = space.iter().map(|host| &fabric.host(*host).name).collect();
        let within = |hosts: &&Vec<HostId>| names.contains(&&less.host(hosts[0]).name);
        let mut sizes: Vec<usize> = after.iter().filter(within).map(Vec::len).collect();
        if sizes.len() > 1 {
            sizes.sort_unstable();
            return sizes;
        }
    }
    Vec::new()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn what_is_critical_is_what_splits_a_namespace_when_it_is_taken_away(fabric in any_fabric()) {
        let critical = fabric.critical();
        let hosts = fabric.host_ids().map(Element::Host);
        let devices = fabric.device_ids().map(Element::Device);
        let switches = (0..fabric.switches().len()).map(|at| Element::Switch(SwitchId::at(at)));
        let links = fabric.link_ids().map(Element::Link);
        for element in hosts.chain(devices).chain(switches).chain(links) {
            let found: Vec<_> = critical.iter().filter(|one| one.element == element).collect();
            prop_assert!(found.len() <= 1);
            let mut sizes: Vec<usize> =
                found.iter().flat_map(|one| &one.parts).map(|part| part.hosts).collect();
            sizes.sort_unstable();
            prop_assert_eq!(sizes, taken_away(&fabric, element), "{:?}", element);
        }
    }
}
