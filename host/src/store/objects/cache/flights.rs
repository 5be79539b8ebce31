//! Things on their way, each fetched once however many ask for it.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use lazyroot_proto::Verified;

use super::Key;

/// What a flight brings, or why it does not.
pub(super) type Outcome = Result<Verified, String>;

/// What is under way in this process.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<Key, Arc<Flight>>>,
}

/// Something on its way.
#[derive(Default)]
pub(super) struct Flight {
    landed: Mutex<Option<Outcome>>,
    change: Condvar,
}

/// What became of the wish to have something.
pub(super) enum Joined<'a> {
    /// The caller is the one who fetches it.
    Pilot(Claim<'a>),
    /// Somebody else does.
    Passenger(Arc<Flight>),
}

/// The duty to land a flight. Dropped without, it tells the passengers that it failed.
pub(super) struct Claim<'a> {
    flights: &'a Flights,
    pub(super) key: Key,
    flight: Arc<Flight>,
}

impl Flights {
    /// Boards the flight of `key`, or starts it.
    pub(super) fn join(&self, key: Key) -> Joined<'_> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(&key) {
            return Joined::Passenger(flight.clone());
        }
        let flight = Arc::<Flight>::default();
        under_way.insert(key, flight.clone());
        Joined::Pilot(Claim { flights: self, key, flight })
    }
}

impl Flight {
    /// Waits until it has landed.
    pub(super) fn wait(&self) -> Outcome {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*landed {
                Some(outcome) => return outcome.clone(),
                None => landed = self.change.wait(landed).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn land(&self, outcome: Outcome) {
        let mut landed = self.landed.lock().unwrap_or_else(PoisonError::into_inner);
        if landed.is_none() {
            *landed = Some(outcome);
            self.change.notify_all();
        }
    }
}

impl Claim<'_> {
    /// Lets the passengers go. New ones still board until the claim is dropped, which should happen once the cargo is
    /// where they would look first.
    pub(super) fn land(&self, outcome: Outcome) {
        self.flight.land(outcome);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.flight.land(Err("whoever fetched it gave up".into()));
        self.flights.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
