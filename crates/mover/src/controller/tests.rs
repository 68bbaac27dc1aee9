use super::size::{LARGEST, SMALLEST};
use super::*;
use proptest::prelude::*;

const US: Duration = Duration::from_micros(1);

/// Stalls of at most 300 µs, at most a fifth of the guest's time.
fn gentle() -> Budget {
    Budget { pace: Pace::Paced { max_stall_us: 300, max_slowdown_pct: 20 }, bandwidth: None }
}

/// A machine and the guest on it, with a clock of their own.
struct Simulation {
    controller: Controller,
    began: Instant,
    now: Instant,
    /// Memory speed.
    bytes_per_us: u64,
    /// What every chunk costs, whatever its size.
    fixed: Duration,
    /// How far sleeps go beyond what was asked for.
    oversleep: Duration,
    lost: Duration,
    bytes: u64,
    too_long: u64,
    chunks: u64,
}

impl Simulation {
    fn new(budget: Budget, bytes_per_us: u64) -> Self {
        let now = Instant::now();
        let (fixed, oversleep) = (10 * US, 60 * US);
        let (lost, bytes, too_long, chunks) = (Duration::ZERO, 0, 0, 0);
        let controller = Controller::new(&budget, &(SMALLEST..=LARGEST));
        Self { controller, began: now, now, bytes_per_us, fixed, oversleep, lost, bytes, too_long, chunks }
    }

    /// Moves a chunk that takes `extra` beyond what it should, and pauses as it is told to.
    fn step(&mut self, hit: bool, extra: Duration, limit: Option<u64>) {
        let bytes = self.controller.chunk_bytes();
        let protected = self.fixed + Duration::from_micros(bytes / self.bytes_per_us) + extra;
        self.now += protected;
        self.bytes += bytes;
        self.chunks += 1;
        self.too_long += u64::from(protected > 300 * US);
        self.lost += if hit { protected } else { Duration::ZERO };
        self.controller.record(&ChunkSample { bytes, protected, hit, lost: Duration::ZERO, now: self.now });
        loop {
            let pause = self.controller.pause(self.now, limit);
            if pause.is_zero() {
                return;
            }
            self.now += pause + self.oversleep;
        }
    }

    fn steps(&mut self, count: usize) -> u64 {
        for _ in 0..count {
            self.step(true, Duration::ZERO, None);
        }
        self.controller.chunk_bytes()
    }

    fn elapsed(&self) -> Duration {
        self.now - self.began
    }

    fn lost_pct(&self) -> f64 {
        self.lost.as_secs_f64() / self.elapsed().as_secs_f64() * 100.0
    }
}

fn paced(max_stall_us: u64, max_slowdown_pct: u8) -> Budget {
    Budget { pace: Pace::Paced { max_stall_us, max_slowdown_pct }, bandwidth: None }
}

#[test]
fn chunks_grow_until_the_longest_stall_is_near() {
    let chunk = Simulation::new(gentle(), 8000).steps(200);
    assert_eq!(chunk, 1 << 20, "2 MiB take 272 µs of 300, which leaves no room for noise");
}

#[test]
fn chunks_shrink_at_once_when_memory_is_slow() {
    let mut slow = Simulation::new(gentle(), 100);
    assert_eq!(slow.steps(200), 16 << 10, "16 KiB take 174 µs, 32 KiB would take 338");
    assert!(slow.too_long <= 8, "two of each size that is too large, not {}", slow.too_long);
}

#[test]
fn chunks_never_leave_their_bounds() {
    assert_eq!(Simulation::new(paced(1, 100), 1).steps(500), SMALLEST);
    assert_eq!(Simulation::new(paced(1_000_000, 100), 1000).steps(500), LARGEST);
    let fast = Budget { pace: Pace::Fast, bandwidth: None };
    assert_eq!(Controller::new(&fast, &(SMALLEST..=3 << 20)).chunk_bytes(), LARGEST);
    assert_eq!(Controller::new(&fast, &(SMALLEST..=48 << 10)).chunk_bytes(), 32 << 10);
}

#[test]
fn chunks_are_never_smaller_than_what_the_pool_is_mapped_in() {
    for step in (12..=21).map(|shift| 1 << shift) {
        for budget in [Budget { pace: Pace::Fast, bandwidth: None }, paced(1, 100), gentle()] {
            for largest in [SMALLEST, 64 << 10, LARGEST] {
                let mut controller = Controller::new(&budget, &(step..=largest));
                for _ in 0..200 {
                    let (bytes, protected) = (controller.chunk_bytes(), Duration::from_millis(5));
                    assert!(bytes >= step && bytes.is_multiple_of(step), "{bytes:#x} in steps of {step:#x}");
                    let now = Instant::now();
                    controller.record(&ChunkSample { bytes, protected, hit: true, lost: Duration::ZERO, now });
                }
            }
        }
    }
}

