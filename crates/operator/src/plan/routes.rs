//! What the path rule makes of some rows.

use std::collections::BTreeMap;

use bucket_brigade_common::path_rule::{MoveRoute, PathRule};

use super::check::PlanChecks;

#[derive(Default)]
pub(super) struct RoutedRows {
    pub(super) rows: Vec<(String, MoveRoute)>,
    /// Ids of rows without a route, by why.
    unroutable: BTreeMap<&'static str, (String, Vec<String>)>,
}

impl RoutedRows {
    pub(super) fn from_rows(rule: &PathRule, rows: Vec<(String, String)>) -> Self {
        let mut routed = Self::default();
        for (id, path) in rows {
            match rule.route_for(&path) {
                Ok(route) => routed.rows.push((id, route)),
                Err(problem) => {
                    let entry = routed.unroutable.entry(problem.error_code());
                    let (_, ids) = entry.or_insert_with(|| (problem.to_string(), Vec::new()));
                    ids.push(id);
                }
            }
        }
        routed
    }

    pub(super) fn check(&self, rule: &PathRule, checks: &mut PlanChecks) {
        for (problem, ids) in self.unroutable.values() {
            let finding = format!("rows cannot be moved: {problem} (ids: {})", ids.join(", "));
            checks.warn("rows", finding, "they will be recorded as failed");
        }
        self.check_slashes(rule, checks);
    }

    /// A prefix with a slash at its end in place of one without, or the other way round.
    fn check_slashes(&self, rule: &PathRule, checks: &mut PlanChecks) {
        let (old, new) = (rule.old_prefix(), rule.new_prefix());
        let has_slash = [old, new].map(|prefix| prefix.ends_with('/'));
        let is_met = |(_, route): &&(String, MoveRoute)| {
            let rest = &route.old_path[old.len()..];
            match has_slash {
                [false, true] => rest.starts_with('/'),
                [true, false] => !new.is_empty() && !rest.is_empty(),
                _ => false,
            }
        };
        let Some((id, route)) = self.rows.iter().find(is_met) else {
            return;
        };
        let finding = format!(
            "row {id}: '{}' would become '{}'",
            route.old_path, route.new_path
        );
        let mend = "end OLD_PREFIX and NEW_PREFIX both with a slash, or neither";
        if has_slash[1] {
            checks.fail("prefixes", finding, mend);
        } else {
            checks.warn("prefixes", finding, mend);
        }
    }
}
