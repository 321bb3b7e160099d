//! The hours in which rows are fed.

use std::fmt::{self, Display, Formatter};

use bucket_brigade_common::ledger::LocalTime;

const DAY_NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

const MINUTES_PER_DAY: u16 = 24 * 60;

/// A part of the day, on some or all days of the week, in a time zone that the database knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedWindow {
    text: String,
    /// From Monday. One that goes over midnight belongs to the day on which it begins.
    days: [bool; 7],
    /// Minutes since midnight; the end may be before the beginning.
    from: u16,
    to: u16,
    pub time_zone: String,
}

impl FeedWindow {
    pub fn contains(&self, time: LocalTime) -> bool {
        let is_day = |weekday: usize| self.days[weekday % 7];
        let today = usize::from(time.weekday.max(1)) - 1;
        if self.from < self.to {
            return is_day(today) && (self.from..self.to).contains(&time.minutes);
        }
        let yesterday = today + 6;
        is_day(today) && time.minutes >= self.from || is_day(yesterday) && time.minutes < self.to
    }
}

impl Display for FeedWindow {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// `[DAYS] HH:MM-HH:MM [ZONE]`, such as `22:00-06:00 Europe/Berlin` or `Mon-Fri 20:00-24:00`.
pub(super) fn parse_feed_window(text: &str) -> Result<Option<FeedWindow>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let mut words = text.split_whitespace().peekable();
    let has_days = |word: &&str| word.starts_with(|first: char| first.is_ascii_alphabetic());
    let days = match words.next_if(has_days) {
        Some(days) => parse_days(days)?,
        None => [true; 7],
    };
    let hours = words.next().unwrap_or_default();
    let (from, to) = hours
        .split_once('-')
        .ok_or("is not HH:MM-HH:MM and a time zone, such as 22:00-06:00 Europe/Berlin")?;
    let (from, to) = (parse_time(from)?, parse_time(to)?);
    if from == to {
        return Err("begins when it ends: the whole day is 00:00-24:00".into());
    }
    let time_zone = words.next().unwrap_or("UTC").to_owned();
    if let Some(more) = words.next() {
        return Err(format!("goes on after the time zone: '{more}'"));
    }
    Ok(Some(FeedWindow {
        text: text.to_owned(),
        days,
        from: from % MINUTES_PER_DAY,
        to,
        time_zone,
    }))
}

fn parse_time(text: &str) -> Result<u16, String> {
    let parse = || {
        let (hours, minutes) = text.split_once(':')?;
        let is_number = |part: &str| part.len() == 2 && part.bytes().all(|b| b.is_ascii_digit());
        let time: u16 = 60 * hours.parse::<u16>().ok()? + minutes.parse::<u16>().ok()?;
        let is_time =
            is_number(hours) && is_number(minutes) && !minutes.starts_with(['6', '7', '8', '9']);
        (is_time && time <= MINUTES_PER_DAY).then_some(time)
    };
    parse().ok_or_else(|| format!("has no time from 00:00 to 24:00 in '{text}'"))
}

/// `Mon-Fri`, `Sat,Sun`, `Sat-Mon`.
fn parse_days(text: &str) -> Result<[bool; 7], String> {
    let mut days = [false; 7];
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (mut day, last) = (parse_day(first)?, parse_day(last)?);
        days[day] = true;
        while day != last {
            day = (day + 1) % 7;
            days[day] = true;
        }
    }
    Ok(days)
}

fn parse_day(text: &str) -> Result<usize, String> {
    let name = text.to_ascii_lowercase();
    let found = DAY_NAMES.iter().position(|day| *day == name);
    found.ok_or_else(|| {
        format!("holds '{text}', which is neither a weekday (Mon, Tue, …) nor HH:MM-HH:MM")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(text: &str) -> FeedWindow {
        parse_feed_window(text).unwrap().unwrap()
    }

    /// Whether a window contains a time, `DAY HH:MM`.
    fn contains(text: &str, time: &str) -> bool {
        let (day, time) = time.split_once(' ').unwrap();
        window(text).contains(LocalTime {
            weekday: u8::try_from(parse_day(day).unwrap() + 1).unwrap(),
            minutes: parse_time(time).unwrap(),
        })
    }

    #[test]
    fn a_night_goes_over_midnight() {
        let night = "22:00-06:00 Europe/Berlin";
        assert_eq!(window(night).time_zone, "Europe/Berlin");
        for inside in ["Mon 22:00", "Mon 23:59", "Tue 00:00", "Sun 05:59"] {
            assert!(contains(night, inside), "{inside}");
        }
        for outside in ["Mon 06:00", "Mon 12:00", "Sun 21:59"] {
            assert!(!contains(night, outside), "{outside}");
        }
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins() {
        let nights = "Fri-Sat 22:00-06:00";
        assert_eq!(window(nights).time_zone, "UTC");
        for inside in ["Fri 22:00", "Sat 05:59", "Sat 22:00", "Sun 05:59"] {
            assert!(contains(nights, inside), "{inside}");
        }
        for outside in ["Fri 05:59", "Sun 22:00", "Mon 00:00"] {
            assert!(!contains(nights, outside), "{outside}");
        }
        assert!(contains("Sun 22:00-06:00", "Mon 01:00"));
    }

    #[test]
    fn days_and_whole_days() {
        assert!(contains("Sat-Mon,wed 00:00-24:00", "Sun 12:00"));
        assert!(contains("Sat-Mon,wed 00:00-24:00", "Wed 23:59"));
        assert!(!contains("Sat-Mon,wed 00:00-24:00", "Tue 12:00"));
        assert!(contains("08:30-17:45", "Tue 08:30"));
        assert!(!contains("08:30-17:45", "Tue 17:45"));
        assert!(contains("24:00-01:00", "Tue 00:30"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, problem) in [
            ("night", "'night', which is neither a weekday"),
            ("Mon-Fry 20:00-22:00", "'Fry'"),
            ("Mon", "is not HH:MM-HH:MM"),
            ("22:00", "is not HH:MM-HH:MM"),
            ("22:00-6:00", "'6:00'"),
            ("22:60-06:00", "'22:60'"),
            ("25:00-06:00", "'25:00'"),
            ("+2:00-06:00", "'+2:00'"),
            ("06:00-06:00", "00:00-24:00"),
            ("22:00-06:00 Europe/Berlin please", "'please'"),
        ] {
            let error = parse_feed_window(text).unwrap_err();
            assert!(error.contains(problem), "{text}: {error}");
        }
    }
}
