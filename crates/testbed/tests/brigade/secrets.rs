//! Passwords, keys and tokens are seen nowhere: not in logs at their most talkative, not in errors,
//! not in what the processes answer, not in what the system shows of them.

use std::path::Path;
use std::process::Command;

use bucket_brigade_testbed::process::{ChildProcess, binary_path};
use bucket_brigade_testbed::{Cluster, Fault, FaultEffect};

use crate::http_endpoint::{free_address, http_get};
use crate::rig::{TestRig, wait_for_exit, wait_until};
use crate::trace::collector::TraceCollector;

const PASSWORD: &str = "mArkerPassword";
const KEY: &str = "mArkerSecretKey";
const TOKEN: &str = "mArkerSessionToken";
const HEADERS: &str = "authorization=Bearer%20mArkerCollectorKey";
const CREDENTIALS: &str = "Bearer mArkerCollectorKey";
const PROGRAMS: [&str; 2] = ["feeder", "consumer"];

/// Every secret there is, and logs at their most talkative.
fn secrets<'a>(database_url: &'a str, format: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("DATABASE_URL", database_url),
        ("AWS_SECRET_ACCESS_KEY", KEY),
        ("AWS_SESSION_TOKEN", TOKEN),
        ("RUST_LOG", "trace"),
        ("LOG_FORMAT", format),
    ]
}

fn with_password(url: &str) -> String {
    url.replace(":postgres@", &format!(":{PASSWORD}@"))
}

/// Fails when a secret is in `text`, and shows where.
fn assert_no_secret(text: &str, whose: &str) {
    let result: Vec<&str> = text
        .lines()
        .filter(|line| line.contains("mArker"))
        .take(3)
        .collect();
    assert!(
        result.is_empty(),
        "{whose} prints a secret:\n{}",
        result.join("\n")
    );
}

/// The whole log of a process that ended.
async fn whole_log(process: &mut ChildProcess) -> (Option<i32>, String) {
    let code = wait_for_exit(process).await.code;
    (code, process.log_tail(usize::MAX))
}

/// Runs both programs to their end and looks for secrets in what they say.
async fn fail_with_code(rig: &TestRig, more: &[(&str, &str)], expected: i32, words: &str) {
    for program in PROGRAMS {
        let (code, log) = whole_log(&mut rig.spawn(program, more, &[])).await;
        assert_no_secret(&log, program);
        let last = log.lines().last().unwrap_or_default();
        assert_eq!(code, Some(expected), "{program}: {last}");
        assert!(log.contains(words), "{program}: no '{words}': {last}");
    }
}

