//! Removes what is marked, a thousand at a time.

use std::collections::HashSet;

use bucket_brigade_common::ledger::{Ending, FeederLock, Ledger, Namer, Removal};
use bucket_brigade_common::object_store::StoreError;
use bucket_brigade_common::objects::{Doomed, Fate, Inspect, REMOVAL_BATCH, Remove, Side, Stat};
use bucket_brigade_common::path_rule::{PathRule, Route};
use bucket_brigade_common::s3::S3Store;
use futures::{StreamExt, TryStreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::tell::Tally;
use super::{Scope, Surroundings};
use crate::command::alone::{self, Fleet};
use crate::command::gauge::Gauge;
use crate::command::listing::Listing;
use crate::command::store::{IN_FLIGHT, insist, is_about_one, remove};

const NAMED: &str = "a row names it";
const CHANGED: &str = "it is not the object that was verified any more";
const NOT_ASKED_FOR: &str =
    "an earlier clean was cut off before it went, and this one does not ask for it";
const UNSAVED: &str = "A ROW NAMES IT, IT IS GONE, AND IT COULD NOT BE BROUGHT BACK";

/// Removes what is marked.
pub(super) struct Cleaner<'a> {
    pub(super) ledger: &'a Ledger,
    store: &'a S3Store,
    rule: &'a PathRule,
    pub(super) scope: Scope,
    pub(super) bucket: &'a str,
    namers: Vec<Namer>,
    total: u64,
    pub(super) listing: Option<Listing<std::io::Stdout>>,
    pub(super) tally: Tally,
}

/// What became of some objects.
type Endings = Vec<(Removal, Ending)>;

/// An object that is gone, with the delete marker that hides it.
type Gone = (Removal, Option<String>);

/// What the looks say of an object.
enum Looked {
    /// As recorded: it may go.
    Fit,
    /// Not there.
    Gone,
    /// Left alone, and why.
    Unfit(String),
}

impl<'a> Cleaner<'a> {
    pub(super) fn new(around: &'a Surroundings<'a>) -> anyhow::Result<Self> {
        let format = around.context.format;
        Ok(Self {
            ledger: around.ledger,
            store: around.store,
            rule: &around.context.migration.run.rule,
            scope: around.scope,
            bucket: &around.bucket,
            namers: Vec::new(),
            total: u64::try_from(around.eligible.objects).unwrap_or(0),
            listing: Some(Listing::begin(format, "objects")?),
            tally: Tally::default(),
        })
    }

    /// Goes on to the end; false when it was stopped before.
    ///
    /// # Errors
    /// The store or the database does not answer, or a lock is lost.
    pub(super) async fn run(
        &mut self,
        mut lock: FeederLock,
        mut fleet: Option<Fleet>,
        stop: &CancellationToken,
    ) -> anyhow::Result<bool> {
        let mut gauge = Gauge::new("cleaning", self.total);
        let mut cursor: Option<String> = None;
        let size = i64::try_from(REMOVAL_BATCH)?;
        while !stop.is_cancelled() {
            alone::still(&mut lock).await?;
            if let Some(fleet) = &mut fleet {
                fleet.is_still().await?;
            }
            let orphans = self.scope.orphans;
            let page = self.ledger.removals(orphans, cursor.as_deref(), size);
            let page = page.await?;
            let Some(last) = page.last() else {
                gauge.clear();
                return Ok(true);
            };
            cursor = Some(last.path.clone());
            gauge.advance(page.len());
            self.batch(page).await?;
        }
        gauge.clear();
        Ok(false)
    }

