//! Whether and how traces are exported, by OpenTelemetry's own variables. Its SDK reads most of them, and
//! replaces a wrong value by its default without an error: for a sampler, that is every trace. So they are
//! checked here.

use std::time::Duration;

use reqwest::{Certificate, Url};

use crate::settings::{SettingsProblems, integer_between, must_be_one_of};

/// The variable for traces before the one for all signals.
const ENDPOINT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
const TIMEOUT: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
];
const CERTIFICATE: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
    "OTEL_EXPORTER_OTLP_CERTIFICATE",
];
const EXPORTER: &str = "OTEL_TRACES_EXPORTER";
const SAMPLER: &str = "OTEL_TRACES_SAMPLER";
const SAMPLER_ARG: &str = "OTEL_TRACES_SAMPLER_ARG";

/// The values that work, for variables with a few.
const CHOICES: [(&[&str], &[&str]); 3] = [
    (
        &[
            "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
            "OTEL_EXPORTER_OTLP_PROTOCOL",
        ],
        &["http/protobuf"],
    ),
    (
        &[
            "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
            "OTEL_EXPORTER_OTLP_COMPRESSION",
        ],
        &["gzip", "none"],
    ),
    (
        &[SAMPLER],
        &[
            "always_on",
            "always_off",
            "traceidratio",
            "parentbased_always_on",
            "parentbased_always_off",
            "parentbased_traceidratio",
        ],
    ),
];

/// OpenTelemetry's own default.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Whether traces are exported, and how.
#[derive(Debug, Clone, Default)]
pub struct TraceSettings {
    /// None: they are not.
    pub(super) export: Option<ExportSettings>,
}

/// How traces are exported, besides what the SDK reads for itself.
#[derive(Debug, Clone)]
pub(super) struct ExportSettings {
    /// When a request to the collector is given up.
    pub(super) timeout: Duration,
    /// Who may vouch for the collector; none for the system's authorities.
    pub(super) authorities: Option<Vec<Certificate>>,
}

/// The variables, and what is wrong with them.
struct VariableReader<'a, F> {
    get: F,
    problems: &'a mut SettingsProblems,
}

impl TraceSettings {
    pub fn from_env(problems: &mut SettingsProblems) -> Self {
        let get = |name: &str| std::env::var(name).ok();
        VariableReader { get, problems }.read()
    }
}

impl<F: Fn(&str) -> Option<String>> VariableReader<'_, F> {
    fn read(mut self) -> TraceSettings {
        let Some((name, endpoint)) = self.first_set(&ENDPOINT) else {
            return TraceSettings::default();
        };
        if !self.is_wanted() {
            return TraceSettings::default();
        }
        if let Err(problem) = check_endpoint(&endpoint) {
            // The address is not repeated: it may hold a password.
            self.problems.add(name, problem);
        }
        for (names, values) in CHOICES {
            self.check_choice(names, values);
        }
        self.check_ratio();
        TraceSettings {
            export: Some(ExportSettings {
                timeout: self.timeout(),
                authorities: self.authorities(),
            }),
        }
    }

    /// Empty counts as unset, as OpenTelemetry has it.
    fn value(&self, name: &str) -> Option<String> {
        (self.get)(name).filter(|text| !text.trim().is_empty())
    }

    fn first_set<'n>(&self, names: &[&'n str]) -> Option<(&'n str, String)> {
        let mut set = names
            .iter()
            .filter_map(|name| Some((*name, self.value(name)?)));
        set.next()
    }

    fn is_wanted(&mut self) -> bool {
        let disabled = self.value("OTEL_SDK_DISABLED");
        if disabled.is_some_and(|text| text.trim().eq_ignore_ascii_case("true")) {
            return false;
        }
        self.check_choice(&[EXPORTER], &["otlp", "none"]);
        self.value(EXPORTER).as_deref() != Some("none")
    }

    fn check_choice(&mut self, names: &[&'static str], values: &[&str]) {
        if let Some((name, text)) = self.first_set(names)
            && !values.contains(&&*text)
        {
            self.problems.add(name, must_be_one_of(values));
        }
    }

    fn check_ratio(&mut self) {
        let needs_ratio = |sampler: String| sampler.ends_with("traceidratio");
        if !self.value(SAMPLER).is_some_and(needs_ratio) {
            return;
        }
        let ratio = self.value(SAMPLER_ARG).and_then(|text| text.parse().ok());
        if !ratio.is_some_and(|ratio: f64| (0.0..=1.0).contains(&ratio)) {
            self.problems.add(SAMPLER_ARG, "is not a share from 0 to 1");
        }
    }

    fn timeout(&mut self) -> Duration {
        let Some((name, text)) = self.first_set(&TIMEOUT) else {
            return DEFAULT_TIMEOUT;
        };
        match integer_between(1, 600_000)(text.trim()) {
            Ok(milliseconds) => Duration::from_millis(milliseconds),
            Err(problem) => {
                self.problems.add(name, format!("'{text}' {problem}"));
                DEFAULT_TIMEOUT
            }
        }
    }

    fn authorities(&mut self) -> Option<Vec<Certificate>> {
        let (name, path) = self.first_set(&CERTIFICATE)?;
        read_certificates(path.trim())
            .map_err(|problem| self.problems.add(name, format!("'{path}' {problem}")))
            .ok()
    }
}

