//! Who may ask what.
//!
//! | | read | order | what agents ask of each other |
//! |---|---|---|---|
//! | viewer | yes | no | no |
//! | operator | yes | yes | no |
//! | host | yes | no | yes |
//! | this user, on the Unix socket | yes | yes | yes |

use super::problem::Refusal;
use crate::name::HostName;
use crate::tls::{Identity, Role};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::fmt;
use std::net::IpAddr;

/// Who calls, as far as the connection shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Caller {
    /// This user, on the Unix socket.
    Local,
    /// Somebody with a certificate.
    Known(Identity),
    /// Somebody on this machine, at the address where everybody is let in.
    Anybody {
        /// From where.
        from: IpAddr,
        /// What is permitted there.
        role: Role,
    },
}

/// What is needed to be allowed to ask something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Need {
    Read,
    Order,
    Peer,
}

impl Need {
    fn of(method: &Method, path: &str) -> Self {
        if path.starts_with("/v1/peer/") {
            Self::Peer
        } else if [Method::GET, Method::HEAD].contains(method) {
            Self::Read
        } else {
            Self::Order
        }
    }

    /// Half a sentence.
    fn whose(self) -> &'static str {
        match self {
            Self::Read => "a viewer's, operator's or host's",
            Self::Order => "an operator's",
            Self::Peer => "a host's",
        }
    }
}

impl Caller {
    fn may(&self, need: Need) -> bool {
        let role = match self {
            Self::Local => return true,
            Self::Known(identity) => identity.role,
            Self::Anybody { role, .. } => *role,
        };
        match (role, need) {
            (Role::Viewer | Role::Operator | Role::Host, Need::Read)
            | (Role::Operator, Need::Order)
            | (Role::Host, Need::Peer) => true,
            (Role::Viewer, Need::Order | Need::Peer) | (Role::Operator, Need::Peer) | (Role::Host, Need::Order) => {
                false
            }
        }
    }

    /// Whether it may order what only that host may.
    pub(super) fn speaks_for(&self, host: &HostName) -> bool {
        match self {
            Self::Local => true,
            Self::Known(identity) => identity.host().as_ref() == Some(host),
            // There every caller is whoever it says it is.
            Self::Anybody { role, .. } => *role == Role::Host,
        }
    }

    /// Whose requests are counted as one caller's; `None` when they are not counted.
    pub(super) fn account(&self) -> Option<String> {
        match self {
            Self::Local => None,
            Self::Known(_) | Self::Anybody { .. } => Some(self.to_string()),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("this user"),
            Self::Known(identity) => identity.fmt(f),
            Self::Anybody { from, role } => write!(f, "{role} at {from}"),
        }
    }
}

/// Lets a request through if its caller may ask that.
pub(super) async fn check(request: Request, next: Next) -> Response {
    let need = Need::of(request.method(), request.uri().path());
    match request.extensions().get::<Caller>() {
        Some(caller) if caller.may(need) => next.run(request).await,
        Some(caller) => {
            let whose = need.whose();
            let detail = format!("{caller} may not do that; it takes {whose} certificate, or the Unix socket");
            Refusal::new(StatusCode::FORBIDDEN, detail).into_response()
        }
        None => Refusal::new(StatusCode::UNAUTHORIZED, "nobody knows who you are").into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_role_may_do_what_the_table_says_and_nothing_else() {
        let from = IpAddr::from([127, 0, 0, 1]);
        let may = |role, method: &Method, path| Caller::Anybody { from, role }.may(Need::of(method, path));
        for (role, read, order, peer) in
            [(Role::Viewer, true, false, false), (Role::Operator, true, true, false), (Role::Host, true, false, true)]
        {
            assert_eq!(may(role, &Method::GET, "/v1/guests"), read, "{role}");
            assert_eq!(may(role, &Method::HEAD, "/v1/guests"), read, "{role}");
            for method in [Method::POST, Method::DELETE, Method::PUT, Method::PATCH] {
                assert_eq!(may(role, &method, "/v1/guests"), order, "{role} {method}");
                assert_eq!(may(role, &method, "/v1/peer/arm"), peer, "{role} {method}");
            }
            assert_eq!(may(role, &Method::GET, "/v1/peer/arm"), peer, "{role}");
        }
        assert!(Caller::Local.may(Need::Peer) && Caller::Local.may(Need::Order) && Caller::Local.may(Need::Read));
    }
}
