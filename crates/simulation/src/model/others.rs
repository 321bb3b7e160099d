//! The feeder, the queue's clock and the application.

use bucket_brigade_common::message::encode;
use bucket_brigade_common::row_id::RowId;

use super::{Action, State};
use crate::world::{NEW, OLD};

/// How the application changes a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// A new image, under the very key that the copy would get.
    SameKey,
    /// A new image under a key of its own.
    OtherKey,
    /// Another path under the old prefix, where an object is.
    Rename,
    /// The row is deleted.
    Delete,
}

const WRITES: [Write; 4] = [
    Write::SameKey,
    Write::OtherKey,
    Write::Rename,
    Write::Delete,
];

impl State {
    pub(super) fn actions_of_others(&self, actions: &mut Vec<Action>) {
        self.actions_of_feeder(actions);
        let in_flight = self.mailbox.queued.iter();
        let in_flight = in_flight.filter(|(_, queued)| queued.in_flight);
        actions.extend(in_flight.map(|(number, _)| Action::Expire(*number)));
        if self.upload.is_some() {
            actions.push(Action::PointRow);
        } else if self.left.writes > 0 {
            for id in self.table.rows.keys() {
                actions.extend(WRITES.map(|write| Action::Write(id.clone(), write)));
            }
        }
    }

    fn actions_of_feeder(&self, actions: &mut Vec<Action>) {
        if self.page.is_some() {
            actions.push(Action::FeederCrashes);
            actions.push(Action::FeederSends { answered: true });
            actions.push(Action::FeederSends { answered: false });
        } else if self.left.sends > 0 {
            let rows = self.table.rows.iter();
            let wanted = rows.filter(|(id, path)| self.table.is_wanted(id, path));
            actions.extend(wanted.map(|(id, _)| Action::FeederReads(id.clone())));
        }
    }

    pub(super) fn act(&mut self, action: &Action) {
        match action {
            Action::FeederReads(id) => {
                let path = self.table.rows.get(id).cloned();
                self.page = path.map(|path| (id.clone(), path));
            }
            Action::FeederSends { answered } => self.send(*answered),
            Action::FeederCrashes => self.page = None,
            Action::Expire(number) => self.mailbox.reveal(*number),
            Action::Write(id, write) => self.write(id, *write),
            Action::PointRow => self.point_row(),
            Action::Receive(..) | Action::Step(..) | Action::Crash(_) => {}
        }
    }

    fn send(&mut self, answered: bool) {
        let Some((id, path)) = self.page.take() else {
            return;
        };
        if self.left.sends == 0 {
            return;
        }
        self.left.sends -= 1;
        if let Ok(body) = encode(&RowId::from_database(id.clone()), &path) {
            self.mailbox.send(body);
        }
        if !answered {
            self.page = Some((id, path));
        }
    }

    /// The object first, then the row, as any application does that has the promise of I1 itself.
    fn write(&mut self, id: &str, write: Write) {
        self.left.writes -= 1;
        let (path, bytes) = match write {
            Write::Delete => {
                self.table.rows.remove(id);
                self.written.insert(id.to_owned(), None);
                return;
            }
            Write::SameKey => (format!("{NEW}{id}"), format!("the application's {id}")),
            Write::OtherKey => (format!("{NEW}new-{id}"), format!("the application's {id}")),
            // Never the same path twice: a row that goes back to a path it has left asks again for what
            // was already answered, and it is the next sweep that hears it.
            Write::Rename => {
                let times = self.left.writes;
                (
                    format!("{OLD}{id}-{times}"),
                    format!("renamed {id} {times}"),
                )
            }
        };
        let is_new = path.starts_with(NEW);
        let bucket = if is_new {
            &mut self.buckets.destination
        } else {
            &mut self.buckets.source
        };
        bucket.insert(path.clone(), bytes.clone());
        if is_new {
            self.puts.insert(path.clone(), bytes);
        }
        self.upload = Some((id.to_owned(), path));
    }

    fn point_row(&mut self) {
        let Some((id, path)) = self.upload.take() else {
            return;
        };
        if let Some(row) = self.table.rows.get_mut(&id) {
            row.clone_from(&path);
            self.written.insert(id, Some(path));
        }
    }
}
