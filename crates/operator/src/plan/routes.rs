//! What the path rule makes of some rows.

use std::collections::BTreeMap;

use bucket_brigade_common::path_rule::{MoveRoute, PathRule};

use super::check::PlanCheck;

#[derive(Default)]
pub(super) struct RoutedRows {
    /// Ids and routes.
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

    pub(super) fn checks(&self, rule: &PathRule) -> Vec<PlanCheck> {
        let unroutable = self.unroutable.values().map(|(problem, ids)| {
            let finding = format!("rows cannot be moved: {problem} (ids: {})", ids.join(", "));
            PlanCheck::new_warning("rows", finding, "they will be recorded as failed")
        });
        unroutable.chain(self.check_slashes(rule)).collect()
    }

    /// A prefix with a slash at its end in place of one without, or the other way round.
    fn check_slashes(&self, rule: &PathRule) -> Option<PlanCheck> {
        let (old, new) = (rule.old_prefix(), rule.new_prefix());
        let rest = |route: &MoveRoute| route.old_path[old.len()..].to_owned();
        let is_doubled = |route: &MoveRoute| new.ends_with('/') && rest(route).starts_with('/');
        let is_missing = |route: &MoveRoute| {
            old.ends_with('/') && !new.is_empty() && !new.ends_with('/') && !rest(route).is_empty()
        };
        let becomes = |(id, route): &(String, MoveRoute)| {
            format!(
                "row {id}: '{}' would become '{}'",
                route.old_path, route.new_path
            )
        };
        let mend = "end OLD_PREFIX and NEW_PREFIX both with a slash, or neither";
        let find = |is: &dyn Fn(&MoveRoute) -> bool| self.rows.iter().find(|(_, route)| is(route));
        if let Some(row) = find(&|route| is_doubled(route) && !old.ends_with('/')) {
            return Some(PlanCheck::new_failure("prefixes", becomes(row), mend));
        }
        find(&is_missing).map(|row| PlanCheck::new_warning("prefixes", becomes(row), mend))
    }
}
