//! By which way the bytes go, and whether the store refuses to overwrite on the way: found out at the start, with
//! objects of a few bytes under keys that no image has.

use std::fmt;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{S3Bucket, S3Options, S3Store};
use crate::ledger::RunOptions;
use crate::object_store::StoreError;
use crate::preflight::{PreflightError, retry_transient};
use crate::settings::StoreSettings;

/// The window of a copy that is guarded by a look alone.
const UNCONDITIONAL_WINDOW: &str = "what the application writes there between the look (HEAD) and the moment when the copy takes effect, which may be minutes where a copy hangs, would be overwritten";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CopyMethod {
    /// The store copies.
    Server,
    /// The bytes go through this process.
    Stream,
}

impl fmt::Display for CopyMethod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Server => "server",
            Self::Stream => "stream",
        })
    }
}

/// What decides about the way.
#[derive(Debug, Clone, Copy)]
pub struct MethodRequest<'a> {
    pub options: &'a RunOptions,
    pub stores: &'a StoreSettings,
    /// `CONDITIONAL_COPY`: whether the store honours conditions; none to find out.
    pub conditional_copy: Option<bool>,
    /// What keys at the destination start with.
    pub prefix: &'a str,
    /// The same at the source.
    pub source_prefix: &'a str,
    /// Whether these copies bring back what was moved.
    pub is_way_back: bool,
}

