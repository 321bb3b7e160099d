//! What a scene on paused time logs.

use std::io::Write;
use std::sync::{Arc, Mutex};

/// A log that can be read.
#[derive(Clone, Default)]
pub(crate) struct LogBuffer(Arc<Mutex<Vec<u8>>>);

impl Write for LogBuffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl LogBuffer {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The lines of errors.
    pub(crate) fn error_lines(&self) -> Vec<String> {
        let text = self.text();
        let errors = text.lines().filter(|line| line.contains("ERROR"));
        errors.map(ToOwned::to_owned).collect()
    }
}

/// Runs `scene` on paused time, with its log.
pub(crate) fn with_captured_log(scene: impl AsyncFnOnce(LogBuffer)) {
    let log = LogBuffer::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    tracing::subscriber::with_default(subscriber, || runtime.block_on(scene(log)));
}
