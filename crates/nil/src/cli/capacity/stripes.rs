//! The pools over which a capacity is striped, as they are named on the command line.

use anyhow::{Context, Result};
use nil_pool::{Access, HostIdentity, LegRequest, Membership, Pool, StripeRequest};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// `--stripe PATH[:WEIGHT]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct StripeChoice {
    path: PathBuf,
    weight: u32,
}

/// What is wrong with a `--stripe`.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no PATH or PATH:WEIGHT, such as /dev/dax0.0:3; a weight is 1 to 4096")]
pub(in crate::cli) struct BadStripeChoice(String);

impl FromStr for StripeChoice {
    type Err = BadStripeChoice;

    fn from_str(text: &str) -> Result<Self, BadStripeChoice> {
        let bad = || BadStripeChoice(text.to_owned());
        let (path, weight) = match text.rsplit_once(':') {
            // A path may have a colon of its own, with a directory behind it.
            Some((path, weight)) if !weight.contains('/') => (path, weight.parse().map_err(|_| bad())?),
            Some(_) | None => (text, 1),
        };
        if path.is_empty() || !(1..=4096).contains(&weight) {
            return Err(bad());
        }
        Ok(Self { path: path.into(), weight })
    }
}

impl StripeChoice {
    /// The pool's name and the weight.
    pub(in crate::cli) fn leg(&self) -> Result<LegRequest> {
        let pool = Pool::open(&self.path, Access::ReadOnly).context("cannot read the pool of a stripe")?.id();
        Ok(LegRequest { pool, weight: self.weight })
    }
}

/// Joins a pool for the time of one command.
pub(super) fn join(path: &Path) -> Result<Membership> {
    Ok(Pool::open(path, Access::ReadWrite)?.join(&HostIdentity::tool())?)
}

/// Joins pools beside `home`, which is joined already and may be named among them.
pub(super) fn join_others<'a>(home: &Membership, paths: impl Iterator<Item = &'a PathBuf>) -> Result<Vec<Membership>> {
    let mut others: Vec<Membership> = Vec::new();
    for path in paths {
        let pool = Pool::open(path, Access::ReadWrite)?;
        let joined = std::iter::once(home).chain(&others).any(|member| member.pool().id() == pool.id());
        if !joined {
            others.push(pool.join(&HostIdentity::tool())?);
        }
    }
    Ok(others)
}

/// The pools that take part, joined, and the request that names them.
pub(super) fn plan(
    home: &Membership,
    choices: &[StripeChoice],
    granularity: u64,
) -> Result<(Vec<Membership>, StripeRequest)> {
    let others = join_others(home, choices.iter().map(|choice| &choice.path))?;
    let legs = choices.iter().map(StripeChoice::leg).collect::<Result<_>>()?;
    Ok((others, StripeRequest { granularity, legs }))
}

/// Ends memberships in the order in which they began.
pub(super) fn leave(members: Vec<Membership>) -> Result<()> {
    Ok(members.into_iter().try_for_each(Membership::leave)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(path: &str, weight: u32) -> StripeChoice {
        StripeChoice { path: path.into(), weight }
    }

    #[test]
    fn a_stripe_is_a_path_and_perhaps_a_weight() {
        assert_eq!("/dev/dax0.0".parse::<StripeChoice>().expect("a path"), choice("/dev/dax0.0", 1));
        assert_eq!("/dev/dax0.0:3".parse::<StripeChoice>().expect("a path and a weight"), choice("/dev/dax0.0", 3));
        assert_eq!("/srv/a:b/pool".parse::<StripeChoice>().expect("a path"), choice("/srv/a:b/pool", 1));
    }

    #[test]
    fn what_is_no_stripe_is_refused() {
        for text in ["", ":3", "/pool:0", "/pool:4097", "/pool:x", "/pool:"] {
            assert!(text.parse::<StripeChoice>().is_err(), "{text}");
        }
    }
}
