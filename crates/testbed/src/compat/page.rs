//! `docs/compatibility.md`.

use std::fmt::Write as _;

use super::StoreReport;

const INTRODUCTION: &str = "# Compatibility

What stores that speak S3 honour, and whether a migration holds on them: moved while an application reads,
replaces and deletes images, verified, rolled back, moved again, and cleaned. Written by `script/compat all`.
Of eight conditional copies at once one must succeed. `local` is the test server of this repository.

AWS is not in the table, as nothing has run there. It documents `If-None-Match` for `CopyObject` since October 2025
([conditional writes](https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html)); `feeder plan`
tries it in your bucket (line `condition`).
";

pub(super) fn render_page(reports: &[StoreReport]) -> String {
    let names: Vec<&str> = reports.iter().map(|report| &*report.name).collect();
    let mut page = format!(
        "{INTRODUCTION}\n| | {} |\n|---{}|\n",
        names.join(" | "),
        "|---".repeat(names.len())
    );
    let first = reports.first().map_or(&[][..], |report| &report.probes);
    for (row, probe) in first.iter().enumerate() {
        let findings = reports
            .iter()
            .map(|report| report.probes[row].finding.clone());
        add_row(&mut page, probe.question, findings);
    }
    let migrations = || reports.iter().map(|report| &report.migration);
    add_row(
        &mut page,
        "keys with all kinds of characters",
        migrations().map(|one| one.odd_keys.clone()),
    );
    add_row(
        &mut page,
        "**how images are copied**",
        migrations().map(|one| one.copying.clone()),
    );
    let moved = |count: u64| format!("{count}");
    add_row(
        &mut page,
        "images moved",
        migrations().map(|one| moved(one.moved)),
    );
    add_row(
        &mut page,
        "sources removed",
        migrations().map(|one| one.removed.to_string()),
    );
    add_row(
        &mut page,
        "the application's reads",
        migrations().map(|one| moved(one.reads)),
    );
    add_row(
        &mut page,
        "**violations**",
        migrations().map(|one| one.violations.len().to_string()),
    );
    page
}

fn add_row(page: &mut String, question: &str, findings: impl Iterator<Item = String>) {
    let findings: Vec<String> = findings.collect();
    let _ = writeln!(page, "| {question} | {} |", findings.join(" | "));
}
