//! A map bounded by weight, of what was used last: open files, Merkle leaves. The order is kept by the crate `lru`, which
//! bounds a map by the number of its entries alone; the weights are added here.

use lazyroot_proto::ObjectId;
use lru::LruCache;

/// Values by object. When their weights exceed the bound, the least recently used ones are removed.
pub(crate) struct WeightedLru<V> {
    bound: usize,
    weight: usize,
    values: LruCache<ObjectId, (usize, V)>,
}

impl<V: Clone> WeightedLru<V> {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, weight: 0, values: LruCache::unbounded() }
    }

    pub(crate) fn get(&mut self, id: &ObjectId) -> Option<V> {
        self.values.get(id).map(|(_, value)| value.clone())
    }

    /// Keeps `value`, unless it alone is over the bound.
    pub(crate) fn insert(&mut self, id: ObjectId, weight: usize, value: V) {
        self.remove(&id);
        if weight > self.bound {
            return;
        }
        self.weight += weight;
        self.values.put(id, (weight, value));
        while self.weight > self.bound
            && let Some((_, (weight, _))) = self.values.pop_lru()
        {
            self.weight -= weight;
        }
    }

    pub(crate) fn remove(&mut self, id: &ObjectId) {
        if let Some((weight, _)) = self.values.pop(id) {
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
        let mut lru = WeightedLru::new(10);
        lru.insert(ids[0], 4, 'a');
        lru.insert(ids[1], 4, 'b');
        assert_eq!(lru.get(&ids[0]), Some('a'));
        lru.insert(ids[2], 4, 'c');
        assert_eq!(lru.get(&ids[1]), None, "b was used before a");
        assert_eq!(lru.get(&ids[0]), Some('a'));
        lru.insert(ids[3], 11, 'd');
        assert_eq!(lru.get(&ids[3]), None, "heavier than all there may be");
        assert_eq!(lru.get(&ids[2]), Some('c'));
        lru.insert(ids[2], 6, 'e');
        assert_eq!(lru.get(&ids[0]), Some('a'), "its new weight replaces the old one");
    }
}