/// What the system lets every user read of a process, as `ps` does.
fn world_readable(process: &ChildProcess) -> String {
    // Elsewhere there are no such files.
    if !cfg!(target_os = "linux") {
        return String::new();
    }
    let directory = format!("/proc/{}", process.id().unwrap());
    let read = |file| std::fs::read(format!("{directory}/{file}")).unwrap();
    let arguments = read("cmdline");
    assert!(!arguments.is_empty(), "{} has ended", process.name());
    let bytes = [arguments, read("comm"), read("status")].concat();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A whole run in which something of everything happens.
async fn assert_run_keeps_secrets(format: &str) {
    let rig = TestRig::new().await;
    rig.add_images(3).await;
    rig.add_row("image/missing.png").await;
    rig.send_message("no message of ours").await;
    let url = with_password(&rig.application.database_url);
    let address = free_address();
    let collector = TraceCollector::start().await;
    let mut settings = secrets(&url, format);
    settings.push(("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()));
    settings.push(("OTEL_EXPORTER_OTLP_HEADERS", HEADERS));
    settings.push(("METRICS_ADDR", &address));
    let mut consumer = rig.spawn_consumer(&settings);
    settings.pop();
    let mut feeder = rig.spawn("feeder", &settings, &[]);
    for process in [&consumer, &feeder] {
        // Between fork and exec there are none.
        let arguments = format!("/proc/{}/cmdline", process.id().unwrap());
        let is_started = async || std::fs::read(&arguments).is_ok_and(|read| !read.is_empty());
        if cfg!(target_os = "linux") {
            wait_until("the process's arguments", is_started).await;
        }
        assert_no_secret(&world_readable(process), "the list of processes");
    }
    let (code, log) = whole_log(&mut feeder).await;
    assert_eq!(code, Some(2), "{}", log.lines().last().unwrap_or_default());
    assert_no_secret(&log, "feeder");
    assert_eq!(rig.count_rows("moves").await, 3);
    for path in ["/metrics", "/healthz"] {
        assert_no_secret(&http_get(&address, path).await, path);
    }
    consumer.terminate().unwrap();
    let (code, log) = whole_log(&mut consumer).await;
    assert_eq!(code, Some(0));
    // The libraries were at their most talkative indeed.
    assert!(log.contains("TRACE"), "nothing is traced");
    assert_no_secret(&log, "consumer");
    // Only the collector received its headers, and nothing of the others'.
    let requests = collector.requests();
    assert!(
        !requests.is_empty()
            && requests
                .iter()
                .all(|one| one["authorization"] == CREDENTIALS)
    );
    assert_no_secret(&format!("{:?}", collector.spans()), "a span");
}

#[tokio::test]
async fn a_run_prints_none_in_text() {
    assert_run_keeps_secrets("text").await;
}

#[tokio::test]
async fn a_run_prints_none_in_json() {
    assert_run_keeps_secrets("json").await;
}

#[tokio::test]
async fn nor_do_wrong_settings() {
    let rig = TestRig::new().await;
    let user = format!("https://me:{PASSWORD}@sqs.example/1/images");
    let signed =
        format!("https://sqs.example/1/images?X-Amz-Credential={KEY}&X-Amz-Signature={TOKEN}");
    let url = |url: &str| url.replace("PW", PASSWORD);
    for (name, value) in [
        ("QUEUE_URL", user),
        ("QUEUE_URL", signed),
        ("QUEUE_URL", url("postgres://app:PW@db/app")),
        ("AWS_ENDPOINT_URL", url("http://me:PW@localhost")),
        ("AWS_ENDPOINT_URL_S3", url("http://localhost/?key=PW")),
        ("DATABASE_URL", url("mysql://app:PW@db/app")),
        ("DATABASE_URL", url("postgres://app:PW@db:port/app")),
        ("DATABASE_URL", url("postgres://app:1?sslmode=PW@db/app")),
        ("DATABASE_URL", url("postgres://app:a/PW@db/app")),
        ("DATABASE_URL", url("postgres://app:%ffPW@db/app")),
        ("DATABASE_URL", url("postgres://app:x@PW#y@db/app")),
        ("DATABASE_URL", url("postgres://app:1/PW@db/app")),
        ("DATABASE_URL", url("postgres://app:1?PW@db/app")),
        ("DATABASE_URL", url("PW")),
    ] {
        let mut settings = secrets("-", "json");
        settings.retain(|(other, _)| *other != "DATABASE_URL");
        if name != "DATABASE_URL" {
            settings.push(("DATABASE_URL", &rig.application.database_url));
        }
        settings.push((name, &value));
        fail_with_code(&rig, &settings, 64, name).await;
    }
}

#[tokio::test]
async fn nor_does_a_database_out_of_reach() {
    let rig = TestRig::new().await;
    let (_, port) = free_address()
        .rsplit_once(':')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let url = format!("postgres://app:{PASSWORD}@127.0.0.1:{port}/app");
    fail_with_code(
        &rig,
        &secrets(&url, "json"),
        69,
        "cannot connect to the database",
    )
    .await;
    // As in libpq's variables.
    let mut settings = secrets("-", "json");
    settings.extend([
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", &port),
        ("PGUSER", "app"),
        ("PGPASSWORD", PASSWORD),
    ]);
    fail_with_code(&rig, &settings, 69, "cannot connect to the database").await;
}

#[tokio::test]
async fn nor_does_a_wrong_password() {
    let cluster = Cluster::start().await.unwrap();
    std::fs::write(
        cluster.directory().join("data/pg_hba.conf"),
        "host all postgres 127.0.0.1/32 trust\nhost all all 127.0.0.1/32 scram-sha-256\n",
    )
    .unwrap();
    cluster.restart().await.unwrap();
    let rig = TestRig::new().await;
    let url = cluster
        .url("postgres")
        .replace("postgres:postgres@", &format!("app:{PASSWORD}@"));
    fail_with_code(
        &rig,
        &secrets(&url, "json"),
        69,
        "password authentication failed",
    )
    .await;
}

#[tokio::test]
async fn nor_do_refused_credentials() {
    let rig = TestRig::new().await;
    // What SQS says of a signature that does not fit quotes the request's own headers.
    let message = format!(
        "The request signature we calculated does not match the signature you provided.\n\n\
         The Canonical String for this request should have been\n'POST\n/\n\nx-amz-security-token:{TOKEN}\n'"
    );
    let code = "SignatureDoesNotMatch".to_owned();
    let refusal = FaultEffect::Error {
        status: 403,
        code,
        message,
    };
    let _queue = rig
        .cloud
        .inject_fault(Fault::new("GetQueueAttributes", refusal.clone()));
    let url = with_password(&rig.application.database_url);
    fail_with_code(
        &rig,
        &secrets(&url, "text"),
        77,
        "does not match the signature",
    )
    .await;
    fail_with_code(
        &rig,
        &secrets(&url, "json"),
        77,
        "does not match the signature",
    )
    .await;
}

#[tokio::test]
async fn nor_do_credentials_that_are_refused_on_the_way() {
    let rig = TestRig::new().await;
    rig.open_run().await;
    let id = rig.add_image("image/a.png").await;
    rig.feed_row(&id, "image/a.png").await;
    let message = format!("The provided token has expired.\nx-amz-security-token:{TOKEN}");
    let code = "ExpiredToken".to_owned();
    let expired = FaultEffect::Error {
        status: 400,
        code,
        message,
    };
    let outage = rig.cloud.inject_fault(Fault::new("CopyObject", expired));
    let url = with_password(&rig.application.database_url);
    let address = free_address();
    let mut settings = secrets(&url, "json");
    settings.extend([
        ("METRICS_ADDR", address.as_str()),
        ("CONDITIONAL_COPY", "on"),
    ]);
    let mut consumer = rig.spawn_consumer(&settings);
    wait_until("the outage", async || {
        http_get(&address, "/healthz")
            .await
            .contains("ExpiredToken")
    })
    .await;
    assert_no_secret(&http_get(&address, "/healthz").await, "/healthz");
    outage.remove();
    wait_until("the move", async || rig.count_rows("moves").await == 1).await;
    consumer.terminate().unwrap();
    let (_, log) = whole_log(&mut consumer).await;
    assert_no_secret(&log, "consumer");
}

/// Runs a program in a directory, with these variables alone.
fn output(
    program: &str,
    directory: &Path,
    environment: &[(&str, &str)],
    arguments: &[&str],
) -> String {
    let mut command = Command::new(binary_path(program).unwrap());
    command
        .current_dir(directory)
        .env_clear()
        .envs(environment.iter().copied())
        .args(arguments);
    let output = command.output().unwrap();
    [output.stdout, output.stderr]
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .concat()
}

#[tokio::test]
async fn nor_does_the_help() {
    let url = format!("postgres://app:{PASSWORD}@db/app");
    let queue = format!("https://me:{KEY}@sqs.example/1/images");
    let mut environment = secrets(&url, "json");
    environment.extend([("QUEUE_URL", queue.as_str()), ("PGPASSWORD", PASSWORD)]);
    for program in PROGRAMS {
        let help = output(program, Path::new("/"), &environment, &["--help"]);
        assert!(help.contains("DATABASE_URL"), "{help}");
        assert_no_secret(&help, program);
    }
}

#[tokio::test]
async fn nor_does_a_file_of_settings_that_cannot_be_read() {
    let directory = tempfile::tempdir().unwrap();
    for line in [
        format!("DATABASE_URL=postgres://app:{PASSWORD} with a space@db/app"),
        format!("DATABASE_URL=postgres://app:{PASSWORD} with a space@db/app?sslmode=require"),
        format!("DATABASE_URL='postgres://app:{PASSWORD}"),
        format!("{PASSWORD}@db/app"),
        format!("PGPASSWORD={PASSWORD}\0"),
    ] {
        std::fs::write(
            directory.path().join(".env"),
            format!("IMAGES_TABLE=images\n{line}\n"),
        )
        .unwrap();
        for program in PROGRAMS {
            let said = output(program, directory.path(), &[], &[]);
            assert!(said.contains(".env"), "{said}");
            assert_no_secret(&said, program);
        }
    }
}
