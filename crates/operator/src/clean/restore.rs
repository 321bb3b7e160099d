//! Brings an object back that a row came to name in the moment of its removal: by a copy that overwrites nothing.

use bucket_brigade_common::ledger::RunOptions;
use bucket_brigade_common::object_store::objects::BucketSide;
use bucket_brigade_common::object_store::s3::{MethodRequest, S3Store};
use bucket_brigade_common::object_store::{CopiedObject, StoreError};
use bucket_brigade_common::path_rule::MoveRoute;
use bucket_brigade_common::preflight::PreflightError;
use bucket_brigade_common::retry::TransientError;
use tokio::sync::OnceCell;

use super::removals::{ObjectRemoval, RemovalLedger};
use crate::context::CommandContext;
use crate::retrying_store::{self, is_object_error, retry_object_request};

/// How many copies are tried before none counts as readable.
const READ_COPIES: usize = 3;

pub(super) struct ObjectRestorer<'a> {
    context: &'a CommandContext,
    removals: RemovalLedger<'a>,
    store: OnceCell<S3Store>,
    has_read_copy: OnceCell<()>,
}

impl<'a> ObjectRestorer<'a> {
    pub(super) fn new(context: &'a CommandContext, removals: RemovalLedger<'a>) -> Self {
        Self {
            context,
            removals,
            store: OnceCell::new(),
            has_read_copy: OnceCell::new(),
        }
    }

    /// Copies it back from the other side; [`StoreError::DestinationExists`] where something stands there again.
    pub(super) async fn restore(&self, route: &MoveRoute) -> Result<CopiedObject, StoreError> {
        let store = self.open_once().await?;
        let route = self.way_back(route);
        retry_object_request(async || Box::pin(store.copy_whole(&route)).await).await
    }

    /// Before anything is removed: the bucket must take what is brought back.
    pub(super) async fn prepare(&self) -> Result<(), PreflightError> {
        self.store.get_or_try_init(|| self.open()).await.map(drop)
    }

    /// Before the first source is removed: its copy's bytes, or those of another of the first ones, can be read, which
    /// takes a right, and perhaps a key.
    pub(super) async fn check_copies(&self, removals: &[ObjectRemoval]) -> Result<(), StoreError> {
        let with_copy = removals.iter().filter(|one| one.copy_etag.is_some());
        let routes: Vec<MoveRoute> = with_copy
            .take(READ_COPIES)
            .filter_map(|one| self.removals.route_of(one))
            .map(|route| self.way_back(&route))
            .collect();
        if routes.is_empty() {
            return Ok(());
        }
        let read = self
            .has_read_copy
            .get_or_try_init(|| self.read_any(&routes));
        read.await.map(drop)
    }

    async fn read_any(&self, routes: &[MoveRoute]) -> Result<(), StoreError> {
        let store = self.open_once().await?;
        let mut refused = Ok(());
        for route in routes {
            match retry_object_request(async || store.check_source_readable(route).await).await {
                Err(error) if is_object_error(&error) => refused = Err(error),
                read => return read,
            }
        }
        refused
    }

    async fn open_once(&self) -> Result<&S3Store, StoreError> {
        let store = self.store.get_or_try_init(|| self.open()).await;
        store.map_err(|error| StoreError::permanent("NotRestored", error.to_string()))
    }

    fn way_back(&self, route: &MoveRoute) -> MoveRoute {
        let mut route = route.clone();
        if self.removals.side() == BucketSide::Source {
            std::mem::swap(&mut route.old_path, &mut route.new_path);
            std::mem::swap(&mut route.source_key, &mut route.destination_key);
        }
        route
    }

    async fn open(&self) -> Result<S3Store, PreflightError> {
        let ledger = self.removals.ledger;
        if self.removals.orphans {
            return retrying_store::open_for_copies(self.context, ledger).await;
        }
        let ways = ledger.options().of_way_back();
        let refusal = match self.open_reversed(&ways[0]).await {
            Err(error) if !error.is_transient() => error,
            opened => return opened,
        };
        for options in &ways[1..] {
            tracing::debug!(%refusal, "what comes back is tried in another way");
            match self.open_reversed(options).await {
                Err(error) if !error.is_transient() => {}
                opened => {
                    if opened.is_ok() && options.copy_acl != ways[0].copy_acl {
                        tracing::warn!(
                            "what a row names again by then would come back without COPY_ACL"
                        );
                    }
                    return opened;
                }
            }
        }
        // What was only tried is not set, and says nothing.
        Err(refusal)
    }

    async fn open_reversed(&self, options: &RunOptions) -> Result<S3Store, PreflightError> {
        let rule = self.removals.ledger.rule();
        let (source, destination) = self.context.buckets(options).await?;
        let stores = self.context.migration.stores.reversed();
        let request = MethodRequest {
            options,
            stores: &stores,
            conditional_copy: source.is_aws().then_some(true),
            prefix: rule.source_key_prefix(),
            source_prefix: rule.destination_key_prefix(),
            is_way_back: true,
        };
        request.open(destination, source).await
    }
}
