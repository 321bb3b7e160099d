//! `healthcheck`: asks a running process for its health, as a container's health check does. The
//! image needs no shell and no HTTP client for it.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

use clap::Args;
use thiserror::Error;

use crate::exit;
use crate::http_endpoints::EndpointArgs;
use crate::settings::{SettingsError, SettingsProblems};

/// `/healthz` is served from memory: a process that takes longer is not healthy.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);

/// A response is one line and its headers; more is not read.
const MAX_RESPONSE_BYTES: u64 = 16 * 1024;

#[derive(Debug, Args)]
pub struct HealthcheckArgs {
    #[command(flatten)]
    endpoint: EndpointArgs,
    /// Accept any response: for an orchestrator that restarts what is not healthy. A process in an outage
    /// waits for its end, and a restart would not help it
    #[arg(long)]
    alive: bool,
}

#[derive(Debug, Error)]
enum HealthcheckError {
    #[error("{0} does not respond: {1}")]
    NoResponse(SocketAddr, io::Error),
    #[error("{0}")]
    Unhealthy(String),
}

impl HealthcheckArgs {
    /// Asks the process that listens on `METRICS_ADDR`, and prints its response.
    /// Returns [`exit::DONE`] or [`exit::CHECK_FAILED`]: an orchestrator knows no others.
    pub fn run(self) -> Result<u8, SettingsError> {
        let mut problems = SettingsProblems::default();
        let address = self.endpoint.parse(&mut problems);
        let Some(address) = problems.finish(Some(address))? else {
            return Err(SettingsError::for_setting(
                "METRICS_ADDR",
                "is missing: without it there is no health check",
            ));
        };
        Ok(
            match check_health(connectable_address(address), self.alive) {
                Ok(response) => print_result(response.trim_end(), exit::DONE),
                Err(error) => print_result(&error, exit::CHECK_FAILED),
            },
        )
    }
}

fn print_result(what: impl fmt::Display, code: u8) -> u8 {
    // An orchestrator goes by the exit code; the words are for people.
    let _ = writeln!(io::stdout(), "{what}");
    code
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

fn check_health(address: SocketAddr, accepts_any: bool) -> Result<String, HealthcheckError> {
    let response =
        request_healthz(address).map_err(|error| HealthcheckError::NoResponse(address, error))?;
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or((&response, ""));
    let is_healthy = head.split(' ').nth(1) == Some("200");
    if is_healthy || accepts_any {
        Ok(body.to_owned())
    } else {
        Err(HealthcheckError::Unhealthy(body.trim_end().to_owned()))
    }
}

/// The whole response to `GET /healthz`; an error when it is not HTTP.
fn request_healthz(address: SocketAddr) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, HEALTHCHECK_TIMEOUT)?;
    stream.set_read_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    stream.set_write_timeout(Some(HEALTHCHECK_TIMEOUT))?;
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut response = String::new();
    stream
        .take(MAX_RESPONSE_BYTES)
        .read_to_string(&mut response)?;
    if response.starts_with("HTTP/1.1 ") {
        Ok(response)
    } else {
        Err(io::Error::other(
            "this is not the response of a feeder or consumer",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_process_is_healthy_when_it_says_so() {
        let address = respond_once("HTTP/1.1 200 OK\r\n\r\nok\n");
        assert_eq!(check_health(address, false).unwrap(), "ok\n");
    }

    #[test]
    fn a_process_in_an_outage_is_alive_but_not_healthy() {
        const OUTAGE: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\nthe queue: gone\n";
        let error = check_health(respond_once(OUTAGE), false).unwrap_err();
        assert_eq!(error.to_string(), "the queue: gone");
        assert!(check_health(respond_once(OUTAGE), true).is_ok());
    }

    #[test]
    fn closed_ports_and_other_servers_are_unhealthy() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        for address in [free.unwrap(), respond_once("220 smtp\r\n")] {
            let error = check_health(address, true).unwrap_err().to_string();
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
