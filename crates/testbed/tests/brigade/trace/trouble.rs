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

use super::collector::{Collector, Manner};
use super::{migrate, on};
use crate::rig::{Rig, end, eventually, stop};

const BARRED: &str = "traces cannot be exported, and the work goes on without them";
const TOO_LATE: &str = "the last traces could not be exported";

/// Nothing listens there.
const NOWHERE: &str = "http://127.0.0.1:9";

async fn timed(rig: &Rig, more: &[(&str, &str)]) -> (Duration, [String; 2]) {
    for _ in 0..60 {
        rig.image(&format!("image/{}.png", fastrand::u64(..))).await;
    }
    let began = Instant::now();
    let (code, logs) = migrate(rig, more).await;
    assert_eq!(code, Some(0), "{logs:?}");
    (began.elapsed(), logs)
}

#[tokio::test]
async fn a_collector_in_trouble_slows_nothing_and_is_told_once() {
    let rig = Rig::new().await;
    let collector = Collector::start().await;
    let often = ("OTEL_BSP_SCHEDULE_DELAY", "50");
    let (ordinary, _) = timed(&rig, &[]).await;
    for (manner, endpoint, timeout, told) in [
        (Manner::Takes, NOWHERE, "10000", BARRED),
        (Manner::Answers(500), collector.endpoint(), "10000", BARRED),
        (Manner::Answers(503), collector.endpoint(), "10000", BARRED),
        (Manner::Hangs, collector.endpoint(), "200", BARRED),
        (Manner::Hangs, collector.endpoint(), "10000", TOO_LATE),
    ] {
        collector.behave(manner);
        let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint);
        let patience = ("OTEL_EXPORTER_OTLP_TIMEOUT", timeout);
        let (took, logs) = timed(&rig, &[at, often, patience]).await;
        // Each of the two processes gives the last spans a second, and no more.
        let most = 2 * ordinary + Duration::from_secs(3);
        assert!(took < most, "{manner:?}: {took:?}, without {ordinary:?}");
        for log in logs {
            assert_eq!(log.matches(told).count(), 1, "{manner:?}: {log}");
            // Besides, at most that the last ones were too late.
            assert!(log.matches("WARN").count() <= 2, "{manner:?}: {log}");
        }
    }
    assert_eq!(rig.count("moves").await, 6 * 60);
    assert_eq!(collector.spans().len(), 0);
}

#[tokio::test]
async fn a_collector_that_comes_back_is_told_too() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let collector = Collector::start().await;
    collector.behave(Manner::Answers(401));
    let often = ("OTEL_BSP_SCHEDULE_DELAY", "50");
    let consumer = rig.consumer(&[on(&collector)[0], often]);
    let said = async |words: &str| {
        eventually(words, async || consumer.log_tail(400).contains(words)).await;
    };
    let path = "image/a.png";
    rig.feed(&rig.image(path).await, path).await;
    said("the collector answers 401").await;
    collector.behave(Manner::Takes);
    let path = "image/b.png";
    rig.feed(&rig.image(path).await, path).await;
    said("traces are exported again").await;
    stop(consumer).await;
}

#[tokio::test]
async fn a_collector_that_hangs_does_not_outlast_the_grace() {
    let rig = Rig::new().await;
    rig.open_run().await;
    let collector = Collector::start().await;
    collector.behave(Manner::Hangs);
    let grace = ("SHUTDOWN_GRACE", "4s");
    let mut consumer = rig.consumer(&[on(&collector)[0], grace]);
    let path = "image/a.png";
    rig.feed(&rig.image(path).await, path).await;
    rig.drained().await;
    let began = Instant::now();
    consumer.terminate().await.unwrap();
    let ended = end(&mut consumer).await;
    let took = began.elapsed();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains(TOO_LATE), "{}", ended.log);
    assert!(took < Duration::from_secs(4), "{took:?}");
}

#[tokio::test]
async fn what_cannot_be_spoken_is_told_before_anything_is_touched() {
    let rig = Rig::new().await;
    let at = ("OTEL_EXPORTER_OTLP_ENDPOINT", NOWHERE);
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
        ("OTEL_TRACES_SAMPLER", "xray"),
    ] {
        for program in ["feeder", "consumer"] {
            let ended = rig.run(program, &[at, (name, value)]).await;
            assert_eq!(ended.code, Some(64), "{program}: {}", ended.log);
            assert!(ended.log.contains("OTEL_"), "{program}: {}", ended.log);
        }
    }
}

/// A collector by TLS, whose authority is in the first file; in the second is a stranger.
async fn by_tls(directory: &TempDir) -> (Collector, [PathBuf; 2]) {
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
    let collector = Collector::by_tls(TlsAcceptor::from(Arc::new(config))).await;
    (collector, files)
}

#[tokio::test]
async fn by_tls_only_a_collector_that_is_vouched_for_gets_spans() {
    let rig = Rig::new().await;
    let directory = TempDir::new().unwrap();
    let (collector, [own, stranger]) = by_tls(&directory).await;
    for (authority, spans) in [(None, 0), (Some(stranger), 0), (Some(own), 6)] {
        rig.image(&format!("image/{}.png", fastrand::u64(..))).await;
        let mut more = on(&collector).to_vec();
        let path = authority.map(|path| path.to_str().unwrap().to_owned());
        more.extend(
            path.iter()
                .map(|path| ("OTEL_EXPORTER_OTLP_CERTIFICATE", path.as_str())),
        );
        let (code, logs) = migrate(&rig, &more).await;
        assert_eq!(code, Some(0), "{logs:?}");
        assert_eq!(collector.spans().len(), spans, "{logs:?}");
        let is_told = logs.iter().all(|log| log.contains(BARRED));
        assert_eq!(is_told, spans == 0, "{logs:?}");
    }
}
