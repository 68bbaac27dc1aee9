//! What a host can do for a guest, as its agent tells those who plan.

mod dram;
mod machine;

pub(crate) use dram::free_dram;
pub(crate) use machine::Machine;

use crate::error::{Error, Result};
use crate::versions::Versions;
use nil_vmm::{BadModel, CpuModel, KvmOffer};
use serde::{Deserialize, Serialize};
use std::sync::{Mutex, PoisonError};
use utoipa::ToSchema;

/// What a host can do, but for its pools.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// The interfaces that it speaks.
    pub versions: Versions,
    /// Its processors and devices.
    pub kvm: Virtualisation,
    /// Bytes of its DRAM that guests could still have.
    pub free_dram_bytes: u64,
    /// Bytes of a page.
    pub page_bytes: u64,
    /// Whether it takes no guests at the moment.
    pub placement: Placement,
}

/// Whether a host runs guests at all.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Virtualisation {
    /// It does, and offers this.
    Offered(Box<KvmOffer>),
    /// It does not, for this reason.
    Missing(String),
}

/// Whether a host takes guests from others.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// It does.
    Open,
    /// It is kept free of them.
    Cordoned,
}

impl Virtualisation {
    /// What is offered, if anything is.
    #[must_use]
    pub fn offer(&self) -> Option<&KvmOffer> {
        match self {
            Self::Offered(offer) => Some(offer),
            Self::Missing(_) => None,
        }
    }
}

/// What KVM says, asked once; and no more of it than the operator permits.
#[derive(Debug)]
pub(crate) struct Processors {
    limit: Option<CpuModel>,
    offer: Mutex<Option<KvmOffer>>,
}

impl Processors {
    /// Those of this machine, up to the model `limit`.
    pub(crate) fn up_to(limit: Option<CpuModel>) -> Self {
        Self { limit, offer: Mutex::default() }
    }

    /// What they offer. A KVM that cannot be asked now is asked again the next time.
    pub(crate) fn offer(&self) -> Virtualisation {
        let mut known = self.offer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(offer) = &*known {
            return Virtualisation::Offered(Box::new(offer.clone()));
        }
        let offer = KvmOffer::probe().map_err(|error| crate::error::story(&error));
        match offer.and_then(|offer| limited(offer, self.limit.as_ref()).map_err(|error| error.to_string())) {
            Ok(offer) => Virtualisation::Offered(Box::new(known.insert(offer).clone())),
            Err(why) => Virtualisation::Missing(why),
        }
    }
}

impl Processors {
    /// The model that a guest is started with which asks for that; `None` is all that the worker finds.
    ///
    /// # Errors
    /// The operator does not permit as much.
    pub(crate) fn model_for(&self, asked: Option<&CpuModel>) -> Result<Option<CpuModel>> {
        let Some(limit) = &self.limit else { return Ok(asked.cloned()) };
        let offer = match self.offer() {
            Virtualisation::Offered(offer) => offer.cpu,
            Virtualisation::Missing(why) => return Err(Error::refused(why)),
        };
        let Some(model) = asked else { return Ok(Some(offer)) };
        let missing = model.missing_from(offer.features());
        if missing.is_empty() {
            return Ok(Some(model.clone()));
        }
        let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
        Err(Error::refused(format!(
            "this host offers guests no more than CPU model {}, in which {} of {} are missing: {}",
            limit.name(),
            names.len(),
            model.name(),
            names.join(", ")
        )))
    }
}

fn limited(offer: KvmOffer, limit: Option<&CpuModel>) -> std::result::Result<KvmOffer, BadModel> {
    let Some(limit) = limit else { return Ok(offer) };
    let common = CpuModel::common(limit.name().clone(), [limit, &offer.cpu])?;
    Ok(KvmOffer { cpu: common.unwrap_or_else(|| limit.clone()), ..offer })
}
