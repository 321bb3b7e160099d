//! Whether and how traces are exported, by the variables that OpenTelemetry defines for everybody. Most
//! are read by its SDK, which takes a wrong one for the default in silence; what would go badly wrong
//! that way is looked at here.

use std::time::Duration;

use axum::http::Uri;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::settings::{SettingsProblems, integer_between};

const ENDPOINT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const PROTOCOL: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
];
const COMPRESSION: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
];
const TIMEOUT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
const CERTIFICATE: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];

/// OpenTelemetry's own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether traces are exported, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceSettings {
    /// None: they are not.
    pub(super) export: Option<Export>,
}

/// How traces are exported, besides what the SDK reads for itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Export {
    /// When a request to the collector is given up.
    pub(super) timeout: Duration,
    /// Who is trusted to vouch for the collector, in PEM; none for the system's authorities.
    pub(super) authorities: Option<Vec<u8>>,
}

/// The variables, and what is wrong with them.
struct Reader<'a, F> {
    get: F,
    problems: &'a mut SettingsProblems,
}

impl TraceSettings {
    /// Reads the environment.
    pub fn from_env(problems: &mut SettingsProblems) -> Self {
        let get = |name: &str| std::env::var(name).ok();
        Reader { get, problems }.read()
    }

    /// Whether traces are exported.
    pub fn is_on(&self) -> bool {
        self.export.is_some()
    }
}

impl<F: Fn(&str) -> Option<String>> Reader<'_, F> {
    fn read(mut self) -> TraceSettings {
        let Some((name, endpoint)) = self.first(ENDPOINT) else {
            return TraceSettings::default();
        };
        if !self.is_wanted() {
            return TraceSettings::default();
        }
        if let Err(problem) = check_endpoint(&endpoint) {
            // The address is not repeated: it may hold a password.
            self.problems.add(name, problem);
        }
        self.check(PROTOCOL, protocol);
        self.check(COMPRESSION, compression);
        self.check_sampler();
        TraceSettings {
            export: Some(Export {
                timeout: self.timeout(),
                authorities: self.authorities(),
            }),
        }
    }

    /// Empty counts as unset, as OpenTelemetry has it.
    fn value(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|text| !text.trim().is_empty())
    }

    /// The first of these that is set, with its name: the one for traces before the one for all signals.
    fn first<'n>(&self, names: [&'n str; 2]) -> Option<(&'n str, String)> {
        let mut set = names
            .into_iter()
            .filter_map(|name| Some((name, self.value(name)?)));
        set.next()
    }

    fn is_wanted(&mut self) -> bool {
        let disabled = self.value("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
            return false;
        }
        let name = "OTEL_TRACES_EXPORTER";
        let exporter = self.value(name);
        self.problems
            .parse_value(name, exporter, true, |text| match text {
                "otlp" => Ok(true),
                "none" => Ok(false),
                _ => Err("is neither otlp nor none".into()),
            })
    }

    fn check(&mut self, names: [&str; 2], check: impl FnOnce(&str) -> Result<(), String>) {
        if let Some((name, text)) = self.first(names) {
            self.problems.parse_value(name, Some(text), (), check);
        }
    }

    /// The SDK would take every trace instead: of a million images, six million spans.
    fn check_sampler(&mut self) {
        let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
        let sampler = self.value(name);
        let needs_ratio = self.problems.parse_value(name, sampler, false, sampled_by);
        if !needs_ratio {
            return;
        }
        let ratio = self.value(argument);
        if ratio.is_none() {
            self.problems
                .add(argument, "is missing: a share from 0 to 1");
        }
        self.problems.parse_value(argument, ratio, (), |text| {
            let ratio: Result<f64, _> = text.parse();
            match ratio {
                Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
                _ => Err("is not a share from 0 to 1".into()),
            }
        });
    }

    fn timeout(&mut self) -> Duration {
        let Some((name, text)) = self.first(TIMEOUT) else {
            return DEFAULT_TIMEOUT;
        };
        let milliseconds = integer_between(1, 600_000);
        self.problems
            .parse_value(name, Some(text), DEFAULT_TIMEOUT, |text| {
                milliseconds(text).map(Duration::from_millis)
            })
    }

    fn authorities(&mut self) -> Option<Vec<u8>> {
        let (name, path) = self.first(CERTIFICATE)?;
        self.problems.parse_value(name, Some(path), None, |path| {
            read_authorities(path).map(Some)
        })
    }
}

fn check_endpoint(text: &str) -> Result<(), &'static str> {
    let address: Uri = text
        .trim()
        .parse()
        .map_err(|_| "is no address such as http://collector:4318")?;
    let is_http = matches!(address.scheme_str(), Some("http" | "https"));
    let authority = address.authority().filter(|_| is_http);
    let Some(authority) = authority else {
        return Err("is no address such as http://collector:4318");
    };
    if authority.as_str().contains('@') {
        return Err("holds a user: OTEL_EXPORTER_OTLP_HEADERS is the place for credentials");
    }
    Ok(())
}