#[test]
fn one_outlier_among_many_does_not_change_the_chunk() {
    let mut machine = Simulation::new(gentle(), 8000);
    let chunk = machine.steps(200);
    for _ in 0..10 {
        machine.step(true, Duration::from_millis(30), None);
        assert_eq!(machine.steps(20), chunk);
    }
}

#[test]
fn a_machine_that_turns_slow_and_recovers_is_followed() {
    let mut machine = Simulation::new(gentle(), 8000);
    assert_eq!(machine.steps(200), 1 << 20);
    machine.bytes_per_us = 500;
    assert_eq!(machine.steps(20), 128 << 10);
    machine.bytes_per_us = 8000;
    assert_eq!(machine.steps(2000), 1 << 20);
}

#[test]
fn a_step_up_that_fails_again_and_again_becomes_rare() {
    let mut machine = Simulation::new(gentle(), 8000);
    for _ in 0..4000 {
        // Twice the size takes ten times as long: as where larger chunks do not fit into the cache.
        let extra = if machine.controller.chunk_bytes() > 256 << 10 { 400 * US } else { Duration::ZERO };
        machine.step(true, extra, None);
    }
    assert!(machine.too_long <= 16, "{} of {} chunks were too long", machine.too_long, machine.chunks);
}

#[test]
fn memory_that_was_not_copied_says_nothing_about_the_chunk() {
    let mut controller = Controller::new(&gentle(), &(SMALLEST..=LARGEST));
    let (first, start) = (controller.chunk_bytes(), Instant::now());
    for round in 0..100 {
        let now = start + 10 * US * round;
        controller.record(&ChunkSample { bytes: 0, protected: 2 * US, hit: false, lost: Duration::ZERO, now });
    }
    assert_eq!(controller.chunk_bytes(), first);
    assert_eq!(controller.figures().chunk_bytes, ChunkSizes::default());
}

#[test]
fn the_guest_keeps_its_share_of_the_time() {
    for pct in [1, 5, 20, 50] {
        let mut machine = Simulation::new(paced(300, pct), 4000);
        machine.steps(2000);
        let (lost, measured) = (machine.lost_pct(), machine.controller.figures().slowdown_pct);
        assert!(lost <= f64::from(pct) * 1.01, "lost {lost} % of {pct} %");
        assert!(lost >= f64::from(pct) * 0.75, "lost only {lost} % of {pct} %: the move is slower than it need be");
        assert!((lost - measured).abs() < 0.5, "lost {lost} %, and {measured} % were measured");
    }
}

#[test]
fn a_guest_that_waits_for_nothing_needs_no_pause() {
    let mut machine = Simulation::new(gentle(), 4000);
    for _ in 0..500 {
        machine.step(false, Duration::ZERO, None);
    }
    let moving = u32::try_from(machine.chunks).unwrap() * machine.fixed + Duration::from_micros(machine.bytes / 4000);
    assert!(machine.elapsed() <= moving + 500 * US);
    assert_eq!(machine.controller.figures().stall_us, StallFigures::default());
}

#[test]
fn a_wait_for_a_cpu_counts_as_much_as_a_stall() {
    let mut controller = Controller::new(&paced(300, 20), &(SMALLEST..=LARGEST));
    let now = Instant::now();
    controller.pause(now, None);
    controller.record(&ChunkSample { bytes: 4096, protected: 50 * US, hit: false, lost: 500 * US, now });
    assert_eq!(controller.pause(now, None), 2500 * US);
}

#[test]
fn a_fast_move_pauses_for_bandwidth_only() {
    let mut machine = Simulation::new(Budget { pace: Pace::Fast, bandwidth: None }, 8000);
    assert_eq!(machine.steps(1000), LARGEST);
    assert_eq!(machine.elapsed(), machine.lost);
    assert_eq!(machine.controller.figures().stall_us.count, 1000);

    let mut limited = Simulation::new(Budget { pace: Pace::Fast, bandwidth: Some(1 << 30) }, 8000);
    limited.steps(1024);
    assert!(limited.elapsed().as_secs_f64() >= 1.98 && limited.elapsed().as_secs_f64() <= 2.02);
}

#[test]
fn bandwidth_follows_the_lower_limit_while_it_changes() {
    let mut machine = Simulation::new(Budget { pace: Pace::Fast, bandwidth: Some(1 << 30) }, 8000);
    for (limit, rate) in [(Some(256 << 20), 256u64 << 20), (Some(4 << 30), 1 << 30), (None, 1 << 30)] {
        let (bytes, began) = (machine.bytes, machine.now);
        for _ in 0..256 {
            machine.step(true, Duration::ZERO, limit);
        }
        let achieved = (machine.bytes - bytes) as f64 / (machine.now - began).as_secs_f64();
        assert!((achieved / rate as f64 - 1.0).abs() < 0.03, "{achieved} bytes per second of {rate}");
    }
}

