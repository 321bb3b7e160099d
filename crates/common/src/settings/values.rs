//! What settings can hold.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// Text that must be there.
pub fn required(text: &str) -> Result<String, String> {
    optional(text)?.ok_or_else(|| "is missing".into())
}

/// Text that need not be there.
pub fn optional(text: &str) -> Result<Option<String>, String> {
    Ok((!text.is_empty()).then(|| text.to_owned()))
}

pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("is neither true nor false".into()),
    }
}

pub(crate) fn must_be_one_of(known: &[&str]) -> String {
    match known {
        [only] => format!("must be {only}"),
        _ => format!("must be one of {}", known.join(", ")),
    }
}

/// A share in percent.
pub fn parse_percent(text: &str) -> Result<f64, String> {
    match text.trim_end_matches('%').parse() {
        Ok(percent) if percent > 0.0 && percent <= 100.0 => Ok(percent),
        _ => Err("is not a percentage above 0 and up to 100, such as 1 or 0.5".into()),
    }
}

/// An address to listen on, or `off`.
pub fn parse_address(text: &str) -> Result<Option<SocketAddr>, String> {
    let address = |text: &str| {
        let address = text.parse();
        address.map_err(|_| "is not an address and port, such as 127.0.0.1:9100".into())
    };
    or_off(address)(text)
}

/// What `read` understands; none for `off`.
pub fn or_off<T>(
    read: impl Fn(&str) -> Result<T, String> + Clone,
) -> impl Fn(&str) -> Result<Option<T>, String> + Clone {
    move |text| {
        if text.eq_ignore_ascii_case("off") {
            return Ok(None);
        }
        let value = read(text).map(Some);
        value.map_err(|problem| format!("{problem}, nor off"))
    }
}

/// One of these words.
pub fn choice<T: Clone>(
    words: &'static [(&'static str, T)],
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let found = words.iter().find(|(word, _)| *word == text);
        found.map(|(_, value)| value.clone()).ok_or_else(|| {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            must_be_one_of(&known)
        })
    }
}

/// A whole number within bounds.
pub fn integer_between<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + fmt::Display + Clone,
{
    move |text| match text.parse::<T>() {
        Ok(number) if number >= least && number <= most => Ok(number),
        // Nobody chose such a bound.
        _ if most.to_string().len() > 15 => {
            Err(format!("is not a whole number of at least {least}"))
        }
        _ => Err(format!("is not a whole number from {least} to {most}")),
    }
}

/// A duration such as `30s`, `500ms` or `2m` within bounds; a bare number means seconds.
pub fn duration_between(
    least: Duration,
    most: Duration,
) -> impl Fn(&str) -> Result<Duration, String> + Clone {
    move |text| {
        let bare = text.parse().map(Duration::from_secs);
        let parsed = bare.or_else(|_| humantime::parse_duration(text));
        match parsed {
            Ok(duration) if duration >= least && duration <= most => Ok(duration),
            _ => Err(format!(
                "is not a duration {} (written like 30s, 500ms, 2m)",
                describe_bounds(least, most)
            )),
        }
    }
}

fn describe_bounds(least: Duration, most: Duration) -> String {
    let days = most.as_secs() / 86_400;
    let most = match days {
        // Humantime's months and years are no whole days.
        31.. if most == Duration::from_hours(24 * days) => format!("{days}days"),
        _ => humantime::format_duration(most).to_string(),
    };
    if least.is_zero() {
        format!("up to {most}")
    } else {
        format!("from {} to {most}", humantime::format_duration(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units_and_bounds() {
        let read = duration_between(Duration::from_secs(1), Duration::from_mins(1));
        assert_eq!(read("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(read("30"), Ok(Duration::from_secs(30)));
        assert_eq!(read("1m"), Ok(Duration::from_mins(1)));
        for bad in ["2m", "0s", "fast", "-1s", ""] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bounds_are_named_as_they_were_chosen() {
        let days = |days: u64| Duration::from_hours(24 * days);
        let second = Duration::from_secs(1);
        for (least, most, words) in [
            (Duration::ZERO, days(3650), "a duration up to 3650days ("),
            (second, days(365), "a duration from 1s to 365days ("),
            (second, days(14), "a duration from 1s to 14days ("),
        ] {
            let problem = duration_between(least, most)("x").unwrap_err();
            assert!(problem.contains(words), "{problem}");
        }
        let problem = integer_between(1, u64::MAX)("x").unwrap_err();
        assert_eq!(problem, "is not a whole number of at least 1");
    }

    #[test]
    fn flags_read_as_people_write_them() {
        assert_eq!(parse_bool("TRUE"), Ok(true));
        assert_eq!(parse_bool("0"), Ok(false));
        assert!(parse_bool("maybe").is_err());
    }

    #[test]
    fn a_number_or_off() {
        let read = or_off(integer_between(0, u64::MAX >> 1));
        assert_eq!(read("0"), Ok(Some(0)));
        assert_eq!(read("OFF"), Ok(None));
        assert!(read("-1").is_err());
        assert!(read("1%").unwrap_err().ends_with(", nor off"));
    }

    #[test]
    fn an_address_or_none() {
        assert_eq!(parse_address("off"), Ok(None));
        assert!(parse_address("[::]:9100").unwrap().is_some());
        assert!(parse_address("9100").is_err());
    }
}
