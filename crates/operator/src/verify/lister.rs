//! The objects of a page as listings show them: up to a thousand in one request, where they stand side by side.
//!
//! A listing only shortens the way. It is believed where it says that all is well, and what it lacks or shows
//! otherwise is asked for by a HEAD. Those of some stores show what is not there any more (Ceph, where an index outlives
//! its object): they are not believed unless the operator says so. Nothing is removed by a listing: clean asks for
//! each object.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};

use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::object_store::objects::{BucketSide, ObjectStat};
use bucket_brigade_common::object_store::s3::{ListedObjects, S3Store};
use futures::future::join;

use crate::retrying_store::{RequestSlots, retry_object_request};

/// What a listing must spare to be worth it: it costs as much as 12.5 HEADs. Source: Amazon S3 pricing.
const MIN_HEADS_SPARED: usize = 16;

pub(super) struct ObjectLister<'a> {
    store: &'a S3Store,
    slots: &'a RequestSlots,
    /// The sides that are listed: until that fails.
    is_listed: [AtomicBool; 2],
}

/// What listings show of the objects of a page, by side.
pub(super) type ListedPage = [ListedSide; 2];

pub(super) struct ListedSide {
    found: HashMap<String, ObjectStat>,
    /// The first key that no listing has reached.
    end: Option<String>,
}

impl ListedSide {
    pub(super) fn get(&self, key: &str) -> Option<&ObjectStat> {
        self.found.get(key)
    }

    pub(super) fn lacks(&self, key: &str) -> bool {
        let is_listed = self.end.as_deref().is_none_or(|end| key < end);
        is_listed && !self.found.contains_key(key)
    }
}

impl<'a> ObjectLister<'a> {
    pub(super) fn new(store: &'a S3Store, slots: &'a RequestSlots, believes: bool) -> Self {
        Self {
            store,
            slots,
            is_listed: [(); 2].map(|()| AtomicBool::new(believes)),
        }
    }

    /// Lists as far as the keys stand close enough.
    pub(super) async fn list(&self, objects: Vec<(BucketSide, String)>) -> ListedPage {
        let mut keys = [Vec::new(), Vec::new()];
        for (side, key) in objects {
            keys[side as usize].push(key);
        }
        let [source, destination] = keys;
        let source = self.list_side(BucketSide::Source, source);
        let destination = self.list_side(BucketSide::Destination, destination);
        join(source, destination).await.into()
    }

    async fn list_side(&self, side: BucketSide, mut keys: Vec<String>) -> ListedSide {
        keys.sort_unstable();
        keys.dedup();
        let (mut rest, mut found, mut requests) = (&keys[..], HashMap::new(), 0);
        while rest.len() > MIN_HEADS_SPARED && found.len() >= requests * MIN_HEADS_SPARED {
            let Some(listed) = self.list_after(side, &rest[0]).await else {
                break;
            };
            requests += 1;
            let last = listed.objects.last().filter(|_| listed.is_truncated);
            let end = last.map_or(rest.len(), |(last, _)| {
                rest.partition_point(|key| key <= last)
            });
            let (listed_keys, later) = rest.split_at(end);
            let objects = listed.objects.into_iter();
            found.extend(objects.filter(|(key, _)| listed_keys.binary_search(key).is_ok()));
            rest = later;
        }
        ListedSide {
            found,
            end: rest.first().cloned(),
        }
    }

    async fn list_after(&self, side: BucketSide, key: &str) -> Option<ListedObjects> {
        let is_listed = &self.is_listed[side as usize];
        if !is_listed.load(Ordering::Relaxed) {
            return None;
        }
        let list = async || match self.store.list_objects(side, key).await {
            Err(StoreError::Transient { code, message }) => {
                Err(StoreError::Suspect { code, message })
            }
            listed => listed,
        };
        // Boxed: the SDK's futures are large.
        let request = Box::pin(retry_object_request(list));
        let listed = self.slots.run(request).await;
        listed
            .inspect_err(|error| {
                if is_listed.swap(false, Ordering::Relaxed) {
                    tracing::info!(?side, %error, "no listings: each object is asked for");
                }
            })
            .ok()
    }
}
