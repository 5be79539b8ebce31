//! How long the steps of a boot took, for people.

use std::time::Duration;

use crate::vm::instance::status::Timings;

/// Boot timings for people.
pub fn lines(timings: &Timings) -> String {
    let seconds = |time: Option<Duration>| time.map_or("-".into(), |time| format!("{:.2} s", time.as_secs_f64()));
    format!(
        "hypervisor started after  {:.0} ms\n\
         guest init after          {}\n\
         root mounted at           {} of the guest's clock\n\
         ready after               {}\n",
        timings.hypervisor_started.as_secs_f64() * 1e3,
        seconds(timings.guest_init),
        seconds(timings.guest_clock_mounted),
        seconds(timings.ready),
    )
}
