//! The credentials, kept until shortly before they expire.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_runtime_api::client::identity::Identity;
use parking_lot::Mutex;
use tokio::time::timeout;

use super::{CREDENTIALS_TIMEOUT, error_chain};

/// ECS and EC2 have new ones at least five minutes before the old ones expire.
/// Source: Amazon EC2 User Guide, "Retrieve security credentials from instance metadata".
const REFRESH_AHEAD: Duration = Duration::from_mins(5);

/// How long what the provider gave, or did not give, is left at that.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);

/// How long the provider may take while the old ones are still valid.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(5);

/// What does not say when it expires may still change, in a file or behind a command. As the SDK does.
const DEFAULT_LIFETIME: Duration = Duration::from_mins(15);

#[derive(Debug, Clone)]
struct CachedIdentity {
    identity: Identity,
    refresh_at: SystemTime,
}

/// Asks the provider no more often than it must.
#[derive(Debug)]
pub(crate) struct CredentialsCache {
    provider: SharedCredentialsProvider,
    cached: Mutex<Option<CachedIdentity>>,
    refreshing: tokio::sync::Mutex<()>,
}

impl CredentialsCache {
    pub(crate) fn new(provider: SharedCredentialsProvider) -> Self {
        Self {
            provider,
            cached: Mutex::default(),
            refreshing: tokio::sync::Mutex::default(),
        }
    }

    /// Credentials that are valid. When they are soon not any more, one caller asks for others, and the rest
    /// go on with these.
    ///
    /// # Errors
    /// The provider's, when there are no valid ones to go on with.
    pub(crate) async fn identity(&self) -> Result<Identity, CredentialsError> {
        let _turn = match self.valid() {
            Some(cached) if SystemTime::now() < cached.refresh_at => return Ok(cached.identity),
            Some(cached) => match self.refreshing.try_lock() {
                Ok(turn) => turn,
                Err(_) => return Ok(cached.identity),
            },
            None => self.refreshing.lock().await,
        };
        match self.valid() {
            // Others have come while this caller waited.
            Some(cached) if SystemTime::now() < cached.refresh_at => Ok(cached.identity),
            // Boxed, so that it makes no room in each request.
            old => Box::pin(self.refresh(old.map(|old| old.identity))).await,
        }
    }

    /// Forgets credentials that were refused, unless others have taken their place already.
    pub(crate) fn forget(&self, refused: &Identity) {
        let data = |identity: &Identity| identity.data::<Credentials>().cloned();
        let is_refused = |cached: &mut CachedIdentity| data(&cached.identity) == data(refused);
        self.cached.lock().take_if(is_refused);
    }

    async fn refresh(&self, old: Option<Identity>) -> Result<Identity, CredentialsError> {
        let limit = old
            .as_ref()
            .map_or(CREDENTIALS_TIMEOUT, |_| REFRESH_TIMEOUT);
        let asked = timeout(limit, self.provider.provide_credentials()).await;
        let asked = asked.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(limit)));
        let identity = match (asked, old) {
            (Ok(credentials), _) => Identity::from(credentials),
            (Err(error), Some(old)) => {
                tracing::warn!(
                    error = error_chain(&error),
                    "the credentials could not be refreshed; the old ones are still valid"
                );
                old
            }
            (Err(error), None) => return Err(error),
        };
        let now = SystemTime::now();
        let ahead = identity
            .expiration()
            .map(|at| at.checked_sub(REFRESH_AHEAD));
        let refresh_at = ahead.map_or(now + DEFAULT_LIFETIME, |at| {
            at.unwrap_or(now).max(now + REFRESH_INTERVAL)
        });
        *self.cached.lock() = Some(CachedIdentity {
            identity: identity.clone(),
            refresh_at,
        });
        Ok(identity)
    }

    fn valid(&self) -> Option<CachedIdentity> {
        let now = SystemTime::now();
        let is_valid =
            |cached: &CachedIdentity| cached.identity.expiration().is_none_or(|at| now < at);
        self.cached.lock().clone().filter(is_valid)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
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
        for result in join_all((0..100).map(|_| cache.identity())).await {
            result.unwrap();
        }
        assert_eq!(provider.asked(), 1);
    }

    #[tokio::test]
    async fn they_are_refreshed_before_they_expire() {
        let provider = Provider::new(&[SOON, HOUR]);
        let cache = provider.cache();
        let first = cache.identity().await.unwrap();
        cache.expire_interval();
        let refreshed = cache.identity().await.unwrap();
        assert!(refreshed.expiration() > first.expiration());
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
            let first = cache.identity().await.unwrap();
            cache.expire_interval();
            for result in join_all((0..100).map(|_| cache.identity())).await {
                let expiration = result.unwrap().expiration();
                assert_eq!(expiration, first.expiration());
            }
            assert_eq!(provider.asked(), 2, "and are not asked for at each request");
        }
    }

    #[tokio::test]
    async fn only_those_that_were_refused_are_forgotten() {
        let provider = Provider::new(&[HOUR, HOUR]);
        let cache = provider.cache();
        let first = cache.identity().await.unwrap();
        cache.forget(&first);
        let second = cache.identity().await.unwrap();
        cache.forget(&first);
        let third = cache.identity().await.unwrap();
        assert_eq!(third.expiration(), second.expiration());
        assert_eq!(provider.asked(), 2);
    }

    impl CredentialsCache {
        /// As if the refresh interval were over.
        fn expire_interval(&self) {
            if let Some(cached) = &mut *self.cached.lock() {
                cached.refresh_at = SystemTime::now();
            }
        }
    }
}
