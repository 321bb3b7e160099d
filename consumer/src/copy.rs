//! Copy: one server-side copy per image, proven by its ETag, at the pace S3 allows; and the comparison
//! where something stands at the destination already.
//!
//! What is throttled or broken for the moment is tried again here, in hand and under its lease, so
//! that it uses up no receive count.

use std::sync::Arc;
use std::time::Duration;

use bucket_brigade_common::backoff::Backoff;
use bucket_brigade_common::object_store::{Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::Route;
use bucket_brigade_common::trace::{self, attribute};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::governor::Governor;
use crate::health::{Dependency, Health};
use crate::outage::{OutageWatch, Verdict};
use crate::pace::{Pace, Slot};
use crate::step::{Event, Trouble};
use crate::tally::Tally;

/// Tries of one object in hand before it is given back, when others go well: about ten seconds.
const TRIES: u32 = 7;

const AGAIN: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(5),
};

/// Waits of a throttled copy; the pace does the real slowing down.
const THROTTLED: Backoff = Backoff {
    first: Duration::from_millis(100),
    most: Duration::from_secs(3),
};

/// What is asked of the store.
#[derive(Debug, Clone, Copy)]
enum Call {
    Copy,
    Compare,
}

/// How one try ended.
enum Try {
    Answered(Event),
    Hopeless(Trouble),
    Again(StoreError),
}

/// A try, and under which circumstances it was made.
struct Tried {
    outcome: Try,
    sent: Instant,
    is_probe: bool,
}

/// Copies objects.
pub struct Copy {
    store: Arc<dyn ObjectStore>,
    governor: Arc<Governor>,
    pace: Pace,
    health: Health,
    outages: OutageWatch,
    tally: Arc<Tally>,
    stop: CancellationToken,
}

impl Copy {
    /// Copies within the store, at most `max_concurrency` objects at a time, and no more than the governor
    /// allows. The witness is an image that
    /// was moved before, if there is one.
    pub fn new(
        store: Arc<dyn ObjectStore>,
        governor: Arc<Governor>,
        max_concurrency: usize,
        witness: Option<Route>,
        health: Health,
        tally: Arc<Tally>,
        stop: CancellationToken,
    ) -> Self {
        Self {
            store,
            governor,
            pace: Pace::new(max_concurrency),
            health,
            outages: OutageWatch::new(witness),
            tally,
            stop,
        }
    }

    /// What bounds the copies besides the pace.
    pub fn governor(&self) -> &Governor {
        &self.governor
    }

    /// The pace, for whoever reports on it.
    pub fn pace(&self) -> &Pace {
        &self.pace
    }

    /// Copies until it is proven or hopeless. A stop ends the waiting, not a copy under way.
    pub async fn copy(&self, route: &Route) -> Event {
        self.insist(Call::Copy, route).await
    }

    /// Compares what stands at the destination with the source, as patiently.
    pub async fn compare(&self, route: &Route) -> Event {
        self.insist(Call::Compare, route).await
    }

    async fn insist(&self, call: Call, route: &Route) -> Event {
        let (mut tries, mut probes, mut throttled) = (0, 0, 0);
        loop {
            let Some(tried) = self.try_in_turn(call, route).await else {
                return Event::Interrupted;
            };
            let wait = match tried.outcome {
                Try::Answered(event) => return event,
                Try::Hopeless(trouble) => return Event::CopyFailed(trouble),
                Try::Again(StoreError::Throttled { .. }) => {
                    throttled += 1;
                    THROTTLED.delay(throttled, fastrand::f64())
                }
                Try::Again(error) => {
                    let verdict = self.verdict(&error, route, tried.sent, tried.is_probe);
                    // What failed in an outage says nothing of this object, and does not count against it.
                    if verdict.await == Verdict::Everybodys {
                        probes += 1;
                        if !self.is_worn_out(&error, probes) {
                            continue;
                        }
                        self.health.up(Dependency::Objects);
                        return Event::CopyFailed(given_up(&error, probes));
                    }
                    tries += 1;
                    if tries >= TRIES {
                        return Event::CopyFailed(given_up(&error, tries));
                    }
                    AGAIN.delay(tries, fastrand::f64())
                }
            };
            tokio::select! {
                biased;
                () = sleep(wait) => {}
                () = self.stop.cancelled() => return Event::Interrupted,
            }
        }
    }

