//! A queue that makes its messages up: row ids from a range, so that ten million cost nothing.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

/// As long as those of SQS, which clients have to carry about.
const HANDLE_PREFIX: &str = "AQEBwJnKyrHigUMZj6rYigCgxlaS3SLy0aAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA-";

/// The messages that are to come, and those given back.
#[derive(Debug, Default)]
pub(super) struct StubQueue {
    /// Places in the order in which they come.
    fresh: Range<u64>,
    first_row: u64,
    /// How many come before the next of the same stretch, and how many each stretch has.
    stretches: (u64, u64),
    returned: VecDeque<u64>,
    /// Until when, where a consumer has said so.
    hidden: HashMap<u64, Instant>,
    in_flight: u64,
    deleted: u64,
}

impl StubQueue {
    /// What does not fill one more row of each stretch is left out.
    pub(super) fn from_rows(rows: Range<u64>, stretches: u64) -> Self {
        let (count, stretches) = (rows.end.saturating_sub(rows.start), stretches.max(1));
        let length = count / stretches;
        Self {
            fresh: 0..length * stretches,
            first_row: rows.start,
            stretches: (stretches, length),
            ..Self::default()
        }
    }

    fn row_at(&self, place: u64) -> u64 {
        let (stretches, length) = self.stretches;
        self.first_row + place % stretches * length + place / stretches
    }

    /// Up to `most` messages: row ids, each with its receive count.
    pub(super) fn take_messages(&mut self, most: usize) -> Vec<(u64, u32)> {
        let mut taken = Vec::with_capacity(most);
        if self.fresh.is_empty() && self.returned.is_empty() {
            self.return_hidden();
        }
        while taken.len() < most {
            match self.returned.pop_front() {
                Some(id) => taken.push((id, 2)),
                None => match self.fresh.next() {
                    Some(place) => taken.push((self.row_at(place), 1)),
                    None => break,
                },
            }
        }
        self.in_flight += taken.len() as u64;
        taken
    }

    fn return_hidden(&mut self) {
        let now = Instant::now();
        let returned = self.hidden.extract_if(|_, until| *until <= now);
        self.returned.extend(returned.map(|(id, _)| id));
        self.in_flight = self.in_flight.saturating_sub(self.returned.len() as u64);
    }

    pub(super) fn hide_message(&mut self, handle: &str, time: Duration) {
        if let Some(id) = row_id_of_handle(handle) {
            self.hidden.insert(id, Instant::now() + time);
        }
    }

    pub(super) fn delete_message(&mut self, handle: &str) {
        if let Some(id) = row_id_of_handle(handle) {
            self.hidden.remove(&id);
            self.in_flight = self.in_flight.saturating_sub(1);
            self.deleted += 1;
        }
    }

    pub(super) fn return_message(&mut self, handle: &str) {
        if let Some(id) = row_id_of_handle(handle) {
            self.hidden.remove(&id);
            self.in_flight = self.in_flight.saturating_sub(1);
            self.returned.push_back(id);
        }
    }

    pub(super) fn backlog(&self) -> (u64, u64) {
        let fresh = self.fresh.end.saturating_sub(self.fresh.start);
        (fresh + self.returned.len() as u64, self.in_flight)
    }

    pub(super) fn deleted(&self) -> u64 {
        self.deleted
    }
}

pub(super) fn receipt_handle(id: u64) -> String {
    format!("{HANDLE_PREFIX}{id}")
}

fn row_id_of_handle(handle: &str) -> Option<u64> {
    handle.strip_prefix(HANDLE_PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_comes_once_and_again_only_when_it_is_given_back() {
        let mut queue = StubQueue::from_rows(5..8, 0);
        assert_eq!(queue.take_messages(2), [(5, 1), (6, 1)]);
        queue.delete_message(&receipt_handle(5));
        queue.return_message(&receipt_handle(6));
        assert_eq!(queue.backlog(), (2, 0));
        assert_eq!(queue.take_messages(10), [(6, 2), (7, 1)]);
        assert_eq!((queue.backlog(), queue.deleted()), ((0, 2), 1));
        assert_eq!(queue.take_messages(10), []);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_hidden_comes_back_unless_it_is_deleted() {
        let mut queue = StubQueue::from_rows(5..8, 0);
        queue.take_messages(3);
        for id in 5..8 {
            queue.hide_message(&receipt_handle(id), Duration::from_secs(id));
        }
        queue.delete_message(&receipt_handle(5));
        assert_eq!(queue.take_messages(10), []);
        tokio::time::advance(Duration::from_secs(6)).await;
        assert_eq!(queue.take_messages(10), [(6, 2)]);
        assert_eq!(queue.backlog(), (0, 2));
    }

    #[test]
    fn stretches_come_in_turn() {
        let mut queue = StubQueue::from_rows(10..16, 3);
        let ids = queue.take_messages(10).into_iter().map(|(id, _)| id);
        assert_eq!(ids.collect::<Vec<_>>(), [10, 12, 14, 11, 13, 15]);
    }

    #[test]
    fn what_is_no_handle_changes_nothing() {
        let mut queue = StubQueue::from_rows(0..1, 0);
        queue.delete_message("7");
        assert_eq!(queue.deleted(), 0);
    }
}
