//! Brings an object back that a row came to name in the moment of its removal: by a copy that overwrites nothing.

use bucket_brigade_common::ledger::PostgresLedger;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::s3::{MethodRequest, S3Store};
use bucket_brigade_common::object_store::{CopiedObject, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::preflight::PreflightError;
use tokio::sync::OnceCell;

use crate::context::CommandContext;
use crate::retrying_store::{self, retry_object_request};

pub(super) struct ObjectRestorer<'a> {
    pub(super) context: &'a CommandContext,
    pub(super) ledger: &'a PostgresLedger,
    pub(super) side: BucketSide,
    store: OnceCell<S3Store>,
}

impl<'a> ObjectRestorer<'a> {
    pub(super) fn new(
        context: &'a CommandContext,
        ledger: &'a PostgresLedger,
        side: BucketSide,
    ) -> Self {
        Self {
            context,
            ledger,
            side,
            store: OnceCell::new(),
        }
    }

    /// Copies it back from the other side.
    ///
    /// # Errors
    /// [`StoreError::DestinationExists`] where something stands there again.
    pub(super) async fn restore(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let store = self.store.get_or_try_init(|| self.open()).await;
        let store = store.map_err(|error| StoreError::Permanent {
            code: "NotRestored".into(),
            message: error.to_string(),
        })?;
        let route = match self.side {
            BucketSide::Destination => route.clone(),
            BucketSide::Source => reverse_route(route),
        };
        retry_object_request(async || Box::pin(store.copy_whole(&route)).await).await
    }

    /// How it can be copied is found out when the first one is.
    async fn open(&self) -> Result<S3Store, PreflightError> {
        if self.side == BucketSide::Destination {
            return retrying_store::open_for_copies(self.context, self.ledger).await;
        }
        let options = self.ledger.options();
        let (source, destination) = self.context.buckets(options).await?;
        let stores = self.context.migration.stores.reversed();
        let request = MethodRequest {
            options,
            stores: &stores,
            conditional_copy: None,
            prefix: self.ledger.rule().source_key_prefix(),
            source_prefix: self.ledger.rule().destination_key_prefix(),
        };
        request.open(destination, source).await
    }
}

fn reverse_route(route: &MoveRoute) -> MoveRoute {
    MoveRoute {
        old_path: route.new_path.clone(),
        new_path: route.old_path.clone(),
        source_key: route.destination_key.clone(),
        destination_key: route.source_key.clone(),
    }
}