    /// Waits for S3 to be well, for the governor and for a place in the pace, then tries once. None when
    /// the process stops while waiting, or others are to do it.
    async fn try_in_turn(&self, call: Call, route: &Route) -> Option<Tried> {
        let entering = async {
            let turn = self.health.turn().await;
            let place = self.governor.enter().await;
            let slot = self.pace.enter().await;
            (turn, place, slot)
        };
        let (turn, _place, slot) = tokio::select! {
            biased;
            entered = entering => entered,
            () = self.stop.cancelled() => return None,
            () = self.governor.left_out() => return None,
        };
        let sent = Instant::now();
        Some(Tried {
            outcome: self.try_once(call, route, slot).await,
            sent,
            is_probe: turn.is_probe(),
        })
    }

    async fn try_once(&self, call: Call, route: &Route, slot: Slot<'_>) -> Try {
        let began = Instant::now();
        let answer = self.ask(call, route).await;
        if let Ok(Event::Copied(_)) = answer {
            self.tally.copies.record(began.elapsed());
        }
        if matches!(answer, Err(StoreError::Throttled { .. })) {
            self.tally.throttled();
            slot.throttled();
        } else {
            slot.served();
        }
        let outcome = answer.map_or_else(sort, Try::Answered);
        if let Try::Again(error) = &outcome {
            trace::event("tried in vain", attribute::ERROR, || error.code().into());
        } else {
            self.health.up(Dependency::Objects);
        }
        if let Try::Answered(Event::Copied(_) | Event::Compared(Destination::Same(_))) = outcome {
            self.outages.went_well(route);
        }
        outcome
    }

    async fn ask(&self, call: Call, route: &Route) -> Result<Event, StoreError> {
        if let Call::Compare = call {
            return self.store.compare(route).await.map(Event::Compared);
        }
        let copied = match self.store.copy(route).await {
            Err(StoreError::TooLarge) => self.store.copy_in_parts(route).await,
            other => other,
        };
        match copied {
            Err(StoreError::DestinationExists) => Ok(Event::DestinationTaken),
            other => other.map(Event::Copied),
        }
    }

    /// Whose trouble an error is. An outage is told, and what is in hand waits for its turn.
    async fn verdict(
        &self,
        error: &StoreError,
        route: &Route,
        sent: Instant,
        is_probe: bool,
    ) -> Verdict {
        // What looks systemic is asked about at once, what looks like one object's trouble after a streak.
        let is_urgent = is_probe || matches!(error, StoreError::Systemic { .. });
        let store = &*self.store;
        let verdict = self.outages.verdict(store, route, sent, is_urgent).await;
        match verdict {
            Verdict::Everybodys => self.health.down(Dependency::Objects, &advice(error)),
            Verdict::Own => self.health.up(Dependency::Objects),
            Verdict::Unknown => {}
        }
        verdict
    }

    /// Before any copy went well there is no witness, and a few broken objects look like an outage. They
    /// must not keep the others from being received for ever, so each is given back in the end.
    fn is_worn_out(&self, error: &StoreError, probes: u32) -> bool {
        let may_pass = matches!(error, StoreError::Transient { .. });
        may_pass && probes >= 3 * TRIES && !self.outages.has_witness()
    }
}

/// Errors that no further try changes, and all others.
fn sort(error: StoreError) -> Try {
    match error {
        StoreError::Permanent { code, message } => Try::Hopeless(Trouble {
            code,
            message,
            permanent: true,
        }),
        other => Try::Again(other),
    }
}

/// Not for good: a later delivery tries again, until the redrive policy takes the message.
fn given_up(error: &StoreError, tries: u32) -> Trouble {
    Trouble {
        code: error.code().to_owned(),
        message: format!("{error} (after {tries} tries)"),
        permanent: false,
    }
}

/// An outage's reason, with what to do about it.
fn advice(error: &StoreError) -> String {
    let advice = match error {
        StoreError::Denied { .. } => {
            "check the consumer's policy: s3:GetObject and s3:GetObjectTagging on the source, s3:PutObject and s3:PutObjectTagging on the destination, and the KMS keys of both"
        }
        StoreError::Systemic { code, .. } if code == "NoSuchBucket" => {
            "check SOURCE_BUCKET_NAME and DESTINATION_BUCKET_NAME"
        }
        StoreError::Systemic { .. } => "check the credentials and AWS_REGION",
        _ => "check S3's status and the network",
    };
    format!("{error}; {advice}")
}
