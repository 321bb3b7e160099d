//! `healthcheck`: asks a running process for its health, as a container's health check does. The
//! image needs no shell and no HTTP client for it.

use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use reqwest::{Client, StatusCode};

use crate::aws::error_chain;
use crate::exit;
use crate::http_endpoints::EndpointArgs;
use crate::settings::{SettingsError, SettingsProblems};

/// `/healthz` is served from memory: a process that takes longer is not healthy.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 healthy; 1 not healthy or no response; 64 METRICS_ADDR is not set."
)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Accept any response: for an orchestrator that restarts what is not healthy. A process in an outage
    /// waits for its end, and a restart would not help it
    #[arg(long)]
    alive: bool,
}

impl HealthcheckArgs {
    /// Asks the process that listens on `METRICS_ADDR`, and prints its response.
    /// Returns [`exit::DONE`] or [`exit::CHECK_FAILED`]: an orchestrator knows no others.
    pub async fn run(self) -> Result<u8, SettingsError> {
        let mut problems = SettingsProblems::default();
        let address = self.endpoint.parse(&mut problems);
        let Some(address) = problems.finish(Some(address))? else {
            return Err(SettingsError::for_setting(
                "METRICS_ADDR",
                "is missing: without it there is no health check",
            ));
        };
        let (text, code) = match check_health(connectable_address(address), self.alive).await {
            Ok(response) => (response, exit::DONE),
            Err(problem) => (problem, exit::CHECK_FAILED),
        };
        // An orchestrator goes by the exit code; the words are for people.
        drop(writeln!(io::stdout(), "{}", text.trim_end()));
        Ok(code)
    }
}

/// Where a listener on this address is reached from this machine: one on every address, on loopback.
pub fn connectable_address(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

/// What the process says: an error where it is not healthy, or not there.
async fn check_health(address: SocketAddr, accepts_any: bool) -> Result<String, String> {
    let response = request_healthz(address).await;
    let no_response = |error| format!("{address} does not respond: {}", error_chain(&error));
    let (status, body) = response.map_err(no_response)?;
    if status.is_success() || accepts_any {
        Ok(body)
    } else {
        Err(body.trim_end().to_owned())
    }
}

async fn request_healthz(address: SocketAddr) -> reqwest::Result<(StatusCode, String)> {
    let client = Client::builder().timeout(HEALTHCHECK_TIMEOUT).no_proxy();
    let request = client.build()?.get(format!("http://{address}/healthz"));
    let response = request.send().await?;
    Ok((response.status(), response.text().await?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;
    use std::thread;

    /// Responds to one connection with these bytes.
    fn respond_once(response: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).unwrap();
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(response.as_bytes()).unwrap();
        });
        address
    }

    #[tokio::test]
    async fn a_process_is_healthy_when_it_says_so() {
        let address = respond_once("HTTP/1.1 200 OK\r\n\r\nok\n");
        assert_eq!(check_health(address, false).await.unwrap(), "ok\n");
    }

    #[tokio::test]
    async fn a_process_in_an_outage_is_alive_but_not_healthy() {
        const OUTAGE: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\nthe queue: gone\n";
        let error = check_health(respond_once(OUTAGE), false).await.unwrap_err();
        assert_eq!(error, "the queue: gone");
        assert!(check_health(respond_once(OUTAGE), true).await.is_ok());
    }

    #[tokio::test]
    async fn closed_ports_and_other_servers_are_unhealthy() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        for address in [free.unwrap(), respond_once("220 smtp\r\n")] {
            let error = check_health(address, true).await.unwrap_err();
            assert!(error.contains("does not respond"), "{error}");
        }
    }

    #[test]
    fn every_address_is_asked_on_loopback() {
        for (listens, asked) in [
            ("0.0.0.0:9100", "127.0.0.1:9100"),
            ("[::]:9100", "[::1]:9100"),
            ("10.0.0.1:9100", "10.0.0.1:9100"),
        ] {
            let listens = listens.parse().unwrap();
            assert_eq!(connectable_address(listens).to_string(), asked);
        }
    }
}
