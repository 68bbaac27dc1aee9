//! How fast memory is copied into a striped capacity, by the number of its stripes.
//!
//! The pools are files on tmpfs, so that all stripes lie in the same DRAM: this emulates the mapping, not the devices. It
//! shows what striping costs, not what it gains.
//!
//! `cargo run --release -p nil-pool --example stripe_copy -- [GRANULARITY_MIB]`

use nil_pool::{
    AbsentPools, CapacityRequest, CreateOptions, GRANULE, HostIdentity, LegRequest, Membership, Pool, StripeRequest,
    Tag,
};
use std::time::Instant;

const BYTES: u64 = 512 << 20;
const ROUNDS: usize = 9;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let granularity = std::env::args().nth(1).map_or(Ok(2), |text| text.parse::<u64>())? << 20;
    let directory = tempfile::tempdir_in("/dev/shm")?;
    let members = (0..3).map(|index| member(&directory, index)).collect::<Result<Vec<_>, _>>()?;
    let source = vec![1_u8; usize::try_from(BYTES)?];
    println!("{} MiB, granularity {} MiB, median of {ROUNDS} copies; one DRAM", BYTES >> 20, granularity >> 20);
    for stripes in 1..members.len() {
        let speed = measure(&members[0], &members[1..=stripes], granularity, &source)?;
        println!("stripes: {stripes}  {speed:.2} GB/s");
    }
    Ok(())
}

fn member(directory: &tempfile::TempDir, index: usize) -> Result<Membership, Failure> {
    let options = CreateOptions { size: Some(BYTES + 16 * GRANULE), ..CreateOptions::default() };
    let pool = Pool::create(&directory.path().join(format!("pool{index}")), &options)?;
    Ok(pool.join(&HostIdentity::tool())?)
}

/// Median speed of copying `source` into a capacity over `legs`, in GB/s.
fn measure(home: &Membership, legs: &[Membership], granularity: u64, source: &[u8]) -> Result<f64, Failure> {
    let request = CapacityRequest::shared(Tag::random(), BYTES);
    let leg = |member: &Membership| LegRequest { pool: member.pool().id(), weight: 1 };
    let stripe = StripeRequest { granularity, legs: legs.iter().map(leg).collect() };
    let legs: Vec<&Membership> = legs.iter().collect();
    let added = home.add_striped_capacity(&request, &stripe, &legs)?;
    let mapping = home.pool().map_capacity(added.tag)?;
    mapping.populate()?;
    let mut seconds: Vec<f64> = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            // SAFETY: the mapping is as long as the capacity, which is as long as the source; nobody else uses it.
            unsafe { mapping.as_ptr().copy_from_nonoverlapping(source.as_ptr(), source.len().min(mapping.len())) };
            start.elapsed().as_secs_f64()
        })
        .collect();
    drop(mapping);
    home.release_capacity_with(added.tag, &legs, AbsentPools::Refuse)?;
    seconds.sort_by(f64::total_cmp);
    #[expect(clippy::cast_precision_loss, reason = "half a gigabyte is far below 2^53")]
    let gigabytes = BYTES as f64 / 1e9;
    Ok(gigabytes / seconds[ROUNDS / 2])
}
