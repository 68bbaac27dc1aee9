use super::*;

#[test]
fn memory_that_cannot_be_sampled_is_unknown_with_the_reason() {
    let memory = vec![1u8; 3 * GRANULE];
    let start = memory.as_ptr().addr().next_multiple_of(GRANULE);
    let range = start..start + GRANULE;
    let uneven = Heat::sample(&(start..start + 4096), Sampling::default());
    assert!(matches!(&uneven, Heat::Unknown(why) if why.contains("whole granules")), "{uneven:?}");

    let other = Tracking::new().unwrap();
    let registered = other.register(&range).unwrap();
    let taken = Heat::sample(&range, Sampling::default());
    assert!(matches!(&taken, Heat::Unknown(why) if why.contains("another userfaultfd")), "{taken:?}");
    assert_eq!(taken.of(0), 0);
    drop(registered);
    let free = Heat::sample(&range, Sampling { passes: 1, each: Duration::ZERO });
    assert_eq!(free, Heat::Known(vec![0]));
}

#[test]
fn small_granules_share_spots_when_there_are_many_and_huge_ones_never_do() {
    let mut backings = vec![Backing::Small; 2 * MOST_SPOTS - 1];
    backings.extend([Backing::Untouched, Backing::Huge, Backing::Huge, Backing::Small]);
    let spots = Spots::of(0, &backings);
    assert_eq!(spots.spots.len(), MOST_SPOTS + 3);
    assert_eq!(spots.spot_of[..4], [Some(0), Some(0), Some(1), Some(1)]);
    let last: Vec<_> =
        spots.spot_of[2 * MOST_SPOTS - 2..].iter().map(|spot| spot.map(|spot| spot + 1 - MOST_SPOTS)).collect();
    assert_eq!(last, [Some(0), None, Some(1), Some(2), Some(3)]);
}

#[test]
fn the_windows_of_a_spot_differ_from_pass_to_pass_and_lie_within_it() {
    let spots = Spots::of(0, &[Backing::Untouched, Backing::Small]);
    let passes = u32::try_from(GRANULE / WINDOW).unwrap();
    let mut starts: Vec<_> = (0..passes).map(|pass| spots.windows(pass)[0].start).collect();
    starts.sort_unstable();
    assert_eq!(starts, (GRANULE..2 * GRANULE).step_by(WINDOW).collect::<Vec<_>>());

    let many = Spots::of(0, &vec![Backing::Small; 3 * MOST_SPOTS]);
    for (pass, spot) in (0..100).zip(many.spots.iter().cycle()) {
        let window = many.window(spot, pass);
        assert!(spot.granules.contains(&(window.start / GRANULE)) && window.len() == WINDOW);
    }
    let huge = Spots::of(0, &[Backing::Huge, Backing::Huge, Backing::Untouched, Backing::Huge]);
    assert_eq!(huge.windows(5), [0..2 * GRANULE, 3 * GRANULE..4 * GRANULE]);
}

#[test]
fn what_is_written_to_at_once_is_hotter_than_what_is_written_to_late() {
    let each = Duration::from_millis(5);
    assert_eq!(heat_after(Duration::ZERO, each), 255);
    assert_eq!(heat_after(each, each), 128);
    assert_eq!(heat_after(2 * each, each), 128);
    assert!(heat_after(each / 3, each) > heat_after(each / 2, each));
}
