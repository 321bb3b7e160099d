//! A real browser, Chromium without a window, spoken to in its own protocol through a pipe.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::installed::installed_path;

/// Chromium reads commands from descriptor 3 and answers on 4.
const DEBUG_PIPE_COMMAND: &str = r#"exec "$0" "$@" 3<&0 4>&1 </dev/null >/dev/null 2>&1"#;

const CHROMIUM_ARGUMENTS: [&str; 8] = [
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "about:blank",
];

/// One page in a browser of its own, which ends with it.
pub(crate) struct HeadlessBrowser {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    session: Option<String>,
    last_id: u64,
    /// Addresses that were asked for.
    pub(crate) requested: Vec<String>,
    /// What the page or the browser complained of.
    pub(crate) complaints: Vec<String>,
    _process: Child,
    _profile: TempDir,
}

/// axe-core, as `script/setup --tests` installs it; none where it or Chromium is missing.
pub(crate) fn axe_source() -> Option<String> {
    find_chromium()?;
    std::fs::read_to_string(installed_path("axe-core/package/axe.min.js")).ok()
}

/// Debian's Chromium, or what stands in for it on other systems.
fn find_chromium() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let names = ["chromium", "chromium-browser", "google-chrome"];
    std::env::split_paths(&path)
        .flat_map(|directory| names.map(|name| directory.join(name)))
        .find(|program| program.exists())
}

impl HeadlessBrowser {
    pub(crate) async fn open(url: &str) -> Self {
        let profile = TempDir::new().unwrap();
        let mut process = Command::new("sh")
            .args(["-c", DEBUG_PIPE_COMMAND])
            .arg(find_chromium().unwrap())
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .args(CHROMIUM_ARGUMENTS)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut browser = Self {
            commands: process.stdin.take().unwrap(),
            answers: BufReader::new(process.stdout.take().unwrap()),
            session: None,
            last_id: 0,
            requested: Vec::new(),
            complaints: Vec::new(),
            _process: process,
            _profile: profile,
        };
        browser.attach_to_page().await;
        browser
            .call_method("Page.navigate", json!({ "url": url }))
            .await;
        browser
    }

    async fn attach_to_page(&mut self) {
        let target = self
            .call_method("Target.createTarget", json!({ "url": "about:blank" }))
            .await;
        let flat = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = self.call_method("Target.attachToTarget", flat).await;
        self.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Network", "Log", "Runtime", "Page"] {
            self.call_method(&format!("{domain}.enable"), json!({}))
                .await;
        }
    }

    /// The answer to a command that must not be refused.
    pub(crate) async fn call_method(&mut self, method: &str, params: Value) -> Value {
        let mut reply = self.send_command(method, params).await;
        assert!(reply["error"].is_null(), "{method}: {}", reply["error"]);
        reply["result"].take()
    }

    /// The reply to a command, a refusal too. Events that arrive meanwhile are kept.
    async fn send_command(&mut self, method: &str, params: Value) -> Value {
        self.last_id += 1;
        let mut command = json!({ "id": self.last_id, "method": method, "params": params });
        if let Some(session) = &self.session {
            command["sessionId"] = json!(session);
        }
        let mut bytes = command.to_string().into_bytes();
        bytes.push(0);
        self.commands.write_all(&bytes).await.unwrap();
        loop {
            let message = self.read_message().await;
            if message["id"] == self.last_id {
                return message;
            }
            self.record_event(&message);
        }
    }

    async fn read_message(&mut self) -> Value {
        let mut bytes = Vec::new();
        self.answers.read_until(0, &mut bytes).await.unwrap();
        assert_eq!(bytes.pop(), Some(0), "Chromium has ended");
        serde_json::from_slice(&bytes).unwrap()
    }

    fn record_event(&mut self, event: &Value) {
        let params = &event["params"];
        match event["method"].as_str() {
            Some("Network.requestWillBeSent") => {
                let url = params["request"]["url"].as_str().unwrap_or_default();
                self.requested.push(url.to_owned());
            }
            Some("Log.entryAdded") if params["entry"]["level"] == "error" => {
                self.complaints.push(params["entry"].to_string());
            }
            Some("Runtime.consoleAPICalled") if params["type"] == "error" => {
                self.complaints.push(params.to_string());
            }
            Some("Runtime.exceptionThrown") => self.complaints.push(params.to_string()),
            _ => {}
        }
    }

    /// What an expression, or the promise that it is, comes to.
    pub(crate) async fn evaluate(&mut self, expression: &str) -> Value {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let mut answer = self.call_method("Runtime.evaluate", params).await;
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{expression:.80}: {thrown}");
        answer["result"]["value"].take()
    }

    /// Waits until an expression is true; in a page that is still loading it is not, whatever it throws.
    pub(crate) async fn wait_until(&mut self, expression: &str) {
        for _ in 0..900 {
            let params = json!({ "expression": expression, "returnByValue": true });
            let reply = self.send_command("Runtime.evaluate", params).await;
            if reply["result"]["result"]["value"] == true {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("in vain: {expression}");
    }

    /// Another size of the window, in pixels, and another colour scheme.
    pub(crate) async fn set_viewport(&mut self, width: u32, height: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call_method("Emulation.setDeviceMetricsOverride", size)
            .await;
        let scheme = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call_method("Emulation.setEmulatedMedia", scheme).await;
    }

    /// Presses Tab until the focus is on what has this id or this text.
    pub(crate) async fn tab_to(&mut self, name: &str) {
        let focused = "document.activeElement.id || document.activeElement.textContent";
        for _ in 0..40 {
            self.press_key("Tab", 9, "").await;
            if self.evaluate(focused).await == name {
                let visible = "document.activeElement.matches(':focus-visible')";
                assert_eq!(self.evaluate(visible).await, true, "the focus on {name}");
                return;
            }
        }
        panic!("Tab does not lead to {name}");
    }

    /// Types text where the focus is.
    pub(crate) async fn type_text(&mut self, text: &str) {
        self.call_method("Input.insertText", json!({ "text": text }))
            .await;
    }

    /// Presses a key that has this name, code and text.
    pub(crate) async fn press_key(&mut self, key: &str, code: u32, text: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if kind == "keyDown" { text } else { "" };
            let event = json!({ "type": kind, "key": key, "code": key,
                "windowsVirtualKeyCode": code, "text": text });
            self.call_method("Input.dispatchKeyEvent", event).await;
        }
    }
}