fn protocol(text: &str) -> Result<(), String> {
    match text {
        "http/protobuf" => Ok(()),
        _ => Err(
            "is not spoken here: http/protobuf is, which collectors take on port 4318 (for no traces: OTEL_TRACES_EXPORTER=none)"
                .into(),
        ),
    }
}

fn compression(text: &str) -> Result<(), String> {
    match text {
        "gzip" | "none" => Ok(()),
        _ => Err("is neither gzip nor none".into()),
    }
}

/// Whether a sampler needs a share.
fn sampled_by(text: &str) -> Result<bool, String> {
    match text {
        "always_on" | "always_off" | "parentbased_always_on" | "parentbased_always_off" => {
            Ok(false)
        }
        "traceidratio" | "parentbased_traceidratio" => Ok(true),
        _ => Err(
            "is none of always_on, always_off, traceidratio, parentbased_always_on, parentbased_always_off, parentbased_traceidratio"
                .into(),
        ),
    }
}

/// Checked here, because the client that uses them would panic.
fn read_authorities(path: &str) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let added = certificate.ok().and_then(|one| roots.add(one).ok());
        added.ok_or("holds a certificate that cannot be read")?;
    }
    if roots.is_empty() {
        return Err("holds no certificate".into());
    }
    Ok(pem)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What these variables mean, or what is wrong with them.
    fn read(variables: &[(&str, &str)]) -> Result<TraceSettings, String> {
        let mut problems = SettingsProblems::default();
        let get = |name: &str| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let problems_of = Reader {
            get,
            problems: &mut problems,
        };
        let settings = problems_of.read();
        match problems.into_result() {
            Ok(()) => Ok(settings),
            Err(error) => Err(error.to_string()),
        }
    }

    const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn off_unless_there_is_a_collector_and_traces_are_wanted() {
        for off in [
            &[][..],
            &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
            &[(
                "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                "http://collector:4318",
            )],
            &[("OTEL_TRACES_EXPORTER", "otlp")],
            &[AT, ("OTEL_SDK_DISABLED", "TRUE")],
            &[AT, ("OTEL_TRACES_EXPORTER", "none")],
            // Who wants no traces may set the rest as for other programs.
            &[
                AT,
                ("OTEL_TRACES_EXPORTER", "none"),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ],
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
        ] {
            assert_eq!(read(off).unwrap(), TraceSettings::default(), "{off:?}");
        }
    }

    #[test]
    fn on_with_a_collector() {
        for on in [
            &[AT][..],
            &[(
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "https://c.example/v1/traces",
            )],
            &[
                AT,
                ("OTEL_SDK_DISABLED", "false"),
                ("OTEL_TRACES_EXPORTER", "otlp"),
            ],
            &[AT, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")],
            &[AT, ("OTEL_TRACES_SAMPLER", "always_on")],
            &[
                AT,
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
            ],
        ] {
            let export = read(on).unwrap().export.unwrap();
            assert_eq!(export.timeout, DEFAULT_TIMEOUT, "{on:?}");
        }
    }

    #[test]
    fn the_variable_for_traces_goes_before_the_one_for_all() {
        let timeout = |variables: &[(&str, &str)]| {
            let export = read(variables).unwrap().export.unwrap();
            export.timeout.as_millis()
        };
        let all = ("OTEL_EXPORTER_OTLP_TIMEOUT", "300");
        let own = ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "200");
        assert_eq!(timeout(&[AT, all]), 300);
        assert_eq!(timeout(&[AT, all, own]), 200);
        let protocols = [
            AT,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"),
        ];
        assert!(read(&protocols).unwrap().is_on());
    }

    #[test]
    fn what_would_go_wrong_in_silence_is_told() {
        let own_file = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
        for (name, value, word) in [
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "collector:4318",
                "no address",
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "http://",
                "no address",
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "ftp://c/",
                "no address",
            ),
            (
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                "http://a:hunter2@c",
                "HEADERS",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "gzip"),
            ("OTEL_TRACES_EXPORTER", "zipkin", "neither otlp nor none"),
            ("OTEL_TRACES_SAMPLER", "sometimes", "is none of"),
            (
                "OTEL_TRACES_SAMPLER",
                "traceidratio",
                "OTEL_TRACES_SAMPLER_ARG: is missing",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "whole number"),
            (
                "OTEL_EXPORTER_OTLP_CERTIFICATE",
                "/nowhere.pem",
                "cannot be read",
            ),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", own_file, "no certificate"),
        ] {
            let problem = read(&[AT, (name, value)]).unwrap_err();
            assert!(
                problem.contains(name) && problem.contains(word),
                "{problem}"
            );
            assert!(!problem.contains("hunter2"));
        }
        let ratio = [
            AT,
            ("OTEL_TRACES_SAMPLER", "traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "1%"),
        ];
        assert!(
            read(&ratio)
                .unwrap_err()
                .contains("not a share from 0 to 1")
        );
    }
}
