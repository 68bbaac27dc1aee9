//! Answering on the agent's socket: one thread per connection, one order at a time on each.

use super::Host;
use crate::error::{Error, Result};
use crate::message::{AgentReply, AgentRequest};
use crate::report::Progress;
use crate::wire::Connection;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

impl Host {
    pub(super) fn accept(self: &Arc<Self>, listener: &UnixListener) {
        for stream in listener.incoming() {
            let served = stream
                .map_err(|error| Error::io("accept on", self.dir.agent_socket(), error))
                .and_then(|stream| self.spawn("order", |host| host.serve(Connection::over(stream, "a client"))));
            if let Err(error) = served {
                tracing::warn!("{}", error.story());
            }
        }
    }

    fn serve(self: &Arc<Self>, mut client: Connection) {
        loop {
            let request = match client.receive() {
                Ok(Some(request)) => request,
                Ok(None) => return,
                Err(error) => return tracing::warn!("{}", error.story()),
            };
            let outcome = match self.orders.begin() {
                Some(_order) => self.obey(request, &mut client),
                None => Err(Error::refused(format!("the agent of host {} is stopping", self.dir.name()))),
            };
            let told = outcome.or_else(|error| client.send(&AgentReply::Refused(error.story())));
            if let Err(error) = told {
                return tracing::debug!("{}", error.story());
            }
        }
    }

    /// Does what is asked, and answers. An error is what could not be done.
    fn obey(self: &Arc<Self>, request: AgentRequest, client: &mut Connection) -> Result<()> {
        match request {
            AgentRequest::Describe => client.send(&AgentReply::Host(self.describe())),
            AgentRequest::List => client.send(&AgentReply::Guests(self.list())),
            AgentRequest::Run(order) => {
                let guest = self.run_vm(&order)?;
                let told = client.send(&AgentReply::Guest(guest));
                if told.is_err() {
                    tracing::info!("guest {}: whoever ordered it has gone before it ran; stopping it", order.name);
                    self.stop_guest(&order.name)?;
                }
                told
            }
            AgentRequest::Stop { guest } => {
                self.stop_guest(&guest)?;
                client.send(&AgentReply::Done)
            }
            AgentRequest::Migrate(order) => {
                // A client that has hung up misses the show; the migration goes on to its end all the same.
                let report = self.migrate(&order, |step| {
                    let _ = client.send(&AgentReply::Progress(Progress { step }));
                })?;
                client.send(&AgentReply::Migrated(Box::new(report)))
            }
            AgentRequest::Arm(order) => self.take_over(&order, client),
        }
    }
}