    async fn batch(&mut self, page: Vec<Removal>) -> anyhow::Result<()> {
        let mut endings = Vec::new();
        // A feeder may have opened another run since the last batch.
        self.namers = self.ledger.namers(self.bucket).await?;
        // What an earlier clean may have removed is looked at in any case: a row may have come to name it.
        let (cut_off, page): (Vec<_>, Vec<_>) =
            page.into_iter().partition(|removal| removal.is_in_removal);
        // A first question to the rows spares the looks at objects that are named anyway.
        let mut candidates = self.unnamed(page, &mut endings).await?;
        candidates.extend(cut_off);
        let (fit, mut gone) = self.look_at_all(candidates, &mut endings).await?;
        let paths: Vec<&str> = fit.iter().map(|removal| removal.path.as_str()).collect();
        self.ledger.removing(self.scope.orphans, &paths).await?;
        let fit = self.unnamed(fit, &mut endings).await?;
        gone.extend(self.remove(fit, &mut endings).await?);
        let unsaved = self.bring_back_named(gone, &mut endings).await?;
        endings.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
        self.ledger
            .end_removals(self.scope.orphans, &endings)
            .await?;
        self.tell_endings(&endings)?;
        // These stay in removal, so that the next clean tries again to bring them back.
        self.tell_endings(&unsaved)
    }

    /// Those that no row names.
    async fn unnamed(
        &self,
        removals: Vec<Removal>,
        endings: &mut Endings,
    ) -> anyhow::Result<Vec<Removal>> {
        let named = self.named(removals.iter()).await?;
        let (named, unnamed): (Vec<_>, Vec<_>) = removals
            .into_iter()
            .partition(|removal| named.contains(&removal.object_key));
        let left = named.into_iter();
        endings.extend(left.map(|removal| (removal, Ending::Left(NAMED.into()))));
        Ok(unnamed)
    }

    async fn named(
        &self,
        removals: impl Iterator<Item = &Removal>,
    ) -> anyhow::Result<HashSet<String>> {
        let keys: Vec<&str> = removals
            .map(|removal| removal.object_key.as_str())
            .collect();
        Ok(self.ledger.named(&self.namers, &keys).await?)
    }

    /// Those that may go, and those that an earlier clean removed without living to tell.
    async fn look_at_all(
        &self,
        removals: Vec<Removal>,
        endings: &mut Endings,
    ) -> anyhow::Result<(Vec<Removal>, Vec<Gone>)> {
        let looks = removals.into_iter().map(|removal| async {
            let looked = self.look_at(&removal).await?;
            Ok::<_, StoreError>((removal, looked))
        });
        let looked: Vec<(Removal, Looked)> = stream::iter(looks)
            .buffered(IN_FLIGHT)
            .try_collect()
            .await?;
        let (mut fit, mut gone) = (Vec::new(), Vec::new());
        for (removal, looked) in looked {
            match looked {
                Looked::Fit => fit.push(removal),
                Looked::Gone if removal.is_in_removal || self.scope.orphans => {
                    gone.push((removal, None));
                }
                Looked::Gone => {
                    let reason = "somebody else has removed it".into();
                    endings.push((removal, Ending::Left(reason)));
                }
                Looked::Unfit(reason) => endings.push((removal, Ending::Left(reason))),
            }
        }
        Ok((fit, gone))
    }

    async fn look_at(&self, removal: &Removal) -> Result<Looked, StoreError> {
        match self.measure(removal).await {
            Err(error) if is_about_one(&error) => Ok(Looked::Unfit(error.to_string())),
            other => other,
        }
    }

    async fn measure(&self, removal: &Removal) -> Result<Looked, StoreError> {
        let Some(object) = self.stat(self.side(), &removal.object_key).await? else {
            return Ok(Looked::Gone);
        };
        if object.etag != removal.etag {
            return Ok(Looked::Unfit(CHANGED.into()));
        }
        if !removal.is_marked {
            return Ok(Looked::Unfit(NOT_ASKED_FOR.into()));
        }
        let Some(copy_etag) = &removal.copy_etag else {
            return Ok(Looked::Fit);
        };
        let Some(route) = self.route(removal) else {
            return Ok(Looked::Unfit("its path is outside the path rule".into()));
        };
        let copy = self.stat(Side::Destination, &route.destination_key).await?;
        Ok(match copy {
            None => Looked::Unfit("its copy does not exist any more".into()),
            Some(copy) if copy.etag != *copy_etag => {
                Looked::Unfit("the application has replaced its copy".into())
            }
            Some(_) => Looked::Fit,
        })
    }

