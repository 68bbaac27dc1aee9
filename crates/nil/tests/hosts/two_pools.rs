//! A pool and another one, and the agents that have joined the one, the other, or both.

use crate::playground::{Agent, Playground};
use crate::witness::Witness;
use nil_pool::{Access, Pool};
use std::path::Path;

/// Whoever is near has joined the first pool, whoever is far the other one; a hop, both.
pub(crate) struct TwoPools {
    pub(crate) playground: Playground,
    pub(crate) first: String,
    pub(crate) other: String,
}

impl TwoPools {
    pub(crate) fn new() -> Self {
        let playground = Playground::new();
        playground.add_pool("other");
        let (first, other) = (playground.pool(), playground.path("other"));
        Self { playground, first, other }
    }

    pub(crate) fn near(&self, name: &str) -> Agent {
        self.playground.agent_with(name, &["--pool", &self.first])
    }

    pub(crate) fn hop(&self, name: &str) -> Agent {
        self.playground.agent_with(name, &["--pool", &self.first, "--pool", &self.other])
    }

    pub(crate) fn far(&self, name: &str) -> Agent {
        self.playground.agent_with(name, &["--pool", &self.other])
    }

    /// Starts a VM in the first pool that is hard on its memory.
    pub(crate) fn run(&self, name: &str, host: &str) -> Witness {
        self.playground.run_image(name, host, "builtin:demo");
        let witness = Witness::of(&self.playground, name);
        witness.await_filled();
        witness
    }

    /// Bytes that each pool could still give.
    pub(crate) fn free(&self) -> [u64; 2] {
        [&self.first, &self.other].map(|path| open(path).usage().free)
    }

    /// What `nil pool check` finds in both; nothing must be wrong.
    #[track_caller]
    pub(crate) fn check(&self) {
        for (pool, companion) in [(&self.first, &self.other), (&self.other, &self.first)] {
            let check = self.playground.nil(&["pool", "check", pool, "--pool", companion]);
            assert!(check.status.success(), "{}{}", check.stdout, check.stderr);
        }
    }
}

pub(crate) fn open(path: &str) -> Pool {
    Pool::open(Path::new(path), Access::ReadOnly).expect("the pool")
}
