//! A queue, a store and a catalog in memory, sharing one world, with faults by dice.

mod catalog;
mod queue;
mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bucket_brigade_common::queue::Message;
use tokio::time::{Instant, sleep};

/// The dead-letter queue takes what was received this often.
const MAX_RECEIVES: u32 = 50;

#[derive(Debug, Clone)]
struct Queued {
    body: String,
    receives: u32,
    visible_at: Instant,
    receipt: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Rows by id; a deleted one is absent.
    rows: BTreeMap<String, String>,
    source: HashMap<String, String>,
    destination: HashMap<String, String>,
    moved: HashSet<String>,
    changed: HashSet<String>,
    failed: HashSet<String>,
    /// What the application wrote: row to path, none for a deleted row.
    written: HashMap<String, Option<String>>,
    queue: BTreeMap<u64, Queued>,
    dead: Vec<String>,
    receipts: u64,
    violations: Vec<String>,
}

#[derive(Debug)]
pub(crate) struct World {
    state: Mutex<State>,
    dice: Mutex<fastrand::Rng>,
    rows: usize,
}

/// When a fault strikes.
#[derive(Debug, PartialEq, Eq)]
enum Fault {
    None,
    Before,
    After,
}

impl World {
    pub(crate) fn new(rows: usize, seed: u64) -> Self {
        let mut state = State::default();
        for id in 0..rows {
            let path = format!("image/{id}");
            // The last one's object is missing.
            if id + 1 < rows {
                state.source.insert(path.clone(), format!("bytes of {id}"));
            }
            let body = format!(r#"{{"id":"{id}","path":"{path}"}}"#);
            state.rows.insert(id.to_string(), path);
            state.enqueue(body);
        }
        state.enqueue("poison".into());
        Self {
            state: Mutex::new(state),
            dice: Mutex::new(fastrand::Rng::with_seed(seed)),
            rows,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// A pause and perhaps a fault, before every call.
    async fn fate(&self) -> Fault {
        let (pause, fault) = {
            let mut dice = self.dice.lock().unwrap();
            (dice.u64(0..120), dice.u32(0..100))
        };
        sleep(Duration::from_millis(pause)).await;
        match fault {
            0..10 => Fault::Before,
            10..20 => Fault::After,
            _ => Fault::None,
        }
    }

    /// The application replaces an image, under the copy's own key or another, or deletes the row.
    pub(crate) fn application_writes(&self) {
        let mut dice = self.dice.lock().unwrap();
        let mut state = self.lock();
        let id = dice.usize(0..self.rows).to_string();
        if !state.rows.contains_key(&id) {
            return;
        }
        let key = match dice.u32(0..3) {
            0 => None,
            1 => Some(format!("avatar/{id}")),
            _ => Some(format!("avatar/new-{id}")),
        };
        match &key {
            None => drop(state.rows.remove(&id)),
            Some(key) => {
                state
                    .destination
                    .insert(key.clone(), format!("application's {id}"));
                state.rows.insert(id.clone(), key.clone());
            }
        }
        state.written.insert(id, key);
    }

    /// Waits until no message is left.
    pub(crate) async fn drained(&self) {
        while !self.lock().queue.is_empty() {
            sleep(Duration::from_millis(100)).await;
        }
    }

    pub(crate) fn describe(&self) -> String {
        format!("{:#?}", self.lock())
    }

    /// What does not hold at the end.
    pub(crate) fn violations(&self) -> Vec<String> {
        let state = self.lock();
        let mut violations = state.violations.clone();
        for (id, path) in &state.rows {
            if !state.names_an_object(path) && !state.failed.contains(id) {
                violations.push(format!("row {id}: '{path}' names no object"));
            }
        }
        for (id, key) in &state.written {
            let bytes = key.as_ref().map(|key| state.destination.get(key).cloned());
            let expected = key.as_ref().map(|_| Some(format!("application's {id}")));
            if state.rows.get(id) != key.as_ref() || bytes != expected {
                violations.push(format!("row {id}: the application's write was lost"));
            }
        }
        for id in 0..self.rows {
            violations.extend(state.wrong_state(&id.to_string()));
        }
        violations
    }
}

impl State {
    fn enqueue(&mut self, body: String) {
        let number = u64::try_from(self.queue.len()).unwrap();
        let queued = Queued {
            body,
            receives: 0,
            visible_at: Instant::now(),
            receipt: 0,
        };
        self.queue.insert(number, queued);
    }

    fn names_an_object(&self, path: &str) -> bool {
        self.source.contains_key(path) || self.destination.contains_key(path)
    }

    /// Every row ends in exactly one state.
    fn wrong_state(&self, id: &str) -> Option<String> {
        let states = [&self.moved, &self.changed, &self.failed];
        let count = states.iter().filter(|state| state.contains(id)).count();
        (count != 1).then(|| format!("row {id} is in {count} states"))
    }

    /// A message may go only when its row does not ask for the move any more, and that is on record.
    fn check_delete(&mut self, body: &str) {
        let Some(id) = body.split('"').nth(3).map(ToOwned::to_owned) else {
            return self.violations.push(format!("deleted: {body}"));
        };
        let asks = self
            .rows
            .get(&id)
            .is_some_and(|path| path.starts_with("image/"));
        if asks || self.wrong_state(&id).is_some() {
            self.violations
                .push(format!("row {id}: its message was deleted too early"));
        }
    }

    /// The message that a receipt handle names, as long as it is the latest.
    fn by_receipt(&self, handle: &str) -> Option<u64> {
        let receipt: u64 = handle.parse().ok()?;
        let found = self
            .queue
            .iter()
            .find(|(_, queued)| queued.receipt == receipt);
        found.map(|(number, _)| *number)
    }

    fn take(&mut self, most: usize, visibility: Duration) -> Vec<Message> {
        let now = Instant::now();
        let due: Vec<u64> = self
            .queue
            .iter()
            .filter(|(_, queued)| queued.visible_at <= now)
            .map(|(number, _)| *number)
            .take(most)
            .collect();
        due.into_iter()
            .filter_map(|number| self.take_one(number, now + visibility))
            .collect()
    }

    fn take_one(&mut self, number: u64, visible_at: Instant) -> Option<Message> {
        self.receipts += 1;
        let receipt = self.receipts;
        let queued = self.queue.get_mut(&number)?;
        if queued.receives >= MAX_RECEIVES {
            let queued = self.queue.remove(&number)?;
            self.dead.push(queued.body);
            return None;
        }
        queued.receives += 1;
        queued.receipt = receipt;
        queued.visible_at = visible_at;
        Some(Message {
            message_id: number.to_string(),
            receipt_handle: receipt.to_string(),
            body: queued.body.clone(),
            receive_count: queued.receives,
        })
    }
}
