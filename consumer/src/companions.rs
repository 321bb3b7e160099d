//! Companions: copied when their image's copy is proven, before its row is set, by the same rules. The row of an
//! image whose companion cannot be copied stays as it is.

use bucket_brigade_common::companions::{Companion, CompanionCopies};
use bucket_brigade_common::object_store::{CopiedObject, DestinationState};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::throttle::CopySubject;
use futures::future::try_join_all;

use crate::copy::Copier;
use crate::protocol::{Event, FailureCause, NO_SUCH_KEY};

/// How often what stood at the destination may vanish before the look at it.
const MAX_CALLS: u32 = 8;

/// A companion's pattern and the ETag of its copy; none where there is no such object.
type CopiedCompanion<'a> = Option<(&'a str, String)>;

impl Copier {
    /// Copies the companions of an image, all that exist. A commit that is tried again asks for them again.
    ///
    /// # Errors
    /// What came of the image instead.
    pub async fn copy_companions(
        &self,
        image: &MoveRoute,
        copied: &CopiedObject,
    ) -> Result<CompanionCopies, Event> {
        if self.rule.companions().is_empty() {
            return Ok(CompanionCopies::new());
        }
        // Boxed, so that it makes no room in the future of an image without companions.
        Box::pin(self.copy_all(image, copied.is_source_gone)).await
    }

    async fn copy_all(
        &self,
        image: &MoveRoute,
        is_source_gone: bool,
    ) -> Result<CompanionCopies, Event> {
        let companions = self.rule.companions_of(image);
        let copies = companions.iter().map(async |companion| {
            let copy = self.copy_companion(companion, is_source_gone).await;
            copy.map_err(|event| name_companion(event, companion))
        });
        let copies = try_join_all(copies).await?.into_iter().flatten();
        Ok(copies
            .map(|(pattern, etag)| (pattern.to_owned(), etag))
            .collect())
    }

    async fn copy_companion<'a>(
        &self,
        companion: &Companion<'a>,
        is_source_gone: bool,
    ) -> Result<CopiedCompanion<'a>, Event> {
        let route = &companion.route;
        let ours = |copy: CopiedObject| Some((companion.pattern, copy.etag));
        // After clean the earlier copies stand without their sources.
        let mut event = if is_source_gone {
            self.compare(route, CopySubject::Companion).await
        } else {
            self.copy(route, CopySubject::Companion).await
        };
        for _ in 0..MAX_CALLS {
            event = match event {
                Event::Copied(copy) | Event::Compared(DestinationState::Same(copy)) => {
                    return Ok(ours(copy));
                }
                Event::Compared(DestinationState::WithoutSource(copy)) => {
                    // The application may have put there what it never had in the old bucket.
                    return Ok(Some(copy).filter(|_| is_source_gone).and_then(ours));
                }
                Event::CopyFailed(cause) if cause.code == NO_SUCH_KEY => {
                    return missing(companion);
                }
                Event::Compared(DestinationState::Empty) if is_source_gone => {
                    return missing(companion);
                }
                Event::Compared(DestinationState::Empty) => {
                    self.copy(route, CopySubject::Companion).await
                }
                Event::Compared(DestinationState::Different(difference)) => {
                    let key = &route.destination_key;
                    let conflict = FailureCause::destination_conflict(key, &difference);
                    return Err(Event::CopyFailed(conflict));
                }
                Event::DestinationExists => self.compare(route, CopySubject::Companion).await,
                other => return Err(other),
            };
        }
        Err(Event::CopyFailed(FailureCause::destination_vanished()))
    }
}

fn missing<'a>(companion: &Companion<'a>) -> Result<CopiedCompanion<'a>, Event> {
    if !companion.is_required {
        return Ok(None);
    }
    let pattern = companion.pattern;
    let message = format!("there is no such object, and '!{pattern}' wants it");
    let cause = FailureCause::new("CompanionMissing", message, true);
    Err(Event::CopyFailed(cause))
}

fn name_companion(event: Event, companion: &Companion<'_>) -> Event {
    match event {
        Event::CopyFailed(cause) => {
            let key = &companion.route.source_key;
            let message = format!("its companion '{key}': {}", cause.message);
            Event::CopyFailed(FailureCause { message, ..cause })
        }
        other => other,
    }
}
