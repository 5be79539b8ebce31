//! lazyroot in the guest: the data plane and the init.
