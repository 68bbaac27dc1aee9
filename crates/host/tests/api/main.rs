//! The agent's API as callers see it who are confused, slow, hostile, or not permitted: over real sockets, with an agent in
//! this process. What needs guests is tested with the program, in `crates/nil/tests/hosts`.

mod callers;
mod description;
mod limits;
mod requests;
mod stage;
mod streams;
