//! Panics: one ends the process, unless it is contained. A process that lost a task to a defect is in no known
//! state, and may be killed at any time. What handles a single message shares nothing with the rest that a panic
//! could leave half done.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::panic::{self, AssertUnwindSafe};

use futures::FutureExt;

use crate::{exit, logging};

thread_local! {
    /// Where a contained panic came from; none while nothing is contained.
    static CONTAINED: RefCell<Option<String>> = const { RefCell::new(None) };
}

pub(crate) fn exit_on_panic() {
    let print = panic::take_hook();
    panic::set_hook(Box::new(move |panic| {
        let is_contained = CONTAINED.with_borrow_mut(|location| {
            if let Some(location) = location {
                *location = panic
                    .location()
                    .map_or_else(String::new, |at| format!(" at {at}"));
            }
            location.is_some()
        });
        if !is_contained {
            logging::end_logging();
            print(panic);
            std::process::exit(i32::from(exit::UNEXPECTED));
        }
    }));
}

/// Runs to its end a future whose panic is its own. No `async fn`, which would have room for the future twice.
///
/// # Errors
/// The panic's text and location.
pub fn contain_panic<T>(
    future: impl Future<Output = T>,
) -> impl Future<Output = Result<T, String>> {
    let mut future = Box::pin(AssertUnwindSafe(future).catch_unwind());
    poll_fn(move |context| {
        let outer = CONTAINED.replace(Some(String::new()));
        let polled = future.as_mut().poll(context);
        let location = CONTAINED.replace(outer).unwrap_or_default();
        polled.map_err(|panic| format!("panicked{location}: {}", panic_text(&*panic)))
    })
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a text")
}
