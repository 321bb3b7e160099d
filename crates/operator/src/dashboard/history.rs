//! The run so far, in so few points that a chart can show them: when there are too many, each two next
//! to each other become one. So it always reaches back to the feeder's start.

use serde::Serialize;

/// Points kept at most.
const MAX_SAMPLES: usize = 600;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct HistorySample {
    pub(super) at: f64,
    /// Rows moved until then; none when the database did not answer.
    pub(super) moved: Option<u64>,
    /// Rows moved per second, over the last minute, as the consumers say. Rows that move a second time,
    /// after a rollback, count here and not in the sum.
    pub(super) over_a_minute: Option<f64>,
    /// How long the slowest consumer's commits took, in seconds.
    pub(super) commit_seconds: Option<f64>,
    pub(super) visible: Option<u64>,
    /// Messages in the consumers' hands.
    pub(super) in_flight: Option<u64>,
}

impl HistorySample {
    /// The later of two, with the peaks of both.
    fn merge_earlier(self, before: Self) -> Self {
        let commits = [self.commit_seconds, before.commit_seconds];
        Self {
            at: self.at,
            moved: self.moved.or(before.moved),
            over_a_minute: self.over_a_minute.or(before.over_a_minute),
            commit_seconds: commits.into_iter().flatten().reduce(f64::max),
            visible: self.visible.max(before.visible),
            in_flight: self.in_flight.max(before.in_flight),
        }
    }
}

#[derive(Debug)]
pub(super) struct RunHistory {
    samples: Vec<HistorySample>,
    /// Looks that make one point, and those that the last point is made of.
    samples_per_point: usize,
    samples_in_last: usize,
}

impl Default for RunHistory {
    fn default() -> Self {
        Self {
            samples: Vec::with_capacity(MAX_SAMPLES),
            samples_per_point: 1,
            samples_in_last: 1,
        }
    }
}

impl RunHistory {
    pub(super) fn add_sample(&mut self, sample: HistorySample) {
        match self.samples.last_mut() {
            Some(last) if self.samples_in_last < self.samples_per_point => {
                *last = sample.merge_earlier(*last);
                self.samples_in_last += 1;
            }
            _ => {
                if self.samples.len() == MAX_SAMPLES {
                    self.halve_samples();
                }
                self.samples.push(sample);
                self.samples_in_last = 1;
            }
        }
    }

    pub(super) fn samples(&self) -> &[HistorySample] {
        &self.samples
    }

    fn halve_samples(&mut self) {
        let pairs = self.samples.chunks_exact(2);
        self.samples = pairs.map(|pair| pair[1].merge_earlier(pair[0])).collect();
        self.samples_per_point *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(number: u64) -> HistorySample {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let at = number as f64;
        HistorySample {
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
        let mut history = RunHistory::default();
        for number in 0..100_000 {
            history.add_sample(sample(number));
            assert!(history.samples().len() <= MAX_SAMPLES);
        }
        let samples = history.samples();
        assert!(samples.len() > MAX_SAMPLES / 2);
        assert_eq!(samples.last().unwrap().moved, Some(99_999));
        assert!(samples[0].at < 300.0, "{:?}", samples[0]);
        assert!(samples.is_sorted_by(|one, next| one.at < next.at));
        assert_eq!(samples[0].commit_seconds, Some(3.0));
    }

    #[test]
    fn an_outage_is_a_gap_only_while_nothing_was_seen_beside_it() {
        let dark = HistorySample {
            moved: None,
            visible: None,
            ..sample(2)
        };
        assert_eq!(dark.merge_earlier(sample(1)).moved, Some(1));
        assert_eq!(dark.merge_earlier(dark).moved, None);
    }
}
