//! The full run: paused, limited, resumed.

use std::time::Duration;

use anyhow::Result;

use super::scene::{Scene, slow_copies};
use crate::cloud::{Fault, FaultEffect};
use crate::run::read_moved_rows;
use crate::seed::{SeededRow, SeededRowKind};

/// Within two seconds, says the documentation.
const OBEYED: Duration = Duration::from_secs(2);

/// How long the fleet is watched.
const WATCHED: Duration = Duration::from_secs(4);

/// Bodies of messages that are not ours.
pub(super) const POISON: [&str; 3] = [
    "a message of another system",
    r#"{"id":"one","path":"image/a.png"}"#,
    r#"{"id":"1","path":"logo/a.png"}"#,
];

/// What the fleet has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Deeds {
    copies: u64,
    sends: u64,
    moved: usize,
}

pub(super) async fn run(scene: &mut Scene) -> Result<()> {
    archive(scene);
    scene.chapter(
        "Full run",
        &format!(
            "Everything is fed. There will be failures: {} rows name an image that is not there, {} images are archived, \
             and another system sends {} messages of its own to the queue by mistake.",
            scene.seeded.count_kind(SeededRowKind::Missing),
            scene.archived.len(),
            POISON.len()
        ),
    );
    let feeder = scene.feeder("feeder-full", &[])?;
    poison(scene).await?;
    let some = scene.images * 15 / 100;
    scene
        .eventually("the first images to move", async || {
            Ok(read_moved_rows(&scene.pool).await? > some)
        })
        .await?;
    scene.see(&["status"], 0).await?;
    pause(scene).await?;
    let rate = limit(scene).await?;
    lift(scene, rate).await?;
    scene
        .transcript
        .say("The feeder, from its start to its end:");
    let code = scene.feeder_ends(feeder, &[]).await?;
    scene.holds(code == 2, "it says that some rows failed")?;
    let left = scene.unchanged(SeededRowKind::ToMove).await?;
    let all_archived = left.iter().all(|id| scene.archived.contains_key(id));
    scene.holds(
        all_archived,
        format!(
            "of the images that are there, all have moved but {} that are archived",
            left.len()
        ),
    )
}

/// Archives some images, evenly spread: S3 refuses to copy such an object until it is restored.
fn archive(scene: &mut Scene) {
    // The first fault that strikes counts: these before the slowness of all copies.
    scene.slow_copies = None;
    let plain = |row: &&SeededRow| !row.shared && row.path.contains("/avatar-");
    let rows: Vec<&SeededRow> = scene
        .seeded
        .rows_of_kind(SeededRowKind::ToMove)
        .filter(plain)
        .collect();
    let count = (scene.images / 1000).max(3);
    let chosen = rows.iter().step_by(rows.len() / count).take(count);
    let archive = |row: &&SeededRow| {
        let refused = Fault::new("CopyObject", FaultEffect::error(403, "InvalidObjectState"));
        let refused = refused
            .caller("consumer")
            .key_contains(scene.new_path(&row.path));
        (row.id.clone(), scene.stage.cloud.inject_fault(refused))
    };
    let archived = chosen.map(archive).collect();
    scene.archived = archived;
    scene.slow_copies = Some(slow_copies(&scene.stage));
}

async fn poison(scene: &Scene) -> Result<()> {
    let sqs = scene.stage.cloud.sqs_client_for("stranger");
    for body in POISON {
        let message = sqs.send_message().queue_url(&scene.stage.queue.url);
        message.message_body(body).send().await?;
    }
    Ok(())
}

async fn deeds(scene: &Scene) -> Result<Deeds> {
    let requests = scene.stage.cloud.request_counts();
    Ok(Deeds {
        copies: requests.count_operation_by("consumer", "CopyObject"),
        sends: requests.count_operation_by("feeder", "SendMessageBatch"),
        moved: read_moved_rows(&scene.pool).await?,
    })
}

async fn pause(scene: &mut Scene) -> Result<()> {
    scene
        .transcript
        .say("In the middle of it somebody needs the database for something else:");
    let reason = ["pause", "--by", "ana", "--reason", "release 4.2 goes out"];
    let told = scene.ask(&reason, &[0]).await?;
    scene.holds(told.json["paused"] == true, "it says so")?;
    tokio::time::sleep(OBEYED).await;
    let before = deeds(scene).await?;
    tokio::time::sleep(WATCHED).await;
    let after = deeds(scene).await?;
    scene.holds(
        before == after,
        format!(
            "two seconds after the command the whole fleet stands still: not one copy, send or commit in {} s",
            WATCHED.as_secs()
        ),
    )?;
    let told = scene.ask(&["status"], &[0]).await?;
    let is_told =
        told.json["state"] == "paused" && told.json["reason"] == "by ana: release 4.2 goes out";
    scene.holds(is_told, "`status` tells who and why")
}

/// Limits the fleet and lets it go on; the limit.
async fn limit(scene: &mut Scene) -> Result<usize> {
    let rate = (scene.images / 50).min(100);
    let told = scene
        .ask(&["limit", "--rate", &rate.to_string()], &[0])
        .await?;
    scene.holds(told.json["rate"] == rate_of(rate), "the limit stands")?;
    let told = scene.ask(&["resume"], &[0]).await?;
    scene.holds(told.json["was_paused"] == true, "it had been paused")?;
    tokio::time::sleep(OBEYED).await;
    let moved = moved_within(scene, WATCHED).await?;
    let most = rate * usize::try_from(WATCHED.as_secs())?;
    scene.holds(
        // What is in flight when the watch begins comes on top.
        moved <= most * 11 / 10 + 5 && moved * 10 >= most * 6,
        format!(
            "{moved} images move in {} s, at most {most} are allowed",
            WATCHED.as_secs()
        ),
    )?;
    let told = scene.ask(&["status"], &[0]).await?;
    let reason = told.json["reason"].as_str().unwrap_or_default();
    let is_told = told.json["state"] == "running" && reason.starts_with("limited to");
    scene.holds(is_told, "`status` tells that it runs, and what bounds it")?;
    Ok(rate)
}

async fn lift(scene: &mut Scene, rate: usize) -> Result<()> {
    let told = scene.ask(&["limit", "none"], &[0]).await?;
    scene.holds(told.json["rate"].is_null(), "no limit stands")?;
    tokio::time::sleep(OBEYED).await;
    let moved = moved_within(scene, WATCHED / 2).await?;
    let would_be = rate * usize::try_from((WATCHED / 2).as_secs())?;
    scene.holds(
        moved * 10 > would_be * 12,
        format!(
            "the fleet goes on: {moved} images in {} s",
            (WATCHED / 2).as_secs()
        ),
    )
}

async fn moved_within(scene: &Scene, time: Duration) -> Result<usize> {
    let before = read_moved_rows(&scene.pool).await?;
    tokio::time::sleep(time).await;
    Ok(read_moved_rows(&scene.pool).await? - before)
}

#[expect(clippy::cast_precision_loss, reason = "at most 100")]
fn rate_of(rate: usize) -> f64 {
    rate as f64
}
