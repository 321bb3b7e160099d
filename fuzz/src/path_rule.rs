//! A path rule and two paths, one to a line: old prefix, new prefix, source key prefix, destination
//! key prefix (`-` for the default), and the paths. Each way to spell keys is tried.

use bucket_brigade_common::path_encoding::PathEncoding;
use bucket_brigade_common::path_rule::{
    MAX_KEY_BYTES, MoveRoute, PathRule, PathRuleError, RouteError,
};

/// Checks one input.
pub fn check(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.splitn(6, '\n');
    let mut line = || lines.next().unwrap_or_default();
    let (old, new) = (line(), line());
    let (source, destination) = (optional(line()), optional(line()));
    let (first, second) = (line(), line());
    let refused = match PathRule::new(old, new, source.clone(), destination.clone()) {
        Ok(rule) => {
            assert_eq!(rule.source_key_prefix(), source.as_deref().unwrap_or(old));
            assert_eq!(
                rule.destination_key_prefix(),
                destination.as_deref().unwrap_or(new)
            );
            for encoding in PathEncoding::ALL {
                check_rule(&rule.clone().with_encoding(encoding), first, second);
            }
            return;
        }
        Err(refused) => refused,
    };
    match refused {
        PathRuleError::EmptyOldPrefix => assert!(old.is_empty()),
        PathRuleError::NewPathsStillMatch { .. } => assert!(new.starts_with(old)),
    }
}

fn optional(line: &str) -> Option<String> {
    (line != "-").then(|| line.to_owned())
}

fn check_rule(rule: &PathRule, first: &str, second: &str) {
    assert!(!rule.old_prefix().is_empty());
    assert!(!rule.is_in_scope(rule.new_prefix()));
    for path in [first, second] {
        match rule.route_for(path) {
            Ok(route) => check_route(rule, path, &route),
            Err(reason) => check_refusal(rule, path, &reason),
        }
    }
    if let (Ok(a), Ok(b)) = (rule.route_for(first), rule.route_for(second)) {
        // Two paths never share a new path, and an object only where they spell it differently; one always does.
        let same = first == second;
        assert_eq!(a.new_path == b.new_path, same);
        let same_key = a.source_key == b.source_key;
        assert_eq!(a.destination_key == b.destination_key, same_key);
        assert!(same == same_key || (same_key && rule.encoding() != PathEncoding::None));
    }
}

/// What must hold of every route, whatever rule and path it comes of.
pub(crate) fn check_route(rule: &PathRule, path: &str, route: &MoveRoute) {
    assert_eq!(route.old_path, path);
    assert!(rule.is_in_scope(path) && !path.contains('\0'));
    // Only the leading match is replaced; the rest is the same everywhere.
    let rest = &path[rule.old_prefix().len()..];
    assert_eq!(route.new_path, format!("{}{rest}", rule.new_prefix()));
    let Ok(name) = rule.encoding().decode(rest) else {
        panic!("{route:?} has a key that {rest:?} does not spell");
    };
    for (key, prefix) in [
        (&route.source_key, rule.source_key_prefix()),
        (&route.destination_key, rule.destination_key_prefix()),
    ] {
        assert_eq!(*key, format!("{prefix}{name}"));
        assert!((1..=MAX_KEY_BYTES).contains(&key.len()));
    }
    for spelling in rule.encoding().usual_spellings(&name) {
        let other = rule.route_for(&format!("{}{spelling}", rule.old_prefix()));
        // Its new path may match the old prefix, where this one's does not.
        if let Ok(other) = other {
            assert_eq!(other.source_key, route.source_key);
        }
    }
    // Moved paths can be distinguished from those to move.
    assert!(!rule.is_in_scope(&route.new_path));
    assert_eq!(
        rule.route_for(&route.new_path),
        Err(RouteError::OutsideRule)
    );
    check_reverse_route(rule, route);
}

/// The rule turned round, where there is one, leads back.
fn check_reverse_route(rule: &PathRule, route: &MoveRoute) {
    let (source, destination) = (rule.source_key_prefix(), rule.destination_key_prefix());
    let turned = PathRule::new(
        rule.new_prefix(),
        rule.old_prefix(),
        Some(destination.into()),
        Some(source.into()),
    );
    if let Some(back) = turned
        .ok()
        .map(|turned| turned.with_encoding(rule.encoding()))
        .and_then(|turned| turned.route_for(&route.new_path).ok())
    {
        assert_eq!(back.new_path, route.old_path);
        assert_eq!(back.source_key, route.destination_key);
        assert_eq!(back.destination_key, route.source_key);
    }
}

/// A refusal must be true.
fn check_refusal(rule: &PathRule, path: &str, reason: &RouteError) {
    let in_scope = rule.is_in_scope(path);
    assert_eq!(in_scope, path.starts_with(rule.old_prefix()));
    assert_eq!(!in_scope, *reason == RouteError::OutsideRule);
    let longest = [rule.source_key_prefix(), rule.destination_key_prefix()].map(str::len);
    let rest = path.strip_prefix(rule.old_prefix()).unwrap_or_default();
    let name = rule.encoding().decode(rest);
    let length_of_name = name.as_ref().map_or(0, |name| name.len());
    match reason {
        RouteError::OutsideRule => {}
        RouteError::ContainsNul => {
            assert!(path.contains('\0') || name == Err(RouteError::ContainsNul));
        }
        RouteError::InvalidEscape(_) | RouteError::EscapeNotUtf8 | RouteError::PathTooLong(_) => {
            assert_eq!(name.as_ref().err(), Some(reason));
        }
        RouteError::QueryOfBucket(parameter) => {
            let query = rest.split_once('?').map_or("", |(_, query)| query);
            assert!(rule.encoding() != PathEncoding::None && query.contains(parameter.as_str()));
        }
        RouteError::StillMatches(new_path) => assert!(rule.is_in_scope(new_path)),
        RouteError::EmptyKey => assert!(length_of_name == 0 && longest.contains(&0)),
        RouteError::KeyTooLong(length) => {
            let is_one = |prefix: &usize| prefix + length_of_name == *length;
            assert!(*length > MAX_KEY_BYTES && longest.iter().any(is_one));
        }
    }
}
