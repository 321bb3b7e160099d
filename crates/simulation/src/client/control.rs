//! Signs of life, and what an operator tells the fleet.

use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::catalog::CatalogError;
use bucket_brigade_common::control::{Beat, Control, Orders};

use super::Client;

#[async_trait]
impl Control for Client {
    async fn beat(&self, _beat: &Beat) -> Result<Orders, CatalogError> {
        self.statement("beat", |things| {
            things.operate();
            things.orders.clone()
        })
        .await
    }

    async fn leave(&self) -> Result<(), CatalogError> {
        self.statement("leave", |_| ()).await
    }

    async fn replica_lag(&self) -> Result<Option<Duration>, CatalogError> {
        self.statement("lag", |_| None).await
    }
}