fn check_endpoint(text: &str) -> Result<(), &'static str> {
    let url = Url::parse(text.trim()).ok();
    let Some(url) = url.filter(|url| matches!(url.scheme(), "http" | "https")) else {
        return Err("is no address such as http://collector:4318");
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err("holds a user: OTEL_EXPORTER_OTLP_HEADERS is the place for credentials");
    }
    Ok(())
}

fn read_certificates(path: &str) -> Result<Vec<Certificate>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("cannot be read: {error}"))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err("holds no certificate".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What these variables (`NAME=value`, without `OTEL_`) mean, or what is wrong with them.
    fn read(variables: &str) -> Result<TraceSettings, String> {
        let mut problems = SettingsProblems::default();
        let variables: Vec<(String, &str)> = variables
            .split(';')
            .filter_map(|variable| variable.split_once('='))
            .map(|(name, value)| (format!("OTEL_{name}"), value))
            .collect();
        let get = |name: &str| {
            let found = variables.iter().find(|(other, _)| other == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let reader = VariableReader {
            get,
            problems: &mut problems,
        };
        let settings = reader.read();
        let settings = problems.finish(Some(settings));
        settings.map_err(|error| error.to_string())
    }

    const AT: &str = "EXPORTER_OTLP_ENDPOINT=http://collector:4318";

    fn read_at(variables: &str) -> Result<TraceSettings, String> {
        read(&format!("{AT};{variables}"))
    }

    #[test]
    fn off_unless_there_is_a_collector_and_traces_are_wanted() {
        for off in [
            "",
            "EXPORTER_OTLP_ENDPOINT= ",
            "EXPORTER_OTLP_METRICS_ENDPOINT=http://collector:4318",
            "TRACES_EXPORTER=otlp",
            "EXPORTER_OTLP_PROTOCOL=grpc",
        ] {
            assert!(read(off).unwrap().export.is_none(), "{off}");
        }
        for off in [
            "SDK_DISABLED=TRUE",
            "TRACES_EXPORTER=none",
            // Who wants no traces may set the rest as for other programs.
            "TRACES_EXPORTER=none;EXPORTER_OTLP_PROTOCOL=grpc",
        ] {
            assert!(read_at(off).unwrap().export.is_none(), "{off}");
        }
    }

    #[test]
    fn on_with_a_collector() {
        let own = read("EXPORTER_OTLP_TRACES_ENDPOINT=https://c.example/v1/traces");
        assert!(own.unwrap().export.is_some());
        for on in [
            "",
            "SDK_DISABLED=false;TRACES_EXPORTER=otlp",
            "EXPORTER_OTLP_PROTOCOL=http/protobuf",
            "EXPORTER_OTLP_PROTOCOL=grpc;EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf",
            "TRACES_SAMPLER=always_on",
            "TRACES_SAMPLER=parentbased_traceidratio;TRACES_SAMPLER_ARG=0.01",
        ] {
            let export = read_at(on).unwrap().export.unwrap();
            assert_eq!(export.timeout, DEFAULT_TIMEOUT, "{on}");
        }
    }

    #[test]
    fn the_variable_for_traces_goes_before_the_one_for_all() {
        let timeout = |variables| read_at(variables).unwrap().export.unwrap().timeout;
        let all = "EXPORTER_OTLP_TIMEOUT=300";
        assert_eq!(timeout(all), Duration::from_millis(300));
        let both = format!("{all};EXPORTER_OTLP_TRACES_TIMEOUT=200");
        assert_eq!(timeout(&both), Duration::from_millis(200));
    }

    #[test]
    fn what_would_go_wrong_in_silence_is_told() {
        const OWN_FILE: &str = concat!(
            "EXPORTER_OTLP_CERTIFICATE=",
            env!("CARGO_MANIFEST_DIR"),
            "/Cargo.toml"
        );
        for (variables, word) in [
            ("EXPORTER_OTLP_TRACES_ENDPOINT=collector:4318", "no address"),
            ("EXPORTER_OTLP_TRACES_ENDPOINT=http://", "no address"),
            ("EXPORTER_OTLP_TRACES_ENDPOINT=ftp://c/", "no address"),
            (
                "EXPORTER_OTLP_TRACES_ENDPOINT=http://a:hunter2@c",
                "HEADERS",
            ),
            ("EXPORTER_OTLP_PROTOCOL=grpc", "http/protobuf"),
            ("EXPORTER_OTLP_COMPRESSION=zstd", "gzip"),
            ("TRACES_EXPORTER=zipkin", "otlp, none"),
            ("TRACES_SAMPLER=sometimes", "must be one of"),
            (
                "TRACES_SAMPLER=traceidratio",
                "OTEL_TRACES_SAMPLER_ARG: is not a share",
            ),
            (
                "TRACES_SAMPLER_ARG=1%;TRACES_SAMPLER=traceidratio",
                "not a share from 0 to 1",
            ),
            ("EXPORTER_OTLP_TIMEOUT=10s", "whole number"),
            ("EXPORTER_OTLP_CERTIFICATE=/nowhere.pem", "cannot be read"),
            (OWN_FILE, "no certificate"),
        ] {
            let problem = read_at(variables).unwrap_err();
            let (name, _) = variables.split_once('=').unwrap();
            assert!(
                problem.contains(name) && problem.contains(word),
                "{problem}"
            );
            assert!(!problem.contains("hunter2"));
        }
    }
}