    /// Removes them; those that are gone, with the delete marker that hides each.
    async fn remove(&self, fit: Vec<Removal>, endings: &mut Endings) -> anyhow::Result<Vec<Gone>> {
        if fit.is_empty() {
            return Ok(Vec::new());
        }
        let doomed: Vec<Doomed> = fit.iter().map(doomed).collect();
        let fates = remove(self.store, self.side(), &doomed).await?;
        let mut gone = Vec::new();
        for (removal, fate) in fit.into_iter().zip(fates) {
            match self.settle(&removal, fate).await? {
                Ending::Removed(marker) => gone.push((removal, marker)),
                left @ Ending::Left(_) => endings.push((removal, left)),
            }
        }
        Ok(gone)
    }

    /// After a request that was sent twice, or an answer that was lost, only a look tells.
    async fn settle(&self, removal: &Removal, fate: Fate) -> anyhow::Result<Ending> {
        let reason = match fate {
            Fate::Removed { delete_marker } => return Ok(Ending::Removed(delete_marker)),
            Fate::Changed => CHANGED.to_owned(),
            Fate::Refused(error) => error.to_string(),
        };
        Ok(match self.stat(self.side(), &removal.object_key).await? {
            None => Ending::Removed(None),
            Some(_) => Ending::Left(reason),
        })
    }

    /// A row that came to name an object between the last question and its removal gets it back. Returns
    /// those for which that failed.
    async fn bring_back_named(
        &mut self,
        gone: Vec<Gone>,
        endings: &mut Endings,
    ) -> anyhow::Result<Endings> {
        let named = self.named(gone.iter().map(|(removal, _)| removal)).await?;
        let mut unsaved = Vec::new();
        for (removal, marker) in gone {
            if !named.contains(&removal.object_key) {
                endings.push((removal, Ending::Removed(marker)));
                continue;
            }
            match self.bring_back(&removal).await {
                Ok(reason) => endings.push((removal, Ending::Left(reason))),
                Err(why) => {
                    let reason = self.unsaved(&removal, &why);
                    unsaved.push((removal, Ending::Left(reason)));
                }
            }
        }
        Ok(unsaved)
    }

    /// How it came back, or why it did not.
    async fn bring_back(&self, removal: &Removal) -> Result<String, String> {
        let route = self.route(removal).ok_or("no route leads there")?;
        match insist(async || self.store.bring_back(self.side(), &route).await).await {
            Ok(_) => Ok(format!("{NAMED} since a moment ago: brought back")),
            Err(StoreError::DestinationExists) => Ok(format!(
                "{NAMED} since a moment ago, and something stands there again"
            )),
            Err(error) => Err(error.to_string()),
        }
    }

    fn unsaved(&mut self, removal: &Removal, why: &str) -> String {
        self.tally.unsaved += 1;
        tracing::error!(
            key = removal.object_key,
            path = removal.path,
            "{UNSAVED}: {why}"
        );
        format!("{UNSAVED}: {why}")
    }

    fn route(&self, removal: &Removal) -> Option<Route> {
        if self.scope.orphans {
            self.rule.route(&self.rule.old_path(&removal.path)?).ok()
        } else {
            self.rule.route(&removal.path).ok()
        }
    }

    fn side(&self) -> Side {
        if self.scope.orphans {
            Side::Destination
        } else {
            Side::Source
        }
    }

    async fn stat(&self, side: Side, key: &str) -> Result<Option<Stat>, StoreError> {
        insist(async || self.store.stat(side, key).await).await
    }
}

fn doomed(removal: &Removal) -> Doomed {
    Doomed {
        key: removal.object_key.clone(),
        etag: removal.etag.clone(),
    }
}
