//! The companions of images that are gone: they go too, by the same gates. They are not in the ledger: until all of
//! them are done their image counts as in removal, so that the next clean goes on after a kill.

use std::collections::HashSet;

use bucket_brigade_common::companions::Companion;
use bucket_brigade_common::object_store::objects::{BucketSide, RemovalDeadline};
use bucket_brigade_common::object_store::{DestinationState, ObjectStore, StoreError};

use super::batch::{ObjectCleaner, RemovedObject};
use super::removals::{ObjectRemoval, RemovalOutcome, RemovalOutcomes};
use crate::retrying_store::{is_object_error, retry_object_request, stat_object};

pub(super) const SHARED_REASON: &str = "it may belong to another image too";
const NO_COPY_REASON: &str = "it is a companion without a copy";
const NO_SOURCE_REASON: &str = "it is a companion without a source, perhaps not our copy";

/// What is to become of a companion; none where there is none.
type CompanionVerdict = Option<(ObjectRemoval, Option<String>)>;

impl ObjectCleaner<'_> {
    /// Removes the companions of the images that are gone. The next clean sees an image of whose companions a request
    /// may still be under way. After a failure, which is returned with them, the images that are gone are taken out.
    pub(super) async fn remove_companions(
        &self,
        images: &mut RemovalOutcomes,
        deadline: RemovalDeadline,
    ) -> anyhow::Result<(RemovalOutcomes, Option<(RemovalOutcomes, anyhow::Error)>)> {
        let mut outcomes = Vec::new();
        if self.pass.removals.ledger.rule().companions().is_empty() {
            return Ok((outcomes, None));
        }
        let gone = images
            .iter()
            .filter(|(_, outcome)| outcome.kept_because().is_none());
        let gone: Vec<&ObjectRemoval> = gone.map(|(removal, _)| removal).collect();
        let (companions, unreadable) = match self.classify_companions(&gone).await {
            Ok(companions) => (companions, None),
            Err(error) => (Vec::new(), Some(error.into())),
        };
        let mut removable = Vec::new();
        for (removal, kept_because) in companions {
            match kept_because {
                None => removable.push(removal),
                Some(reason) => outcomes.push((removal, RemovalOutcome::Kept(reason))),
            }
        }
        let removed = self.remove_unreferenced(removable, Vec::new(), deadline, &mut outcomes);
        let (unsaved, refused) = removed.await?;
        outcomes.extend(unsaved);
        let alive = outcomes.iter();
        let alive = alive.filter(|(companion, _)| companion.is_request_alive);
        let alive: HashSet<&str> = alive.map(|(one, _)| one.path.as_str()).collect();
        if let Some(failure) = unreadable.or(refused) {
            let is_gone = |(_, outcome): &mut RemovedObject| outcome.kept_because().is_none();
            return Ok((
                outcomes,
                Some((images.extract_if(.., is_gone).collect(), failure)),
            ));
        }
        for (image, outcome) in images {
            if alive.contains(image.path.as_str()) && outcome.kept_because().is_none() {
                image.is_request_alive = true;
                *outcome = RemovalOutcome::once_gone(true, outcome.delete_marker().map(Into::into));
            }
        }
        Ok((outcomes, None))
    }

    async fn classify_companions(
        &self,
        images: &[&ObjectRemoval],
    ) -> Result<Vec<(ObjectRemoval, Option<String>)>, StoreError> {
        let rule = self.pass.removals.ledger.rule();
        let mut checks = Vec::new();
        for image in images {
            let Some(route) = self.pass.removals.route_of(image) else {
                continue;
            };
            for companion in rule.companions_of(&route) {
                checks.push(async move { self.classify_companion(image, &companion).await });
            }
        }
        let verdicts = self.pass.slots.run_all(checks.into_iter()).await?;
        Ok(verdicts.into_iter().flatten().collect())
    }

    async fn classify_companion(
        &self,
        image: &ObjectRemoval,
        companion: &Companion<'_>,
    ) -> Result<CompanionVerdict, StoreError> {
        let (side, route) = (self.pass.removals.side(), &companion.route);
        let key = match side {
            BucketSide::Source => &route.source_key,
            BucketSide::Destination => &route.destination_key,
        };
        let mut removal = ObjectRemoval {
            object_key: key.clone(),
            etag: String::new(),
            copy_etag: None,
            size_bytes: None,
            companion: Some(companion.pattern.to_owned()),
            is_request_alive: false,
            ..image.clone()
        };
        match stat_object(self.pass.store, side, key).await {
            Ok(None) => return Ok(None),
            Ok(Some(object)) => {
                removal.size_bytes = Some(object.size_bytes);
                removal.etag = object.etag;
            }
            Err(error) => return kept_by(removal, error),
        }
        if !companion.is_own {
            return Ok(Some((removal, Some(SHARED_REASON.into()))));
        }
        // No ETag on record is needed: whatever goes is there once more.
        let compared = retry_object_request(async || self.pass.store.compare_objects(route).await);
        let kept_because = match compared.await {
            Ok(DestinationState::Same(_)) => None,
            Ok(DestinationState::Different(difference)) => Some(format!(
                "it is a companion whose copy is another: {difference}"
            )),
            Ok(DestinationState::Empty) => Some(NO_COPY_REASON.to_owned()),
            Ok(DestinationState::WithoutSource(_)) => Some(NO_SOURCE_REASON.to_owned()),
            Err(error) => return kept_by(removal, error),
        };
        Ok(Some((removal, kept_because)))
    }
}

fn kept_by(removal: ObjectRemoval, error: StoreError) -> Result<CompanionVerdict, StoreError> {
    if is_object_error(&error) {
        Ok(Some((removal, Some(error.to_string()))))
    } else {
        Err(error)
    }
}
