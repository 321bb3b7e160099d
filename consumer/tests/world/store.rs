//! The two buckets of the world.

use async_trait::async_trait;
use bucket_brigade_common::object_store::{Copied, Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::Route;

use super::{Fault, World};

#[async_trait]
impl ObjectStore for World {
    async fn copy(&self, route: &Route) -> Result<Copied, StoreError> {
        let fate = self.fate().await;
        let transient = || StoreError::Transient {
            code: "Fault".into(),
            message: String::new(),
        };
        if fate == Fault::Before {
            let is_throttled = self.dice.lock().unwrap().bool();
            let throttled = StoreError::Throttled {
                code: "SlowDown".into(),
            };
            return Err(if is_throttled { throttled } else { transient() });
        }
        let mut state = self.lock();
        let Some(bytes) = state.source.get(&route.source_key).cloned() else {
            let code = "NoSuchKey".into();
            return Err(StoreError::Permanent {
                code,
                message: String::new(),
            });
        };
        if state.destination.contains_key(&route.destination_key) {
            return Err(StoreError::DestinationExists);
        }
        state
            .destination
            .insert(route.destination_key.clone(), bytes.clone());
        match fate {
            Fault::After => Err(transient()),
            _ => Ok(Copied {
                etag: bytes,
                size_bytes: None,
            }),
        }
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        self.copy(route).await
    }

    async fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        if self.fate().await == Fault::Before {
            let code = "Fault".into();
            return Err(StoreError::Transient {
                code,
                message: String::new(),
            });
        }
        let state = self.lock();
        let source = state.source.get(&route.source_key);
        Ok(match state.destination.get(&route.destination_key) {
            None => Destination::Empty,
            Some(bytes) if Some(bytes) == source => Destination::Same(Copied {
                etag: bytes.clone(),
                size_bytes: None,
            }),
            Some(_) => Destination::Different("bytes".into()),
        })
    }
}