impl MethodRequest<'_> {
    /// The store that copies from `source` to `destination`.
    ///
    /// # Errors
    /// A method that the two stores do not have, a store that supports no conditional write, unless that is
    /// accepted, and what the store says when it refuses to write at all.
    pub async fn open(
        &self,
        source: S3Bucket,
        destination: S3Bucket,
    ) -> Result<S3Store, PreflightError> {
        Box::pin(self.find_method(source, destination)).await
    }

    async fn find_method(
        &self,
        source: S3Bucket,
        destination: S3Bucket,
    ) -> Result<S3Store, PreflightError> {
        let methods = self.methods()?;
        let options = S3Options {
            method: methods[0],
            accept_unconditional: self.stores.accept_unconditional,
            conditional_copy: self.conditional_copy.unwrap_or(true),
            ..S3Options::of_run(self.options)
        };
        let mut store = S3Store::new(source, destination, options);
        if let Some(is_conditional) = self.conditional_copy {
            let is_aws = store.destination.copies.is_aws();
            store.options.conditional_complete = is_aws;
            if is_conditional && !is_aws {
                tracing::warn!(
                    method = %store.method(),
                    "CONDITIONAL_COPY=on: this store is not asked whether it honours If-None-Match; if it does not, {UNCONDITIONAL_WINDOW}"
                );
            }
            let check = async || {
                let check = store.check_upload(self.prefix, self.is_way_back);
                check.await.map(|()| true)
            };
            self.probe(&store, check).await?;
            store.ensure_source_readable(self.source_prefix).await?;
            return Ok(store);
        }
        for method in methods {
            let store = store.with_method(*method);
            if self
                .probe(&store, async || store.honours_condition(self.prefix).await)
                .await?
            {
                return self.finish(store).await;
            }
        }
        // What was refused may be the copy, and not the condition.
        let check = async || store.check_plain_copy(self.prefix).await.map(|()| true);
        self.probe(&store, check).await?;
        self.ensure_unconditional_accepted()?;
        tracing::warn!(
            "the store ignores If-None-Match: a HEAD goes before each copy; {UNCONDITIONAL_WINDOW}"
        );
        store.options.conditional_copy = false;
        store.ensure_source_readable(self.source_prefix).await?;
        Ok(store)
    }

    /// In the order in which they are tried.
    fn methods(&self) -> Result<&'static [CopyMethod], PreflightError> {
        match (
            self.options.copy_method.as_deref(),
            self.stores.is_one_store(),
        ) {
            (Some("stream"), _) | (None, false) => Ok(&[CopyMethod::Stream]),
            (None, true) => Ok(&[CopyMethod::Server, CopyMethod::Stream]),
            (_, true) => Ok(&[CopyMethod::Server]),
            (_, false) => Err(PreflightError::invalid(
                "COPY_METHOD",
                "source and destination have different endpoints or profiles, and no store copies from another: leave it out, or stream",
            )),
        }
    }

    async fn finish(&self, mut store: S3Store) -> Result<S3Store, PreflightError> {
        if store.options.method == CopyMethod::Stream {
            let honours = async || {
                let honours = store.honours_conditional_complete(self.prefix);
                Box::pin(honours).await
            };
            store.options.conditional_complete = self.probe(&store, honours).await?;
        }
        store.ensure_source_readable(self.source_prefix).await?;
        Ok(store)
    }

    async fn probe(
        &self,
        store: &S3Store,
        honours: impl AsyncFn() -> Result<bool, StoreError>,
    ) -> Result<bool, PreflightError> {
        let bucket = &store.destination;
        let named = (bucket.setting(), bucket.name());
        retry_transient(async || {
            let honours = honours().await;
            honours.map_err(|error| self.write_error(named, &error))
        })
        .await
    }

    fn ensure_unconditional_accepted(&self) -> Result<(), PreflightError> {
        if self.stores.accept_unconditional {
            return Ok(());
        }
        let method = self.options.copy_method.as_deref();
        let (setting, ignored_on, remedy) = match method {
            _ if self.is_way_back => (
                "ACCEPT_UNCONDITIONAL",
                "what brings images back",
                "ACCEPT_UNCONDITIONAL=yes works all the same",
            ),
            // Ceph honours it on uploads.
            Some("server") => (
                "COPY_METHOD",
                "copies",
                "It may honour it on uploads: COPY_METHOD=auto or stream (with feeder --new-run, where a run has begun)",
            ),
            Some(_) if self.stores.is_one_store() => (
                "COPY_METHOD",
                "uploads",
                "It may honour it on copies: COPY_METHOD=auto (with feeder --new-run, where a run has begun)",
            ),
            _ => (
                "ACCEPT_UNCONDITIONAL",
                if self.stores.is_one_store() {
                    "copies and on uploads"
                } else {
                    "uploads"
                },
                "ACCEPT_UNCONDITIONAL=yes works all the same",
            ),
        };
        let problem = format!(
            "the store ignores If-None-Match on {ignored_on}. {UNCONDITIONAL_WINDOW}. {remedy}"
        );
        Err(PreflightError::invalid(setting, problem))
    }

    fn write_error(
        &self,
        (setting, bucket): (&'static str, &str),
        error: &StoreError,
    ) -> PreflightError {
        let problem = format!("cannot write to bucket '{bucket}': {error}");
        match (error, self.options.copy_attributes()) {
            (StoreError::Throttled { .. } | StoreError::Transient { .. }, _) => {
                PreflightError::unreachable(setting, problem)
            }
            (StoreError::Suspect { code, .. }, _) if code == "InvalidStorageClass" => {
                PreflightError::invalid("STORAGE_CLASS", problem)
            }
            (StoreError::Suspect { code, .. }, _) if code == "AccessControlListNotSupported" => {
                PreflightError::invalid(
                    "COPY_ACL",
                    format!(
                        "bucket '{bucket}' has its ACLs disabled: leave COPY_ACL out and open the bucket by a policy, or enable ACLs (Object Ownership)"
                    ),
                )
            }
            (StoreError::Suspect { .. }, Some((setting, given))) => {
                let problem = format!("{problem}; the store may not support {given}");
                PreflightError::invalid(setting, problem)
            }
            _ => PreflightError::denied(setting, problem),
        }
    }
}

impl S3Store {
    pub fn method(&self) -> CopyMethod {
        self.options.method
    }

