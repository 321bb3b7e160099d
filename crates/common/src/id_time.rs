//! Dates and times in ids, in the one spelling that `json_build_array` gives them, which is that of ISO 8601
//! whatever the session's `DateStyle`.

/// The last years of `date` and `timestamp`. Source: PostgreSQL documentation, "Date/Time Types".
const MAX_DATE_YEAR: u32 = 5_874_897;
const MAX_TIMESTAMP_YEAR: u32 = 294_276;

/// `date` and `timestamp` begin within 4714 BC.
const MAX_YEAR_BC: u32 = 4713;

/// Whether Postgres writes a date so, and reads it back.
pub(crate) fn is_date(text: &str) -> bool {
    let (date, is_bc) = split_era(text);
    is_infinite(text) || is_day(date, is_bc, MAX_DATE_YEAR)
}

/// The same for a timestamp, without a time zone.
pub(crate) fn is_timestamp(text: &str) -> bool {
    let (text_of_era, is_bc) = split_era(text);
    let parts = text_of_era.split_once('T');
    let is_moment = |(date, time)| is_day(date, is_bc, MAX_TIMESTAMP_YEAR) && is_time(time);
    is_infinite(text) || parts.is_some_and(is_moment)
}

fn is_infinite(text: &str) -> bool {
    matches!(text, "infinity" | "-infinity")
}

fn split_era(text: &str) -> (&str, bool) {
    text.strip_suffix(" BC")
        .map_or((text, false), |date| (date, true))
}

fn is_day(text: &str, is_bc: bool, max_year: u32) -> bool {
    let Some([year, month, day]) = split_into(text, '-') else {
        return false;
    };
    let is_padded = year.len() == 4 || year.len() > 4 && !year.starts_with('0');
    let (Some(year), Some(month), Some(day)) = (number(year), two_digits(month), two_digits(day))
    else {
        return false;
    };
    let most = if is_bc { MAX_YEAR_BC } else { max_year };
    is_padded && (1..=most).contains(&year) && (1..=days_of(year, month, is_bc)).contains(&day)
}

fn is_time(text: &str) -> bool {
    let (time, fraction) = text
        .split_once('.')
        .map_or((text, None), |(time, fraction)| (time, Some(fraction)));
    let Some([hour, minute, second]) = split_into(time, ':') else {
        return false;
    };
    let is_below = |text, most| two_digits(text).is_some_and(|number| number < most);
    is_below(hour, 24)
        && is_below(minute, 60)
        && is_below(second, 60)
        && fraction.is_none_or(is_fraction)
}

/// Microseconds, without zeros at their end.
fn is_fraction(text: &str) -> bool {
    text.len() <= 6 && number(text).is_some() && !text.ends_with('0')
}

/// Zero for a month there is not.
fn days_of(year: u32, month: u32, is_bc: bool) -> u32 {
    // The year before 1 is 1 BC, a leap year.
    let year = if is_bc { year - 1 } else { year };
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        1 | 3 | 5 | 7 | 8 | 10 | 12 => 31,
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => 0,
    }
}

fn split_into(text: &str, separator: char) -> Option<[&str; 3]> {
    let parts: Vec<&str> = text.split(separator).collect();
    parts.try_into().ok()
}

fn two_digits(text: &str) -> Option<u32> {
    number(text).filter(|_| text.len() == 2)
}

/// Without a sign, which `parse` takes.
fn number(text: &str) -> Option<u32> {
    let is_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_split(is_valid: fn(&str) -> bool, good: &str, bad: &str) {
        for good in good.split(',') {
            assert!(is_valid(good), "{good}");
        }
        for bad in bad.split(',') {
            assert!(!is_valid(bad), "{bad}");
        }
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_split(
            is_date,
            "2024-02-29,2000-02-29,0001-01-01,5874897-12-31,0001-02-29 BC,4713-01-01 BC,infinity,-infinity",
            ",2023-02-29,1900-02-29,2024-13-01,2024-00-01,2024-1-01,02024-01-01,24-01-01,0000-01-01,\
             5000-01-01 BC,2024-01-01T00:00:00,+024-01-01,2024-01-01 AD,01/02/2024,2024-01-01-,INFINITY",
        );
    }

    #[test]
    fn times_have_one_spelling() {
        assert_split(
            is_timestamp,
            "2024-02-29T00:00:00,2024-02-29T23:59:59.999999,0044-03-15T12:00:00.5 BC,infinity",
            "2024-02-29,2024-02-29 00:00:00,2024-02-29T24:00:00,2024-02-29T00:60:00,2024-02-29T00:00:60,\
             2024-02-29T00:00:00.50,2024-02-29T00:00:00.,2024-02-29T00:00:00.1234567,2024-02-29T00:00:00Z,\
             2024-02-29T00:00:00+00,2024-02-29T00:00,2024-02-29T0:00:00,now",
        );
    }
}
