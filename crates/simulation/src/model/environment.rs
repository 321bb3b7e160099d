//! The feeder, the queue's clock and the application.

use bucket_brigade_common::message::encode;
use bucket_brigade_common::row_id::RowId;

use super::{BrigadeModel, ModelAction, ModelState, RunState};
use crate::world::{COMPANION_SUFFIX, NEW_PREFIX, OLD_PREFIX, RUN};

/// How the application changes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowWrite {
    /// A new image, under the very key that the copy would get.
    SameKey,
    /// A new image under a key of its own.
    OtherKey,
    /// Another path under the old prefix, where an object is.
    Rename,
    Delete,
}

/// What an open transaction of the application keeps from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RowLock {
    /// It has updated the row.
    Update,
    /// It has inserted a row that references this one, whose key must stay.
    KeyShare,
}

impl RowLock {
    /// Whether our update has to skip the row.
    pub(super) fn conflicts(self, path_is_key: bool) -> bool {
        self == Self::Update || path_is_key
    }
}

const ROW_WRITES: [RowWrite; 4] = [
    RowWrite::SameKey,
    RowWrite::OtherKey,
    RowWrite::Rename,
    RowWrite::Delete,
];

impl ModelState {
    pub(super) fn environment_actions(&self, actions: &mut Vec<ModelAction>) {
        self.feeder_actions(actions);
        self.lock_actions(actions);
        actions.extend((0..self.given_up.len()).map(ModelAction::LateEffect));
        let in_flight = self.mailbox.queued.iter();
        let in_flight = in_flight.filter(|(_, queued)| queued.in_flight);
        actions.extend(in_flight.map(|(number, _)| ModelAction::Expire(*number)));
        if self.upload.is_some() {
            actions.push(ModelAction::PointRow);
        } else if self.remaining.writes > 0 {
            for id in self.runs[0].table.rows.keys() {
                actions.extend(ROW_WRITES.map(|write| ModelAction::Write(id.clone(), write)));
            }
        }
    }

    fn lock_actions(&self, actions: &mut Vec<ModelAction>) {
        if self.lock.is_some() {
            actions.push(ModelAction::Unlock);
        } else if self.remaining.locks > 0 {
            let locks = [RowLock::Update, RowLock::KeyShare];
            for id in self.runs[0].table.rows.keys() {
                actions.extend(locks.map(|lock| ModelAction::Lock(id.clone(), lock)));
            }
        }
    }

    fn feeder_actions(&self, actions: &mut Vec<ModelAction>) {
        if self.page.is_some() {
            actions.push(ModelAction::FeederCrashes);
            actions.push(ModelAction::FeederSends { answered: true });
            actions.push(ModelAction::FeederSends { answered: false });
        } else if self.remaining.sends > 0 {
            for (number, run) in self.runs.iter().enumerate() {
                let rows = run.table.rows.iter();
                let wanted = rows.filter(|(id, path)| run.table.needs_move(id, path));
                actions.extend(wanted.map(|(id, _)| ModelAction::FeederReads(number, id.clone())));
            }
        }
    }

    pub(super) fn apply_environment_action(&mut self, action: &ModelAction, model: &BrigadeModel) {
        match action {
            ModelAction::FeederReads(run, id) => {
                let path = self.runs[*run].table.rows.get(id).cloned();
                self.page = path.map(|path| (*run, id.clone(), path));
            }
            ModelAction::FeederSends { answered } => self.send_page(*answered),
            ModelAction::FeederCrashes => self.page = None,
            ModelAction::Expire(number) => self.mailbox.make_visible(*number),
            ModelAction::Write(id, write) => self.write_row(id, *write, model.has_companions),
            ModelAction::PointRow => self.point_row(),
            ModelAction::Lock(id, lock) => {
                self.remaining.locks -= 1;
                self.lock = Some((id.clone(), *lock));
            }
            ModelAction::Unlock => self.lock = None,
            ModelAction::Receive(..)
            | ModelAction::ConsumerAction(..)
            | ModelAction::Crash(_)
            | ModelAction::LateEffect(_) => {}
        }
    }

    fn send_page(&mut self, answered: bool) {
        let Some((run, id, path)) = self.page.take() else {
            return;
        };
        if self.remaining.sends == 0 {
            return;
        }
        self.remaining.sends -= 1;
        let number = RUN + i64::try_from(run).unwrap_or(0);
        if let Ok(body) = encode(number, &RowId::from_database(id.clone()), &path) {
            self.mailbox.send(body);
        }
        if !answered {
            self.page = Some((run, id, path));
        }
    }

    /// The object first, then the row, as any application does that has the promise of I1 itself.
    fn write_row(&mut self, id: &str, write: RowWrite, with_companion: bool) {
        self.remaining.writes -= 1;
        let run = &mut self.runs[0];
        let (path, bytes) = match write {
            RowWrite::Delete => {
                run.table.rows.remove(id);
                run.written.insert(id.to_owned(), None);
                return;
            }
            RowWrite::SameKey => (
                format!("{NEW_PREFIX}{id}"),
                format!("the application's {id}"),
            ),
            RowWrite::OtherKey => (
                format!("{NEW_PREFIX}new-{id}"),
                format!("the application's {id}"),
            ),
            // Never the same path twice: a row that goes back to a path it has left asks again for what
            // was already answered, and it is the next sweep that hears it.
            RowWrite::Rename => {
                let times = self.remaining.writes;
                (
                    format!("{OLD_PREFIX}{id}-{times}"),
                    format!("renamed {id} {times}"),
                )
            }
        };
        if path.starts_with(NEW_PREFIX) {
            run.put_new_image(&path, &bytes, with_companion);
        } else {
            run.buckets.put_source(&path, bytes, with_companion);
        }
        self.upload = Some((id.to_owned(), path));
    }

    fn point_row(&mut self) {
        let Some((id, path)) = self.upload.take() else {
            return;
        };
        let run = &mut self.runs[0];
        if let Some(row) = run.table.rows.get_mut(&id) {
            row.clone_from(&path);
            run.written.insert(id, Some(path));
        }
    }
}

impl RunState {
    fn put_new_image(&mut self, path: &str, bytes: &str, with_companion: bool) {
        let companion = (
            format!("{path}{COMPANION_SUFFIX}"),
            format!("companion of {bytes}"),
        );
        let image = (path.to_owned(), bytes.to_owned());
        let objects = std::iter::once(image).chain(with_companion.then_some(companion));
        for (key, bytes) in objects {
            self.buckets.destination.insert(key.clone(), bytes.clone());
            self.puts.insert(key, bytes);
        }
    }
}