#[test]
fn no_bandwidth_at_all_is_a_pause_that_can_be_looked_into() {
    let mut controller = Controller::new(&gentle(), &(SMALLEST..=LARGEST));
    let now = Instant::now();
    controller.record(&ChunkSample { bytes: 4096, protected: 5 * US, hit: false, lost: Duration::ZERO, now });
    assert_eq!(controller.pause(now, Some(0)), LONGEST_PAUSE);
    assert_eq!(controller.pause(now + LONGEST_PAUSE, Some(0)), LONGEST_PAUSE);
    assert_eq!(controller.pause(now + LONGEST_PAUSE, None), Duration::ZERO);
}

#[test]
fn percentiles_are_those_of_the_chunks_that_a_store_waited_for() {
    let mut controller = Controller::new(&gentle(), &(SMALLEST..=LARGEST));
    let start = Instant::now();
    for us in 1..=100u64 {
        let (protected, now) = (Duration::from_micros(us), start + Duration::from_millis(us));
        controller.record(&ChunkSample { bytes: 4096, protected, hit: true, lost: Duration::ZERO, now });
        controller.record(&ChunkSample { bytes: 8192, protected: 9000 * US, hit: false, lost: Duration::ZERO, now });
    }
    let figures = controller.figures();
    assert_eq!(figures.stall_us, StallFigures { count: 100, p50: 50, p99: 99, max: 100 });
    assert_eq!(figures.chunk_bytes, ChunkSizes { smallest: 4096, largest: 8192 });
}

proptest! {
    /// Whatever the chunks cost: at no instant has the guest lost more than its share of the time that has passed, beyond
    /// the chunk just taken and what may be caught up.
    #[test]
    fn the_guest_never_loses_more_than_its_share(
        pct in 1u8..100,
        speed in 50u64..20_000,
        chunks in proptest::collection::vec((any::<bool>(), prop_oneof![9 => 0u64..50, 1 => 0u64..40_000]), 1..300)
    ) {
        let mut machine = Simulation::new(paced(300, pct), speed);
        let share = f64::from(pct) / 100.0;
        for (hit, extra) in chunks {
            machine.step(hit, Duration::from_micros(extra), None);
            let slack = share * (CATCH_UP + SHORTEST_PAUSE).as_secs_f64();
            let (lost, allowed) = (machine.lost.as_secs_f64(), share * machine.elapsed().as_secs_f64() + slack);
            prop_assert!(lost <= allowed + 1e-6, "{lost} s lost, {allowed} s allowed");
        }
    }

    #[test]
    fn no_more_bytes_go_than_the_bandwidth_allows(
        rate in 1u64 << 20..8 << 30,
        chunks in proptest::collection::vec(0u64..1000, 1..300)
    ) {
        let mut machine = Simulation::new(Budget { pace: Pace::Fast, bandwidth: Some(rate) }, 10_000);
        for extra in chunks {
            machine.step(false, Duration::from_micros(extra), None);
            let slack = rate as f64 * (CATCH_UP + SHORTEST_PAUSE).as_secs_f64();
            let allowed = rate as f64 * machine.elapsed().as_secs_f64() + slack;
            prop_assert!(machine.bytes as f64 <= allowed + 1.0, "{} bytes, {allowed} allowed", machine.bytes);
        }
    }

    #[test]
    fn a_chunk_is_always_a_power_of_two_within_its_bounds(
        largest in 0u64..8 << 20, limit in 0u64..2000, times in proptest::collection::vec(0u64..5000, 0..400)
    ) {
        let mut controller = Controller::new(&paced(limit, 20), &(SMALLEST..=largest));
        let mut now = Instant::now();
        for us in times {
            let bytes = controller.chunk_bytes();
            prop_assert!(bytes.is_power_of_two() && (SMALLEST..=LARGEST).contains(&bytes));
            prop_assert!(bytes <= largest.max(SMALLEST));
            now += Duration::from_micros(us);
            let protected = Duration::from_micros(us);
            controller.record(&ChunkSample { bytes, protected, hit: us % 3 == 0, lost: Duration::ZERO, now });
        }
    }
}

#[test]
fn huge_pages_are_split_only_when_most_chunks_take_too_long() {
    let paced = Budget { pace: Pace::Paced { max_stall_us: 300, max_slowdown_pct: 100 }, bandwidth: None };
    let mut simulation = Simulation::new(paced, 10_000);
    simulation.controller.begin_large();
    for _ in 0..50 {
        simulation.step(false, 5_000 * US, None);
        (0..3).for_each(|_| simulation.step(false, Duration::ZERO, None));
    }
    assert_eq!(simulation.controller.chunk_bytes(), LARGEST, "one in four is long");
    (0..20).for_each(|_| simulation.step(false, 5_000 * US, None));
    assert!(simulation.controller.chunk_bytes() < LARGEST, "all are long");
}
