//! The application: it replaces images, deletes and adds rows while they move. And a stranger, who
//! sends to the queue what does not belong there.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;

use crate::shared_world::{SharedWorld, WorldState};
use crate::world::{NEW_PREFIX, OLD_PREFIX};

/// Bodies that are none of ours.
const POISON_BODIES: [&str; 4] = [
    "poison",
    "{}",
    r#"{"id":"1'; DROP TABLE images; --","path":"secret/1"}"#,
    r#"{"id":"1","path":"avatar/1"}"#,
];

/// Writes so often, with a pause before each.
pub async fn run_writes(shared: Arc<SharedWorld>, times: u32) {
    for _ in 0..times {
        let pause = shared.lock().dice.u64(1..700);
        sleep(Duration::from_millis(pause)).await;
        let upload = shared.apply_change(begin_write);
        // Between the object and the row anything can happen.
        let pause = shared.lock().dice.u64(0..200);
        sleep(Duration::from_millis(pause)).await;
        if let Some((id, path)) = upload {
            shared.apply_change(|things| point_row(things, &id, path));
        }
    }
}

/// Stores a new image, deletes or adds a row, or sends poison. Returns the row that is to name what was stored.
fn begin_write(things: &mut WorldState) -> Option<(String, String)> {
    let ids: Vec<String> = things.table.rows.keys().cloned().collect();
    let id = things.dice.choice(ids)?;
    match things.dice.u32(0..6) {
        0 => {
            things.table.rows.remove(&id);
            things.written.insert(id, None);
            None
        }
        1 => {
            add_row(things);
            None
        }
        2 => {
            let body = POISON_BODIES[things.dice.usize(0..POISON_BODIES.len())];
            things.mailbox.send(body.into());
            None
        }
        number => {
            // Half of them under the very key that the copy would get.
            let own_key = format!("{NEW_PREFIX}new-{id}");
            let key = match things.table.rows.get(&id)?.strip_prefix(OLD_PREFIX) {
                Some(rest) if number < 5 && !things.is_shared(rest) => {
                    format!("{NEW_PREFIX}{rest}")
                }
                _ => own_key,
            };
            let bytes = format!("the application's {id}");
            let bucket = &mut things.buckets.destination;
            bucket.insert(key.clone(), bytes.clone());
            things.puts.insert(key.clone(), bytes);
            Some((id, key))
        }
    }
}

/// A row committed late, with a smaller id than the feeder's cursor may have.
fn add_row(things: &mut WorldState) {
    let id = format!("0{}", things.table.rows.len());
    if things.written.contains_key(&id) || things.table.rows.contains_key(&id) {
        return;
    }
    let path = format!("{OLD_PREFIX}{id}");
    let bytes = format!("bytes of {path}");
    let with_companion = things.has_companions;
    things.buckets.put_source(&path, bytes, with_companion);
    things.table.rows.insert(id, path);
}

fn point_row(things: &mut WorldState, id: &str, path: String) {
    if let Some(row) = things.table.rows.get_mut(id) {
        row.clone_from(&path);
        things.written.insert(id.to_owned(), Some(path));
    }
}

impl WorldState {
    /// Whether several rows name this image: a sane application does not replace it under their feet.
    fn is_shared(&self, rest: &str) -> bool {
        let path = format!("{OLD_PREFIX}{rest}");
        let mut paths = self.table.rows.values();
        paths.by_ref().filter(|other| **other == path).count() > 1 || rest == "shared"
    }
}
