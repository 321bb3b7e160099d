//! What nobody needs any more goes, and nothing else.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};

use super::before::judge;
use super::scene::Scene;
use super::snapshot::Snapshot;
use super::undo::Back;
use crate::seed::SeededRowKind;
use crate::terminal::TerminalSession;

const CLEAN: [&str; 3] = ["clean", "--older-than", "0s"];
const PROMPT: &str = "Type the bucket's name to remove them: ";

pub(super) async fn clean(scene: &mut Scene, back: &Back) -> Result<()> {
    scene.chapter(
        "Clean",
        "Consumers and application go on meanwhile. What moved again has not been verified since, so its sources stay, whoever confirms it.",
    );
    refused(scene).await?;
    let before = Snapshot::take(scene).await?;
    let told = scene
        .ask(
            &[&CLEAN[..], &["--confirm", "images-old"]].concat(),
            &[0, 2],
        )
        .await?;
    let gone = check(scene, &before, told.number("removed")?).await?;
    // One that the application wrote before it could move again has no move; another row may share its source.
    let moves = scene.moves().await?;
    let again: Vec<&String> = back
        .iter()
        .filter(|(id, _)| moves.contains_key(*id))
        .map(|(_, path)| path)
        .collect();
    scene.holds(
        again.iter().all(|path| !gone.contains(*path)),
        format!(
            "the sources of the {} rows that moved again are all there",
            again.len()
        ),
    )?;
    scene
        .transcript
        .say("Verified anew, they may go. On a terminal the name is asked for; a wrong one first:");
    let missing = scene.unchanged(SeededRowKind::Missing).await?;
    let told = scene.ask(&["verify", "--full"], &[1]).await?;
    judge(scene, &told, |id, code| {
        code == "NoObject" && missing.contains(id)
    })
    .await?;
    let before = Snapshot::take(scene).await?;
    typed(scene, "images-new", &[64]).await?;
    let nothing_gone = scene.sources();
    let screen = typed(scene, "images-old", &[0, 2]).await?;
    ensure!(nothing_gone > scene.sources(), "nothing was removed");
    let removed = scene.number("SELECT count(*) FROM bucket_brigade.removals WHERE removed_at IS NOT NULL AND NOT is_orphan").await?;
    let now = removed - scene.removed.len();
    scene.holds(
        screen.contains(&format!("{now} objects removed from bucket images-old")),
        format!("it tells of {now} objects, as the ledger does"),
    )?;
    check(scene, &before, now).await?;
    afterwards(scene).await
}

/// Neither without the name, nor with another.
async fn refused(scene: &mut Scene) -> Result<()> {
    let before = scene.sources();
    let told = scene.ask(&CLEAN, &[0]).await?;
    let unverified =
        "SELECT count(*) FROM bucket_brigade.moves WHERE (verified_at > moved_at) IS NOT TRUE";
    let unverified = scene.number(unverified).await?;
    scene.holds(
        told.json["done"] == false && told.number("unverified")? == unverified,
        format!("it only tells; {unverified} moves are not verified since they were made"),
    )?;
    scene
        .see(&[&CLEAN[..], &["--confirm", "images-new"]].concat(), 64)
        .await?;
    scene.holds(
        scene.sources() == before,
        "another name than the bucket's removes nothing",
    )
}

/// Exactly those sources are gone that may go: all that may go still, and none that might not go before. What
/// the application does meanwhile only makes them fewer.
async fn check(scene: &mut Scene, before: &Snapshot, told: usize) -> Result<BTreeSet<String>> {
    let after = Snapshot::take(scene).await?;
    let gone = after.gone_since(before);
    let (might, still_may) = (before.may_go(before), after.may_go(before));
    let wrong: Vec<_> = gone.difference(&might).take(3).collect();
    scene.holds(
        wrong.is_empty(),
        format!("each of the {} sources that are gone was moved off, verified since, named by no row, and its copy is what it was{}", gone.len(), but(&wrong)),
    )?;
    let kept: Vec<_> = still_may.difference(&gone).take(3).collect();
    scene.holds(
        kept.is_empty(),
        format!(
            "no other such source is left; {} sources are{}",
            after.sources.len(),
            but(&kept)
        ),
    )?;
    scene.holds(gone.len() == told, "it told of as many")?;
    scene.removed.extend(gone.iter().cloned());
    Ok(gone)
}

fn but(paths: &[&String]) -> String {
    if paths.is_empty() {
        String::new()
    } else {
        format!("; but {paths:?}")
    }
}

/// Somebody types a name at the prompt; what the screen showed.
async fn typed(scene: &mut Scene, name: &str, codes: &[i32]) -> Result<String> {
    let before = scene.sources();
    let mut terminal = TerminalSession::start("feeder", &scene.operators_environment(), &CLEAN)?;
    terminal.wait_for_text(PROMPT).await?;
    ensure!(
        scene.sources() == before,
        "an object is gone before the name was typed"
    );
    terminal.type_line(name).await?;
    let (code, screen) = terminal.wait_for_exit().await?;
    scene.write_down(&CLEAN, &screen, code);
    ensure!(
        codes.contains(&code),
        "feeder clean ended with {code}:\n{screen}"
    );
    if code == 64 {
        scene.holds(scene.sources() == before, "nothing was removed")?;
    }
    Ok(screen)
}

/// Everything resolves, moves off removed sources cannot be undone, and orphans go too.
async fn afterwards(scene: &mut Scene) -> Result<()> {
    let missing = scene.unchanged(SeededRowKind::Missing).await?;
    let told = scene.ask(&["verify", "--full"], &[1]).await?;
    judge(scene, &told, |id, code| {
        code == "NoObject" && missing.contains(id)
    })
    .await?;
    let told = scene.ask(&["rollback", "--all"], &[0, 2]).await?;
    let reasons = &told.json["left_alone_by_reason"];
    let cannot = reasons["source_removed"].as_u64().unwrap_or_default();
    scene.holds(
        cannot > 0,
        format!("{cannot} moves cannot be undone any more: their sources are removed"),
    )?;
    scene
        .transcript
        .say("Copies that lost their row to the application while they were made:");
    let orphans = scene
        .number("SELECT count(*) FROM bucket_brigade.orphans")
        .await?;
    let told = scene
        .ask(&["clean", "--orphans", "--confirm", "images-new"], &[0, 2])
        .await?;
    if orphans == 0 {
        return scene.holds(told.number("objects")? == 0, "there are none");
    }
    let left = scene
        .number("SELECT count(*) FROM bucket_brigade.orphans")
        .await?;
    scene.holds(
        told.number("removed")? == orphans - left && told.number("left_alone")? == left,
        format!(
            "{} of {orphans} are gone; the others are named by a row, or are not our copy any more",
            orphans - left
        ),
    )
}
