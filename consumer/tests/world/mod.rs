//! A queue, a store and a catalog in memory, sharing one world, with faults by dice.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bucket_brigade_common::catalog::{
    Catalog, CatalogError, Failure, Move, PoisonRecord, Row, Settlement,
};
use bucket_brigade_common::object_store::{Copied, Destination, ObjectStore, StoreError};
use bucket_brigade_common::path_rule::Route;
use bucket_brigade_common::queue::{Backlog, Entry, Message, Queue, QueueAttributes, QueueError};
use bucket_brigade_common::row_id::RowId;
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

fn queue_error(operation: &'static str) -> QueueError {
    QueueError::Unavailable {
        operation,
        message: "fault".into(),
    }
}

#[async_trait]
impl Queue for World {
    async fn send(&self, _: &[String]) -> Result<Vec<Entry>, QueueError> {
        Err(queue_error("SendMessageBatch"))
    }

    async fn receive(
        &self,
        most: usize,
        wait: Duration,
        visibility: Duration,
    ) -> Result<Vec<Message>, QueueError> {
        let fate = self.fate().await;
        let deadline = Instant::now() + wait;
        loop {
            if fate == Fault::Before {
                return Err(queue_error("ReceiveMessage"));
            }
            let messages = self.lock().take(most, visibility);
            // An answer that is lost hides its messages for the visibility timeout.
            if fate == Fault::After && !messages.is_empty() {
                return Err(queue_error("ReceiveMessage"));
            }
            if !messages.is_empty() || Instant::now() >= deadline {
                return Ok(messages);
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn delete(&self, handles: &[String]) -> Result<Vec<Entry>, QueueError> {
        let fate = self.fate().await;
        if fate == Fault::Before {
            return Ok(vec![Entry::Retry("fault".into()); handles.len()]);
        }
        let mut state = self.lock();
        for handle in handles {
            // As on SQS, a stale receipt handle deletes nothing.
            if let Some(number) = state.by_receipt(handle) {
                let queued = state.queue.remove(&number).unwrap();
                state.check_delete(&queued.body);
            }
        }
        match fate {
            Fault::After => Err(queue_error("DeleteMessageBatch")),
            _ => Ok(vec![Entry::Done; handles.len()]),
        }
    }

    async fn change_visibility(
        &self,
        changes: &[(String, Duration)],
    ) -> Result<Vec<Entry>, QueueError> {
        if self.fate().await == Fault::Before {
            return Err(queue_error("ChangeMessageVisibilityBatch"));
        }
        let mut state = self.lock();
        let mut entries = Vec::new();
        for (handle, hidden) in changes {
            let number = state.by_receipt(handle);
            match number.and_then(|number| state.queue.get_mut(&number)) {
                Some(queued) => {
                    queued.visible_at = Instant::now() + *hidden;
                    entries.push(Entry::Done);
                }
                None => entries.push(Entry::Refused("stale".into())),
            }
        }
        Ok(entries)
    }

    async fn attributes(&self) -> Result<QueueAttributes, QueueError> {
        Ok(QueueAttributes {
            max_receive_count: Some(MAX_RECEIVES),
            backlog: Backlog::default(),
        })
    }
}

#[async_trait]
impl ObjectStore for World {
    async fn copy(&self, route: &Route) -> Result<Copied, StoreError> {
        let fate = self.fate().await;
        let transient = || StoreError::Transient {
            code: "Fault".into(),
            message: String::new(),
        };
        if fate == Fault::Before {
            let is_throttled = self.dice.lock().unwrap().bool();
            let throttled = StoreError::Throttled {
                code: "SlowDown".into(),
            };
            return Err(if is_throttled { throttled } else { transient() });
        }
        let mut state = self.lock();
        let Some(bytes) = state.source.get(&route.source_key).cloned() else {
            let code = "NoSuchKey".into();
            return Err(StoreError::Permanent {
                code,
                message: String::new(),
            });
        };
        if state.destination.contains_key(&route.destination_key) {
            return Err(StoreError::DestinationExists);
        }
        state
            .destination
            .insert(route.destination_key.clone(), bytes.clone());
        match fate {
            Fault::After => Err(transient()),
            _ => Ok(Copied {
                etag: bytes,
                size_bytes: None,
            }),
        }
    }

    async fn copy_in_parts(&self, route: &Route) -> Result<Copied, StoreError> {
        self.copy(route).await
    }

    async fn compare(&self, route: &Route) -> Result<Destination, StoreError> {
        if self.fate().await == Fault::Before {
            let code = "Fault".into();
            return Err(StoreError::Transient {
                code,
                message: String::new(),
            });
        }
        let state = self.lock();
        let source = state.source.get(&route.source_key);
        Ok(match state.destination.get(&route.destination_key) {
            None => Destination::Empty,
            Some(bytes) if Some(bytes) == source => Destination::Same(Copied {
                etag: bytes.clone(),
                size_bytes: None,
            }),
            Some(_) => Destination::Different("bytes".into()),
        })
    }
}

impl World {
    /// Runs a statement under its fate: not at all, or with its answer lost.
    async fn statement<T>(&self, run: impl FnOnce(&mut State) -> T) -> Result<T, CatalogError> {
        let fate = self.fate().await;
        if fate == Fault::Before {
            return Err(CatalogError::Unavailable("fault".into()));
        }
        let answer = run(&mut self.lock());
        match fate {
            Fault::After => Err(CatalogError::Unavailable("the answer was lost".into())),
            _ => Ok(answer),
        }
    }
}

#[async_trait]
impl Catalog for World {
    async fn look(&self, ids: &[RowId]) -> Result<HashMap<RowId, Row>, CatalogError> {
        self.statement(|state| {
            let row = |id: &RowId| {
                let path = state.rows.get(id.as_str())?.clone();
                let failed_for_good = state.failed.contains(id.as_str());
                Some((
                    id.clone(),
                    Row {
                        path,
                        failed_for_good,
                    },
                ))
            };
            ids.iter().filter_map(row).collect()
        })
        .await
    }

    async fn commit(&self, moves: &[Move]) -> Result<HashSet<RowId>, CatalogError> {
        self.statement(|state| {
            let mut moved = HashSet::new();
            for one in moves {
                let id = one.id.as_str();
                if state.rows.get(id) != Some(&one.old_path) {
                    continue;
                }
                if !state.destination.contains_key(&one.destination_key) {
                    state
                        .violations
                        .push(format!("row {id}: committed without a copy"));
                }
                state.rows.insert(id.to_owned(), one.new_path.clone());
                state.moved.insert(id.to_owned());
                state.failed.remove(id);
                state.changed.remove(id);
                moved.insert(one.id.clone());
            }
            moved
        })
        .await
    }

    async fn settle(&self, settlements: &[Settlement]) -> Result<(), CatalogError> {
        self.statement(|state| {
            for one in settlements {
                let id = one.id.as_str();
                state.failed.remove(id);
                if one.is_final && !state.moved.contains(id) {
                    state.changed.insert(id.to_owned());
                }
            }
        })
        .await
    }

    async fn fail(&self, failures: &[Failure]) -> Result<(), CatalogError> {
        self.statement(|state| {
            for one in failures {
                let id = one.id.as_str();
                if state.rows.get(id) != Some(&one.path) {
                    continue;
                }
                state.moved.remove(id);
                state.changed.remove(id);
                state.failed.insert(id.to_owned());
            }
        })
        .await
    }

    async fn record_poison(&self, _: &[PoisonRecord]) -> Result<(), CatalogError> {
        self.statement(|_| ()).await
    }
}
