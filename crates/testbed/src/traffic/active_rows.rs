//! Rows whose images are being moved right now.

use std::collections::VecDeque;

use fastrand::Rng;
use parking_lot::Mutex;

/// So many recent rows are remembered.
const MAX_RECENT_ROWS: usize = 64;

/// The rows whose images are being moved right now, for a writer that wants to be in the way.
#[derive(Debug, Default)]
pub struct ActiveRows(Mutex<RecentRows>);

#[derive(Debug, Default)]
struct RecentRows {
    /// Not handed out yet, the newest last.
    fresh: VecDeque<String>,
    /// Handed out before, the newest last.
    used: VecDeque<String>,
}

impl ActiveRows {
    /// Something happens to the image of this row now.
    pub fn add(&self, id: &str) {
        push_bounded(&mut self.0.lock().fresh, id.to_owned());
    }

    /// The newest row that was not handed out yet, or else one that was not long ago.
    pub fn take(&self, random: &mut Rng) -> Option<String> {
        let inner = &mut *self.0.lock();
        let Some(id) = inner.fresh.pop_back() else {
            return random.choice(&inner.used).cloned();
        };
        push_bounded(&mut inner.used, id.clone());
        Some(id)
    }
}

fn push_bounded(ids: &mut VecDeque<String>, id: String) {
    if ids.len() == MAX_RECENT_ROWS {
        ids.pop_front();
    }
    ids.push_back(id);
}
