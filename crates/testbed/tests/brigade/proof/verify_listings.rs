//! verify by listings: what they spare, and that they hide nothing.

use bucket_brigade_testbed::{Fault, FaultEffect};

use crate::rig::{TestRig, wait_until};

const ROWS: usize = 60;

/// What only a look at each object tells, in the midst of many that are sound.
async fn add_rows_with_mismatches() -> TestRig {
    let rig = TestRig::new().await;
    rig.insert_moved_rows(ROWS).await;
    rig.put_object("images-new", "avatar/10.png", b"the application's")
        .await;
    rig.delete_object("images-new", "avatar/11.png").await;
    rig.delete_object("images-old", "image/12.png").await;
    rig.put_object("images-old", "image/13.png", b"newer").await;
    rig.execute_sql(
        "UPDATE bucket_brigade.moves SET size_bytes = 1 WHERE new_path = 'avatar/14.png'",
    )
    .await;
    rig
}

async fn assert_all_found(rig: &TestRig) {
    let result = rig.run_json_command(&["verify", "--listings"]).await;
    let codes = result.sorted_fields("mismatches", "code");
    let expected = ["CopyGone", "SizeDiffers", "SourceChanged", "SourceGone"];
    assert_eq!(codes, expected, "{}", result.json);
    assert_eq!((result.code, result.number_of("outdated")), (1, 1));
    let sound = i64::try_from(ROWS - 5).unwrap();
    assert_eq!(result.number_of("sound"), sound);
}

fn head_count(rig: &TestRig) -> u64 {
    let counts = rig.cloud.request_counts();
    counts.count_operation_by("feeder", "HeadObject")
}

/// Whether the copies bear a later second than their sources, as HTTP's dates have it.
async fn write_copies_anew(rig: &TestRig) {
    wait_until("a later second", async || {
        for number in 0..ROWS {
            let key = format!("avatar/{number}.png");
            if rig.object_exists("images-new", &key).await && !(10..15).contains(&number) {
                rig.put_object("images-new", &key, b"one for all").await;
            }
        }
        let s3 = rig.cloud.s3_client();
        let modified = async |bucket: &str, key: &str| {
            let head = s3.head_object().bucket(bucket).key(key).send().await;
            head.unwrap().last_modified().unwrap().secs()
        };
        modified("images-new", "avatar/0.png").await > modified("images-old", "image/59.png").await
    })
    .await;
}

#[tokio::test]
async fn listings_spare_the_looks_and_hide_nothing() {
    let rig = add_rows_with_mismatches().await;
    // XML has no form for it.
    rig.put_object("images-old", "image/20\u{1}.png", b"another's")
        .await;
    write_copies_anew(&rig).await;
    assert_all_found(&rig).await;
    let heads = head_count(&rig);
    // Five rows that are not sound, the first of each listing, and the checks at the start.
    assert!(heads < 30, "{heads} HEADs for {ROWS} moves");
}

#[tokio::test]
async fn where_no_listing_can_be_had_each_object_is_asked_for() {
    for effect in [
        FaultEffect::error(403, "AccessDenied"),
        FaultEffect::error(501, "NotImplemented"),
        FaultEffect::EmptyOk,
    ] {
        let rig = add_rows_with_mismatches().await;
        let list = Fault::new("ListObjectsV2", effect).caller("feeder");
        let list = rig.cloud.inject_fault(list);
        assert_all_found(&rig).await;
        assert!(list.hits() > 0);
        assert!(head_count(&rig) >= 2 * ROWS as u64);
    }
}

#[tokio::test]
async fn in_full_mode_rows_that_were_not_moved_are_found_in_listings_too() {
    let rig = TestRig::new().await;
    for number in 0..ROWS {
        rig.add_image(&format!("image/{number}.png")).await;
    }
    rig.delete_object("images-old", "image/30.png").await;
    rig.open_run().await;
    let result = rig
        .run_json_command(&["verify", "--full", "--listings"])
        .await;
    let codes = result.sorted_fields("mismatches", "code");
    assert_eq!((result.code, codes), (1, vec!["NoObject".to_owned()]));
    let heads = head_count(&rig);
    assert!(heads < 20, "{heads} HEADs for {ROWS} rows");
}
