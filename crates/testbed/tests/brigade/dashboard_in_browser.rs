//! The live page in a real browser: what it shows, whether everyone can use it, and that it loads nothing
//! from elsewhere. Skipped, with a word, where Chromium or axe-core is missing.

use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::browser::{HeadlessBrowser, axe_source};
use crate::dashboard::open_two_runs;
use crate::http_endpoint::{free_address, http_get};
use crate::installed::skip_test;
use crate::rig::{TestRig, stop_consumer, wait_until};

const DASHBOARD_TOKEN: &str = "a-token-of-some-length";

/// How much there is to see.
struct RunScale {
    rows: u32,
    rows_per_second: u32,
    /// The middle of the run, in rows moved.
    middle: u32,
}

/// A small run; a larger one where the pictures in the documentation are taken of it.
fn run_scale() -> RunScale {
    let [rows, rows_per_second, middle] = if takes_screenshots() {
        [12_000, 100, 5000]
    } else {
        [600, 20, 200]
    };
    RunScale {
        rows,
        rows_per_second,
        middle,
    }
}

/// With `SCREENSHOTS` in the environment the pictures in the documentation are taken anew.
fn takes_screenshots() -> bool {
    std::env::var_os("SCREENSHOTS").is_some()
}

/// Rows of which each has a picture, but a few that have none.
async fn add_pictures(rig: &TestRig, rows: u32) {
    for number in 0..rows {
        let path = format!("image/avatar-{number}.png");
        rig.add_row(&path).await;
        if number % 40 != 7 {
            rig.put_object("images-old", &path, &encode_picture(number))
                .await;
        }
    }
}

/// A circle on a ground of its own colour.
fn encode_picture(number: u32) -> Vec<u8> {
    const SIDE: u32 = 48;
    let shade = |factor: u32| u8::try_from(60 + number * factor % 180).unwrap_or(0);
    let mut pixels = Vec::new();
    for place in 0..SIDE * SIDE {
        let (x, y) = (place % SIDE, place / SIDE);
        let distance = x.abs_diff(SIDE / 2).pow(2) + y.abs_diff(SIDE / 2).pow(2);
        let is_inside = distance < (10 + number % 12).pow(2);
        let colours = if is_inside { [7, 11, 13] } else { [29, 31, 37] };
        pixels.extend(colours.map(shade));
    }
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, SIDE, SIDE);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().unwrap();
    writer.write_image_data(&pixels).unwrap();
    writer.finish().unwrap();
    bytes
}

/// What axe-core finds wrong, each with where, once it has found much that is right.
async fn axe_violations(browser: &mut HeadlessBrowser) -> Value {
    let found = browser.evaluate("axe.run().then((found) => found.passes.length)");
    assert!(
        found.await.as_u64() > Some(20),
        "axe-core looked at nothing"
    );
    browser
        .evaluate(
            "axe.run().then((found) => found.violations.map((one) =>
             `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html).join(' ')}`))",
        )
        .await
}

async fn keep_screenshot(browser: &mut HeadlessBrowser, name: &str) {
    let shot = browser
        .call_method("Page.captureScreenshot", json!({ "format": "png" }))
        .await;
    let path = format!("{}/../../docs/{name}", env!("CARGO_MANIFEST_DIR"));
    let mut decoder = Command::new("base64")
        .arg("--decode")
        .stdin(Stdio::piped())
        .stdout(std::fs::File::create(path).unwrap())
        .spawn()
        .unwrap();
    let mut text = decoder.stdin.take().unwrap();
    text.write_all(shot["data"].as_str().unwrap().as_bytes())
        .unwrap();
    drop(text);
    assert!(decoder.wait().unwrap().success());
}

/// The text of an element.
async fn element_text(browser: &mut HeadlessBrowser, id: &str) -> Value {
    let expression = format!("document.getElementById('{id}').textContent");
    browser.evaluate(&expression).await
}

/// Waits for an element to have this text.
async fn wait_for_text(browser: &mut HeadlessBrowser, id: &str, text: &str) {
    let expression = format!("document.getElementById('{id}').textContent === '{text}'");
    browser.wait_until(&expression).await;
}

/// Pauses, resumes and limits by keyboard alone.
async fn control_by_keyboard(browser: &mut HeadlessBrowser) {
    browser.tab_to("token").await;
    browser.type_text(DASHBOARD_TOKEN).await;
    browser.tab_to("why").await;
    browser.type_text("lunch").await;
    browser.press_key("Enter", 13, "\r").await;
    wait_for_text(browser, "word", "paused").await;
    assert_eq!(
        element_text(browser, "reason").await,
        "by the live page: lunch"
    );
    browser.tab_to("resume").await;
    browser.press_key(" ", 32, " ").await;
    wait_for_text(browser, "word", "running").await;
    browser.tab_to("limit-rate").await;
    browser.type_text("30").await;
    browser.tab_to("limit-copies").await;
    browser.type_text("5").await;
    browser.tab_to("Limit").await;
    browser.press_key(" ", 32, " ").await;
    let limits = "Limits of the whole fleet: 30 rows per second, 5 copies in flight.";
    wait_for_text(browser, "limits", limits).await;
    browser.tab_to("lift").await;
    browser.press_key("Enter", 13, "\r").await;
    wait_for_text(browser, "limits", "Limits of the whole fleet: none.").await;
}

