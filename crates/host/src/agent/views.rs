//! What the agent has mapped of guests, to say how they are.
//!
//! A guest's state area is mapped when somebody first asks for the guest, and stays mapped: mapping it is most of what a
//! question about a guest would cost. It is found by its tag, which the guest's record names, so it is never that of
//! another guest. Those of guests that are no more go when as many others have come.

use nil_pool::{GuestControl, PoolId, StateArea, Tag};
use nil_vmm::ModelName;
use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// From how many on it is asked which guests are no more.
const FEW: usize = 64;

/// The state areas that are mapped.
#[derive(Debug, Default)]
pub(super) struct Views(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    views: HashMap<(PoolId, Tag), View>,
    /// How many there may be until it is asked again which guests are no more.
    room: usize,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) struct View {
    control: GuestControl,
    pub(super) area: StateArea,
    /// The CPU that the guest is promised, which never changes, once it can be read.
    pub(super) model: Option<ModelName>,
}

impl Views {
    /// The state area of a guest whose record names it so; `None` when it cannot be mapped.
    pub(super) fn view(&self, control: &GuestControl, state: Tag) -> Option<View> {
        let at = (control.pool().id(), state);
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let area = match known.views.get(&at) {
            Some(view) if view.model.is_some() => return Some(view.clone()),
            Some(view) => view.area.clone(),
            None => control.map_state().ok()?,
        };
        let model = nil_vmm::model_of(control, &area).ok().flatten();
        let view = View { control: control.clone(), area, model };
        if known.views.len() >= known.room.max(FEW) {
            known.views.retain(|_, view| view.control.config().is_ok());
            known.room = 2 * known.views.len();
        }
        known.views.insert(at, view.clone());
        Some(view)
    }
}
