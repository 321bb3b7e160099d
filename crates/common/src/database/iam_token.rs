//! Tokens that RDS takes for a password: a request to connect, signed with the credentials of AWS.
//! Source: Amazon RDS User Guide, "IAM database authentication".

use std::time::{Duration, SystemTime};

use aws_credential_types::provider::error::CredentialsError;
use aws_sigv4::http_request::{
    SignableBody, SignableRequest, SignatureLocation, SigningParams, SigningSettings, sign,
};
use aws_sigv4::sign::v4;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::Identity;
use percent_encoding::{AsciiSet, utf8_percent_encode};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::OnceCell;
use tokio::time::timeout;

use super::login::LoginError;
use crate::aws::credentials::CredentialsCache;
use crate::aws::{CREDENTIALS_TIMEOUT, ErrorOrigin, RequestError, load_config};
use crate::path_encoding::STRICT;

/// The longest that RDS allows.
const VALIDITY: Duration = Duration::from_mins(15);

const RESERVED: &AsciiSet = &STRICT.add(b'/');

/// Signs tokens with the process's own credentials, which are looked for at the first.
#[derive(Default)]
pub(crate) struct IamTokens(OnceCell<TokenSigner>);

struct TokenSigner {
    credentials: CredentialsCache,
    region: Option<String>,
}

impl IamTokens {
    /// A token for one connection, or a few.
    pub(super) async fn sign(&self, options: &PgConnectOptions) -> Result<String, LoginError> {
        let signer = self.0.get_or_try_init(TokenSigner::load).await?;
        let host = options.get_host();
        let region = region_of(host).or(signer.region.as_deref());
        let region = region.ok_or_else(|| refused("AWS_REGION is missing"))?;
        let identity = timeout(CREDENTIALS_TIMEOUT, signer.credentials.identity()).await;
        let identity = identity
            .unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CREDENTIALS_TIMEOUT)))
            .map_err(|error| without_credentials(&error))?;
        let address = format!("{host}:{}", options.get_port());
        let token = sign_token(
            &address,
            options.get_username(),
            region,
            &identity,
            SystemTime::now(),
        );
        token.map_err(|error| refused(&error.to_string()))
    }
}

impl TokenSigner {
    async fn load() -> Result<Self, LoginError> {
        let sdk = load_config().await;
        let provider = sdk.credentials_provider();
        let provider = provider.ok_or_else(|| refused("no credentials"))?;
        Ok(Self {
            credentials: CredentialsCache::new(provider),
            region: sdk.region().map(ToString::to_string),
        })
    }
}

/// A provider may be back in a moment; what is not set is never there.
fn without_credentials(error: &CredentialsError) -> LoginError {
    let error = RequestError::not_sent(error);
    LoginError {
        problem: format!("DATABASE_AUTH=iam: no credentials: {}", error.message),
        is_transient: error.origin == ErrorOrigin::Credentials,
    }
}

fn refused(problem: &str) -> LoginError {
    LoginError {
        problem: format!("DATABASE_AUTH=iam: {problem}"),
        is_transient: false,
    }
}

/// RDS's own names hold it: `name.id.eu-central-1.rds.amazonaws.com`.
fn region_of(host: &str) -> Option<&str> {
    let (front, _) = host.split_once(".rds.amazonaws.com")?;
    front.rsplit('.').next()
}

fn sign_token(
    address: &str,
    user: &str,
    region: &str,
    identity: &Identity,
    now: SystemTime,
) -> Result<String, BoxError> {
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(VALIDITY);
    let params = v4::SigningParams::builder()
        .identity(identity)
        .region(region)
        .name("rds-db")
        .time(now)
        .settings(settings)
        .build()?;
    let encode = |text: &str| utf8_percent_encode(text, RESERVED).to_string();
    let mut token = format!("{address}/?Action=connect&DBUser={}", encode(user));
    let url = format!("https://{token}");
    let request = SignableRequest::new("GET", &url, std::iter::empty(), SignableBody::empty())?;
    let signed = sign(request, &SigningParams::V4(params))?;
    let parameters = signed.output().params().iter();
    let parameters = parameters.map(|(name, value)| format!("&{name}={}", encode(value)));
    token.extend(parameters);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use aws_credential_types::Credentials;

    use super::*;

    /// For 2024-08-26T22:00:00Z.
    fn token(user: &str, session: Option<&str>) -> String {
        let session = session.map(str::to_owned);
        let credentials = Credentials::new("akid", "secret", session, None, "test");
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(479_086);
        let host = "prod-instance.us-east-1.rds.amazonaws.com";
        let (address, region) = (format!("{host}:3306"), region_of(host).unwrap());
        sign_token(&address, user, region, &credentials.into(), now).unwrap()
    }

    fn parameters(token: &str) -> Vec<&str> {
        let mut parameters: Vec<_> = token.split('&').collect();
        parameters.sort_unstable();
        parameters
    }

    /// botocore's `generate_db_auth_token`.
    #[test]
    fn tokens_are_those_of_another_signer() {
        const FRONT: &str = "prod-instance.us-east-1.rds.amazonaws.com:3306/?Action=connect";
        const SIGNED: &str = "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=akid%2F20240826%2Fus-east-1%2Frds-db%2Faws4_request&X-Amz-Date=20240826T220000Z&X-Amz-Expires=900&X-Amz-SignedHeaders=host";
        let wanted = format!(
            "{FRONT}&DBUser=peccy&{SIGNED}&X-Amz-Signature=dd0cba843009474347af724090233265628ace491ea17ce3eb3da098b983ad89"
        );
        assert_eq!(parameters(&token("peccy", None)), parameters(&wanted));
        let wanted = format!(
            "{FRONT}&DBUser=db%20user%40x%2By&{SIGNED}&X-Amz-Security-Token=to%2Fken%3D%2B&X-Amz-Signature=5ade8d28210a9e53e49f0fdd0ed1cb9bf4001b094905b89ba4b47da9c6746745"
        );
        let other = token("db user@x+y", Some("to/ken=+"));
        assert_eq!(parameters(&other), parameters(&wanted));
    }
}