/// At each size and in each scheme: nothing wrong, and nothing to be scrolled sideways.
async fn check_all_viewports(browser: &mut HeadlessBrowser) {
    for (width, height, scheme, picture) in [
        (1100, 2000, "light", Some("page-light.png")),
        (1100, 2000, "dark", Some("page-dark.png")),
        (360, 740, "light", None),
        (360, 740, "dark", None),
    ] {
        browser.set_viewport(width, height, scheme).await;
        // The charts follow the window a moment later.
        let wide = "document.documentElement.scrollWidth";
        let fits = format!("{wide} === document.documentElement.clientWidth");
        browser.wait_until(&fits).await;
        let found = axe_violations(browser).await;
        assert_eq!(found, json!([]), "at {width}, {scheme}");
        if let Some(name) = picture.filter(|_| takes_screenshots()) {
            keep_screenshot(browser, name).await;
        }
    }
}

/// The page, when so many rows have moved and the newest pictures are there.
async fn open_in_mid_run(page: &str, moved: u32) -> HeadlessBrowser {
    let mut browser = HeadlessBrowser::open(page).await;
    browser.set_viewport(1100, 1500, "light").await;
    let shown = "Number(document.getElementById('moved').textContent.replace(',', ''))";
    browser.wait_until(&format!("{shown} >= {moved}")).await;
    let loaded =
        "[...document.querySelectorAll('#thumbnails img')].filter((one) => one.naturalWidth > 0)";
    browser.wait_until(&format!("{loaded}.length === 12")).await;
    browser
}

#[tokio::test]
async fn it_is_accessible_and_requests_no_other_host() {
    let Some(axe) = axe_source() else {
        return skip_test("chromium or axe-core is missing");
    };
    let rig = TestRig::new().await;
    let scale = run_scale();
    add_pictures(&rig, scale.rows).await;
    rig.open_run().await;
    let rate = scale.rows_per_second.to_string();
    assert_eq!(rig.run_feeder(&["limit", "--rate", &rate]).await.code, 0);
    let address = free_address();
    let settings = [
        ("STATUS_ADDR", address.as_str()),
        ("STATUS_TOKEN", DASHBOARD_TOKEN),
        ("STATUS_THUMBNAILS", "true"),
    ];
    let feeder = rig.spawn("feeder", &settings, &[]);
    let consumers = [rig.spawn_consumer(&[]), rig.spawn_consumer(&[])];
    wait_until("the page", async || {
        http_get(&address, "/status.json")
            .await
            .contains("\"view\":{")
    })
    .await;
    let page = format!("http://{address}/");
    let mut browser = open_in_mid_run(&page, scale.middle).await;
    browser.evaluate(&axe).await;
    check_all_viewports(&mut browser).await;
    control_by_keyboard(&mut browser).await;
    assert_eq!(
        axe_violations(&mut browser).await,
        json!([]),
        "after steering"
    );
    assert_eq!(browser.complaints, Vec::<String>::new());
    let bucket = format!("{}/images-new/avatar/", rig.cloud.endpoint_url());
    for url in &browser.requested {
        let is_own = url.starts_with(&page) || url.starts_with(&bucket);
        assert!(is_own || url == "about:blank", "{url}");
    }
    drop(feeder);
    for consumer in consumers {
        stop_consumer(consumer).await;
    }
}

#[tokio::test]
async fn a_run_is_chosen_from_the_list_by_keyboard() {
    let Some(axe) = axe_source() else {
        return skip_test("chromium or axe-core is missing");
    };
    let rig = TestRig::new().await;
    open_two_runs(&rig).await;
    let address = free_address();
    let _page = rig.spawn("feeder", &[("STATUS_ADDR", &address)], &["dashboard"]);
    wait_until("both runs", async || {
        http_get(&address, "/status.json").await.contains("faces")
    })
    .await;
    let mut browser = HeadlessBrowser::open(&format!("http://{address}/")).await;
    browser
        .wait_until("document.getElementById('runs').rows.length === 2")
        .await;
    browser.evaluate(&axe).await;
    assert_eq!(axe_violations(&mut browser).await, json!([]));
    let hidden = browser.evaluate("document.getElementById('one-run').hidden");
    assert_eq!(hidden.await, true);
    browser.tab_to("faces").await;
    browser.press_key("Enter", 13, "\r").await;
    wait_for_text(&mut browser, "run", "faces (run 2)").await;
    wait_for_text(&mut browser, "percent", "25.0 %").await;
    browser.evaluate(&axe).await;
    assert_eq!(axe_violations(&mut browser).await, json!([]), "of one run");
    assert_eq!(browser.complaints, Vec::<String>::new());
}
