//! The credentials, kept until shortly before they expire.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::identity::Identity;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::aws::causes;

/// ECS and EC2 have new ones at least five minutes before the old ones expire.
/// Source: Amazon EC2 User Guide, "Retrieve security credentials from instance metadata".
const REFRESH_AHEAD: Duration = Duration::from_mins(5);

/// How long what the provider gave, or did not give, is left at that.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

/// How long the provider may take while the old ones are still valid.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// What does not say when it expires may still change, in a file or behind a command. As the SDK does.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(15);

/// Credentials, and when to ask for others.
#[derive(Debug)]
pub(super) struct CachedIdentity {
    pub(super) identity: Identity,
    refresh_at: SystemTime,
}

impl CachedIdentity {
    fn new(credentials: Credentials, now: SystemTime) -> Self {
        let ahead = credentials
            .expiry()
            .and_then(|at| at.checked_sub(REFRESH_AHEAD));
        Self {
            identity: credentials.into(),
            refresh_at: ahead.map_or(now + DEFAULT_LIFETIME, |at| at.max(now + REFRESH_INTERVAL)),
        }
    }

    fn is_valid(&self, now: SystemTime) -> bool {
        self.identity.expiration().is_none_or(|at| now < at)
    }

    fn is_fresh(&self, now: SystemTime) -> bool {
        now < self.refresh_at && self.is_valid(now)
    }
}

/// Asks the provider no more often than it must.
#[derive(Debug)]
pub(super) struct CredentialsCache {
    provider: SharedCredentialsProvider,
    cached: RwLock<Option<Arc<CachedIdentity>>>,
    refreshing: Mutex<()>,
}

impl CredentialsCache {
    pub(super) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            cached: RwLock::default(),
            refreshing: Mutex::default(),
        }
    }

    /// Credentials that are valid; when they are soon not any more, one caller asks for others.
    ///
    /// # Errors
    /// The provider's, when there are no valid ones to go on with.
    pub(super) async fn get(&self) -> Result<Arc<CachedIdentity>, CredentialsError> {
        let now = SystemTime::now();
        match self.cached() {
            Some(cached) if cached.is_fresh(now) => Ok(cached),
            Some(cached) if cached.is_valid(now) => match self.refreshing.try_lock() {
                Ok(_turn) => Ok(self.refresh_early(cached).await),
                Err(_) => Ok(cached),
            },
            _ => self.refresh_now().await,
        }
    }

    /// Forgets credentials that were refused, unless others have taken their place already.
    pub(super) fn forget(&self, refused: &Arc<CachedIdentity>) {
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        cached.take_if(|cached| Arc::ptr_eq(cached, refused));
    }

    async fn refresh_early(&self, old: Arc<CachedIdentity>) -> Arc<CachedIdentity> {
        let asked = timeout(REFRESH_TIMEOUT, self.provider.provide_credentials()).await;
        let asked =
            asked.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(REFRESH_TIMEOUT)));
        let now = SystemTime::now();
        self.store(match asked {
            Ok(credentials) => CachedIdentity::new(credentials, now),
            Err(error) => {
                tracing::warn!(
                    error = causes(&error),
                    "the credentials could not be refreshed; the old ones are still valid"
                );
                CachedIdentity {
                    identity: old.identity.clone(),
                    refresh_at: now + REFRESH_INTERVAL,
                }
            }
        })
    }

    async fn refresh_now(&self) -> Result<Arc<CachedIdentity>, CredentialsError> {
        let _turn = self.refreshing.lock().await;
        let now = SystemTime::now();
        if let Some(cached) = self.cached().filter(|cached| cached.is_fresh(now)) {
            return Ok(cached);
        }
        let credentials = self.provider.provide_credentials().await?;
        Ok(self.store(CachedIdentity::new(credentials, SystemTime::now())))
    }

    fn cached(&self) -> Option<Arc<CachedIdentity>> {
        self.cached
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn store(&self, identity: CachedIdentity) -> Arc<CachedIdentity> {
        let identity = Arc::new(identity);
        let mut cached = self.cached.write().unwrap_or_else(PoisonError::into_inner);
        *cached = Some(Arc::clone(&identity));
        identity
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use aws_credential_types::provider::future;
    use futures::future::join_all;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);
    const SOON: Duration = Duration::from_mins(1);

    /// Gives credentials of these lifetimes, one after the other; then none, or no answer.
    #[derive(Debug, Clone)]
    struct Provider {
        lifetimes: &'static [Duration],
        hangs: bool,
        asked: Arc<AtomicUsize>,
    }

    impl Provider {
        fn new(lifetimes: &'static [Duration]) -> Self {
            Self {
                lifetimes,
                hangs: false,
                asked: Arc::default(),
            }
        }

        fn cache(&self) -> CredentialsCache {
            CredentialsCache::new(SharedCredentialsProvider::new(self.clone()))
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }

        async fn give(&self) -> Result<Credentials, CredentialsError> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let Some(lifetime) = self.lifetimes.get(number) else {
                if self.hangs {
                    std::future::pending::<()>().await;
                }
                return Err(CredentialsError::provider_error("STS is throttled"));
            };
            let expiry = Some(SystemTime::now() + *lifetime);
            Ok(Credentials::new("AKID", "secret", None, expiry, "test"))
        }
    }

    impl ProvideCredentials for Provider {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            future::ProvideCredentials::new(self.give())
        }
    }

    #[tokio::test]
    async fn many_callers_ask_once() {
        let provider = Provider::new(&[HOUR]);
        let cache = provider.cache();
        for result in join_all((0..100).map(|_| cache.get())).await {
            result.unwrap();
        }
        assert_eq!(provider.asked(), 1);
    }

    #[tokio::test]
    async fn they_are_refreshed_before_they_expire() {
        let provider = Provider::new(&[SOON, HOUR]);
        let cache = provider.cache();
        let first = cache.get().await.unwrap();
        cache.expire_interval();
        let refreshed = cache.get().await.unwrap();
        assert!(refreshed.identity.expiration() > first.identity.expiration());
        assert_eq!(provider.asked(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refresh_that_fails_leaves_the_old_ones_in_use() {
        for hangs in [false, true] {
            let provider = Provider {
                hangs,
                ..Provider::new(&[SOON])
            };
            let cache = provider.cache();
            let first = cache.get().await.unwrap();
            cache.expire_interval();
            for result in join_all((0..100).map(|_| cache.get())).await {
                let expiration = result.unwrap().identity.expiration();
                assert_eq!(expiration, first.identity.expiration());
            }
            assert_eq!(provider.asked(), 2, "and are not asked for at each request");
        }
    }

    #[tokio::test]
    async fn expired_ones_are_never_used() {
        let provider = Provider::new(&[Duration::ZERO]);
        let cache = provider.cache();
        cache.get().await.unwrap();
        cache.get().await.unwrap_err();
    }

    #[tokio::test]
    async fn only_those_that_were_refused_are_forgotten() {
        let provider = Provider::new(&[HOUR, HOUR]);
        let cache = provider.cache();
        let first = cache.get().await.unwrap();
        cache.forget(&first);
        let second = cache.get().await.unwrap();
        cache.forget(&first);
        assert!(Arc::ptr_eq(&second, &cache.get().await.unwrap()));
        assert_eq!(provider.asked(), 2);
    }

    impl CredentialsCache {
        /// As if the refresh interval were over.
        fn expire_interval(&self) {
            let identity = self.cached().unwrap().identity.clone();
            self.store(CachedIdentity {
                identity,
                refresh_at: SystemTime::now(),
            });
        }
    }
}