    /// The requests to the store for one copy of an object without tags.
    pub fn requests_per_copy(&self) -> Vec<&'static str> {
        let options = &self.options;
        let is_streamed = options.method == CopyMethod::Stream;
        let reads_class = options.attributes.keeps_storage_class && !is_streamed;
        let heads = usize::from(reads_class) + usize::from(!options.conditional_copy);
        let mut requests = vec!["HeadObject"; heads];
        if options.attributes.keeps_acl {
            requests.push("GetObjectAcl");
        }
        if is_streamed && !self.source.habits.counts_tags.load(Ordering::Relaxed) {
            requests.push("GetObjectTagging");
        }
        requests.extend(if is_streamed {
            &["GetObject", "PutObject"][..]
        } else {
            &["CopyObject"]
        });
        requests
    }

    /// Whether the store itself refuses to overwrite.
    pub fn is_conditional(&self) -> bool {
        self.options.conditional_copy
    }

    fn with_method(&self, method: CopyMethod) -> Self {
        let mut store = self.clone();
        store.options.method = method;
        store
    }

    /// Whether the bucket takes the copies' ACL; `all`: whether it takes copies. A begun upload leaves no object, which
    /// may not be removed.
    async fn check_upload(&self, prefix: &str, all: bool) -> Result<(), StoreError> {
        let attributes = self.options.attributes.for_probe();
        let headers: Vec<_> = attributes.headers().collect();
        if !all && !headers.iter().any(|(name, _)| name == "x-amz-acl") {
            return Ok(());
        }
        let (bucket, probe) = (&self.destination, self.copy_probe(prefix));
        let upload = bucket.create_upload(&probe.key, headers).await?;
        drop(bucket.abort_upload(&probe.key, &upload).await);
        Ok(())
    }

    /// What may not be asked for would be missing at the copies.
    async fn ensure_source_readable(&self, prefix: &str) -> Result<(), PreflightError> {
        let missing = self.copy_probe(prefix).key;
        let is_streamed = self.options.method == CopyMethod::Stream;
        if is_streamed && let Err(error) = self.source.read_tags(&missing).await {
            self.check_denial(&error, "s3:GetObjectTagging")?;
        }
        if self.options.attributes.keeps_acl
            && let Err(error) = self.source.is_public(&missing).await
        {
            self.check_denial(&error, "s3:GetObjectAcl")?;
        }
        Ok(())
    }

    fn check_denial(&self, error: &StoreError, right: &str) -> Result<(), PreflightError> {
        if !matches!(error, StoreError::Denied { .. }) {
            return Ok(());
        }
        Err(PreflightError::AccessDenied {
            setting: "SOURCE_BUCKET_NAME",
            problem: format!(
                "bucket '{}' cannot be read as the copies need it ({right} is needed): {error}",
                self.source.name()
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::BucketStore;

    fn request<'a>(options: &'a RunOptions, stores: &'a StoreSettings) -> MethodRequest<'a> {
        MethodRequest {
            options,
            stores,
            conditional_copy: None,
            prefix: "",
            source_prefix: "",
            is_way_back: false,
        }
    }

    #[test]
    fn a_refusal_without_a_reason_names_what_is_set_of_the_copies() {
        let error = StoreError::Suspect {
            code: "InvalidArgument".into(),
            message: "HTTP status 400 without a message".into(),
        };
        let written = |options: &RunOptions| {
            let stores = StoreSettings::default();
            let refused = request(options, &stores)
                .write_error(("DESTINATION_BUCKET_NAME", "to-bucket"), &error);
            refused.to_string()
        };
        let mut options = RunOptions::default();
        let text = written(&options);
        assert!(text.starts_with("DESTINATION_BUCKET_NAME: "), "{text}");
        options.sse = Some("AES256".into());
        options.storage_class = Some("STANDARD_IA".into());
        let text = written(&options);
        assert!(text.starts_with("STORAGE_CLASS: "), "{text}");
        let given = "may not support STORAGE_CLASS=STANDARD_IA, SSE=AES256";
        assert!(text.ends_with(given), "{text}");
    }

    #[test]
    fn the_method_that_was_not_tried_comes_before_the_risk() {
        let of_two = StoreSettings {
            source: BucketStore {
                endpoint: Some("https://other".into()),
                ..BucketStore::default()
            },
            ..StoreSettings::default()
        };
        let of_one = StoreSettings::default();
        let unconditional = "ACCEPT_UNCONDITIONAL=yes works all the same";
        for (method, stores, ignored_on, remedy) in [
            (
                Some("server"),
                &of_one,
                "on copies.",
                "COPY_METHOD=auto or stream",
            ),
            (Some("stream"), &of_one, "on uploads.", "COPY_METHOD=auto"),
            (Some("stream"), &of_two, "on uploads.", unconditional),
            (None, &of_two, "on uploads.", unconditional),
            (None, &of_one, "on copies and on uploads.", unconditional),
        ] {
            let options = RunOptions {
                copy_method: method.map(str::to_owned),
                ..RunOptions::default()
            };
            let refused = request(&options, stores).ensure_unconditional_accepted();
            let text = refused.unwrap_err().to_string();
            assert!(text.contains(ignored_on) && text.contains(remedy), "{text}");
            assert_eq!(
                text.contains(unconditional),
                remedy == unconditional,
                "{text}"
            );
        }
    }
}
