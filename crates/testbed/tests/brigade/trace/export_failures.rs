//! Collectors that are down, slow or refuse, by TLS or not: the work goes on.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::collector::{CollectorMode, TraceCollector};
use super::{run_migration, trace_settings};
use crate::rig::{TestRig, stop_consumer, wait_for_exit, wait_until};

const EXPORT_FAILED_LINE: &str = "traces cannot be exported, and the work goes on without them";
const LAST_EXPORT_FAILED_LINE: &str = "the last traces could not be exported";

/// Nothing listens there.
const UNREACHABLE_ENDPOINT: &str = "http://127.0.0.1:9";

async fn timed_migration(rig: &TestRig, more: &[(&str, &str)]) -> (Duration, [String; 2]) {
    for _ in 0..60 {
        rig.add_image(&format!("image/{}.png", fastrand::u64(..)))
            .await;
    }
    let began = Instant::now();
    let (code, logs) = run_migration(rig, more).await;
    assert_eq!(code, Some(0), "{logs:?}");
    (began.elapsed(), logs)
}

#[tokio::test]
async fn a_failing_collector_slows_nothing_and_is_logged_once() {
    let rig = TestRig::new().await;
    let collector = TraceCollector::start().await;
    let often = ("OTEL_BSP_SCHEDULE_DELAY", "50");
    let (ordinary, _) = timed_migration(&rig, &[]).await;
    // The timeout is for a request and its retries: what may be retried is logged when it ends.
    for (mode, endpoint, timeout, line) in [
        (
            CollectorMode::Takes,
            UNREACHABLE_ENDPOINT,
            "200",
            EXPORT_FAILED_LINE,
        ),
        (
            CollectorMode::Answers(500),
            collector.endpoint(),
            "10000",
            EXPORT_FAILED_LINE,
        ),
        (
            CollectorMode::Answers(503),
            collector.endpoint(),
            "200",
            EXPORT_FAILED_LINE,
        ),
        (
            CollectorMode::Hangs,
            collector.endpoint(),
            "200",
            EXPORT_FAILED_LINE,
        ),
        (
            CollectorMode::Hangs,
            collector.endpoint(),
            "10000",
            LAST_EXPORT_FAILED_LINE,
        ),
    ] {
        collector.set_mode(mode);
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let timeout = ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout);
        let (took, logs) = timed_migration(&rig, &[at, often, timeout]).await;
        // Each of the two processes gives the last spans a second, and no more.
        let most = 2 * ordinary + Duration::from_secs(3);
        assert!(took < most, "{mode:?}: {took:?}, without {ordinary:?}");
        for log in logs {
            assert_eq!(log.matches(line).count(), 1, "{mode:?}: {log}");
            // Besides, at most that the last ones were too late.
            assert!(log.matches("WARN").count() <= 2, "{mode:?}: {log}");
        }
    }
    assert_eq!(rig.count_rows("moves").await, 6 * 60);
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test]
async fn a_collector_that_recovers_is_logged_too() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let collector = TraceCollector::start().await;
    collector.set_mode(CollectorMode::Answers(401));
    let often = ("OTEL_BSP_SCHEDULE_DELAY", "50");
    let consumer = rig.spawn_consumer(&[trace_settings(&collector)[0], often]);
    let said = async |words: &str| {
        wait_until(words, async || consumer.log_tail(400).contains(words)).await;
    };
    let path = "image/a.png";
    rig.feed_row(&rig.add_image(path).await, path).await;
    said("status code: 401").await;
    collector.set_mode(CollectorMode::Takes);
    let path = "image/b.png";
    rig.feed_row(&rig.add_image(path).await, path).await;
    said("traces are exported again").await;
    stop_consumer(consumer).await;
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_outlast_the_grace() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let collector = TraceCollector::start().await;
    collector.set_mode(CollectorMode::Hangs);
    let grace = ("SHUTDOWN_GRACE", "4s");
    let mut consumer = rig.spawn_consumer(&[trace_settings(&collector)[0], grace]);
    let path = "image/a.png";
    rig.feed_row(&rig.add_image(path).await, path).await;
    rig.wait_until_drained().await;
    let began = Instant::now();
    consumer.terminate().unwrap();
    let ended = wait_for_exit(&mut consumer).await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains(LAST_EXPORT_FAILED_LINE), "{}", ended.log);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn an_unsupported_protocol_is_reported_before_any_work() {
    let rig = TestRig::new().await;
    let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", UNREACHABLE_ENDPOINT);
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_TRACES_SAMPLER", "xray"),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run_program(program, &[at, (name, value)]).await;
            assert_eq!(ended.code, Some(64), "{program}: {}", ended.log);
            assert!(ended.log.contains("OTEL_"), "{program}: {}", ended.log);
        }
    }
}

/// A collector by TLS, whose authority is in the first file; in the second is a stranger.
async fn collector_with_tls(directory: &TempDir) -> (TraceCollector, [PathBuf; 2]) {
    let authority = || {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    };
    let (own, stranger) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &own).unwrap().pem();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
            PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        )
        .unwrap();
    let files = [("own.pem", own.pem()), ("stranger.pem", stranger.pem())].map(|(name, pem)| {
        let path = directory.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path
    });
    let collector = TraceCollector::start_with_tls(TlsAcceptor::from(Arc::new(config))).await;
    (collector, files)
}

#[tokio::test]
async fn by_tls_only_a_verified_collector_gets_spans() {
    let rig = TestRig::new().await;
    let directory = TempDir::new().unwrap();
    let (collector, [own, stranger]) = collector_with_tls(&directory).await;
    for (authority, spans) in [(None, 0), (Some(stranger), 0), (Some(own), 6)] {
        rig.add_image(&format!("image/{}.png", fastrand::u64(..)))
            .await;
        let mut more = trace_settings(&collector).to_vec();
        let path = authority.map(|path| path.to_str().unwrap().to_owned());
        more.extend(
            path.iter()
                .map(|path| ("OTEL_EXPORTER_OTLP_CERTIFICATE", path.as_str())),
        );
        let (code, logs) = run_migration(&rig, &more).await;
        assert_eq!(code, Some(0), "{logs:?}");
        assert_eq!(collector.spans().len(), spans, "{logs:?}");
        // A process that ends at once may not wait for the attempt's end.
        let lines = [EXPORT_FAILED_LINE, LAST_EXPORT_FAILED_LINE];
        let has_any = |log: &String| lines.iter().any(|line| log.contains(line));
        let is_told = logs.iter().all(has_any);
        assert_eq!(is_told, spans == 0, "{logs:?}");
    }
}
