//! A map that remembers what was used last, bounded by weight: open files, Merkle leaves.

use std::collections::{BTreeMap, HashMap};

use lazyroot_proto::ObjectId;

/// Values by object, the least recently used ones forgotten when their weights exceed the bound.
pub(crate) struct Recent<V> {
    bound: usize,
    weight: usize,
    clock: u64,
    values: HashMap<ObjectId, (u64, usize, V)>,
    by_age: BTreeMap<u64, ObjectId>,
}

impl<V: Clone> Recent<V> {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, weight: 0, clock: 0, values: HashMap::new(), by_age: BTreeMap::new() }
    }

    pub(crate) fn get(&mut self, id: &ObjectId) -> Option<V> {
        let (age, _, value) = self.values.get_mut(id)?;
        self.clock += 1;
        self.by_age.remove(age);
        self.by_age.insert(self.clock, *id);
        *age = self.clock;
        Some(value.clone())
    }

    /// Remembers `value`, unless it alone is over the bound.
    pub(crate) fn insert(&mut self, id: ObjectId, weight: usize, value: V) {
        self.remove(&id);
        if weight > self.bound {
            return;
        }
        self.clock += 1;
        self.weight += weight;
        self.by_age.insert(self.clock, id);
        self.values.insert(id, (self.clock, weight, value));
        while self.weight > self.bound {
            let (_, oldest) = self.by_age.first_key_value().expect("what weighs is listed by age");
            let oldest = *oldest;
            self.remove(&oldest);
        }
    }

    pub(crate) fn remove(&mut self, id: &ObjectId) {
        if let Some((age, weight, _)) = self.values.remove(id) {
            self.by_age.remove(&age);
            self.weight -= weight;
        }
    }
}

#[cfg(test)]
mod tests {
    use lazyroot_proto::{Algorithm, verity};

    use super::*;

    #[test]
    fn the_least_recently_used_goes_first() {
        let ids: Vec<ObjectId> = (0..4u8).map(|i| verity::digest(Algorithm::Sha256, &[i])).collect();
        let mut recent = Recent::new(10);
        recent.insert(ids[0], 4, 'a');
        recent.insert(ids[1], 4, 'b');
        assert_eq!(recent.get(&ids[0]), Some('a'));
        recent.insert(ids[2], 4, 'c');
        assert_eq!(recent.get(&ids[1]), None, "b was used before a");
        assert_eq!(recent.get(&ids[0]), Some('a'));
        recent.insert(ids[3], 11, 'd');
        assert_eq!(recent.get(&ids[3]), None, "heavier than all there may be");
        assert_eq!(recent.get(&ids[2]), Some('c'));
    }
}
