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
                let told = client.send(&AgentReply::Guest(Box::new(guest)));
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
            // A client that has hung up misses the show; what it ordered goes on to its end all the same.
            AgentRequest::Migrate(order) => {
                let report = self.migrate(&order, &mut |progress| tell(client, progress))?;
                client.send(&AgentReply::Migrated(Box::new(report)))
            }
            AgentRequest::Move(order) => {
                let moved = self.move_memory(&order, &mut |progress| tell(client, progress))?;
                client.send(&AgentReply::MemoryMoved(Box::new(moved)))
            }
            AgentRequest::Settle(order) => {
                let settled = self.settle(&order, &mut |progress| tell(client, progress))?;
                client.send(&AgentReply::Settled(Box::new(settled)))
            }
            AgentRequest::CancelMigration { guest } => {
                let how = self.cancel_migration(&guest)?;
                client.send(&AgentReply::CalledOff(how))
            }
            AgentRequest::CancelMove { guest, direction } => {
                let how = self.cancel_move(&guest, direction)?;
                client.send(&AgentReply::CalledOff(how))
            }
            AgentRequest::Pin(order) => {
                let pin = self.pin(&order)?;
                client.send(&AgentReply::Pins(vec![pin]))
            }
            AgentRequest::Pins { guest } => {
                let pins = self.pins(&guest)?;
                client.send(&AgentReply::Pins(pins))
            }
            AgentRequest::ReleasePin { guest, pin } => {
                self.release_pin(&guest, &pin)?;
                client.send(&AgentReply::Done)
            }
            AgentRequest::Arm(order) => self.take_over(&order, client),
        }
    }
}

/// Nobody waits for a client that does not read: it misses a step.
fn tell(client: &Connection, progress: Progress) {
    let _ = client.send_now(&AgentReply::Progress(progress));
}
