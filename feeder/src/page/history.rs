//! The run so far, in so few points that a chart can show them: when there are too many, each two next
//! to each other become one. So it always reaches back to the feeder's start.

use serde::Serialize;

/// Points kept at most.
const MOST: usize = 600;

/// One point in time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Sample {
    /// Seconds since 1970.
    pub(super) at: f64,
    /// Rows moved until then; none when the database did not answer.
    pub(super) moved: Option<u64>,
    /// Rows moved per second, over the last minute, as the consumers say. Rows that move a second time,
    /// after a rollback, count here and not in the sum.
    pub(super) over_a_minute: Option<f64>,
    /// How long the slowest consumer's commits took, in seconds.
    pub(super) commit_seconds: Option<f64>,
    /// Messages in the queue.
    pub(super) visible: Option<u64>,
    /// Messages in the consumers' hands.
    pub(super) in_flight: Option<u64>,
}

impl Sample {
    /// The later of two, with the peaks of both.
    fn after(self, before: Self) -> Self {
        Self {
            at: self.at,
            moved: self.moved.or(before.moved),
            over_a_minute: self.over_a_minute.or(before.over_a_minute),
            commit_seconds: largest(self.commit_seconds, before.commit_seconds),
            visible: self.visible.max(before.visible),
            in_flight: self.in_flight.max(before.in_flight),
        }
    }
}

fn largest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        _ => one.or(other),
    }
}

/// The points so far.
#[derive(Debug)]
pub(super) struct History {
    samples: Vec<Sample>,
    /// Looks that make one point, and those that the last point is made of.
    per_point: usize,
    in_last: usize,
}

impl Default for History {
    fn default() -> Self {
        Self {
            samples: Vec::with_capacity(MOST),
            per_point: 1,
            in_last: 1,
        }
    }
}

impl History {
    /// Adds what was just seen.
    pub(super) fn add(&mut self, sample: Sample) {
        match self.samples.last_mut() {
            Some(last) if self.in_last < self.per_point => {
                *last = sample.after(*last);
                self.in_last += 1;
            }
            _ => {
                if self.samples.len() == MOST {
                    self.halve();
                }
                self.samples.push(sample);
                self.in_last = 1;
            }
        }
    }

    /// In the order of time.
    pub(super) fn samples(&self) -> &[Sample] {
        &self.samples
    }

    fn halve(&mut self) {
        let pairs = self.samples.chunks_exact(2);
        self.samples = pairs.map(|pair| pair[1].after(pair[0])).collect();
        self.per_point *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u64) -> Sample {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let at = number as f64;
        Sample {
            at,
            moved: Some(number),
            over_a_minute: None,
            commit_seconds: (number == 5).then_some(3.0),
            visible: Some(1),
            in_flight: None,
        }
    }

    #[test]
    fn it_reaches_back_to_the_start_in_few_points_and_keeps_the_peaks() {
        let mut history = History::default();
        for number in 0..100_000 {
            history.add(sample(number));
            assert!(history.samples().len() <= MOST);
        }
        let samples = history.samples();
        assert!(samples.len() > MOST / 2);
        assert_eq!(samples.last().unwrap().moved, Some(99_999));
        assert!(samples[0].at < 300.0, "{:?}", samples[0]);
        assert!(samples.is_sorted_by(|one, next| one.at < next.at));
        assert_eq!(samples[0].commit_seconds, Some(3.0));
    }

    #[test]
    fn an_outage_is_a_gap_only_while_nothing_was_seen_beside_it() {
        let dark = Sample {
            moved: None,
            visible: None,
            ..sample(2)
        };
        assert_eq!(dark.after(sample(1)).moved, Some(1));
        assert_eq!(dark.after(dark).moved, None);
    }
}
