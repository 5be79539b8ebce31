//! What the threads that fetch ahead share: the content that they fetch, and the places that they put it in.

use std::sync::Arc;

use crate::ahead::budget::Budget;
use crate::ahead::large::LargeAhead;
use crate::ahead::memory_layer::MemoryLayer;
use crate::ahead::page_cache::PageCache;
use crate::ahead::small::SmallAhead;
use crate::content::Content;

/// See the module.
pub struct Stores {
    /// The image's objects.
    pub content: Arc<Content>,
    /// Small objects that are on their way, or wait for a program.
    pub small: SmallAhead,
    /// The same of ranges of large objects.
    pub large: LargeAhead,
    /// The layer in memory, in which programs find small objects without a request.
    pub memory_layer: MemoryLayer,
    /// The kernel's page cache of the data layer.
    pub page_cache: PageCache,
    /// Memory that may be used for what is fetched ahead.
    pub budget: Arc<Budget>,
}

impl Stores {
    /// Stores for `content`, of which `memory_layer` and whatever the boot profile brings may have `budget` bytes.
    pub fn new(content: Arc<Content>, memory_layer: MemoryLayer, budget: usize) -> Self {
        let budget = Arc::new(Budget::new(budget));
        Self {
            small: SmallAhead::new(content.clone(), budget.clone()),
            large: LargeAhead::new(content.clone(), budget.clone()),
            memory_layer,
            page_cache: PageCache::new(content.index().entries().len()),
            budget,
            content,
        }
    }

    /// Drops everything that was fetched ahead and that no program has asked for.
    pub fn clear(&self) {
        self.budget.release(self.small.clear() + self.large.clear());
        self.memory_layer.clear();
    }
}
