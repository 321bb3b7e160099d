//! The report as a page of its own: no script, nothing fetched from anywhere.

use std::io::{Result, Write};

use bucket_brigade_common::ledger::{PostgresLedger, ReportLine};

use super::ReportWriter;

const STYLE: &str = ":root{color-scheme:light dark}
body{font:14px/1.4 system-ui,sans-serif;margin:1.5rem}
table{border-collapse:collapse}
th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #8886;vertical-align:top}
th{position:sticky;top:0;background:Canvas}
td.number{text-align:right;font-variant-numeric:tabular-nums}
td.path{font-family:ui-monospace,monospace;overflow-wrap:anywhere}
tr.failed,tr.wrong{background:#d002}";

const HEADER: &str = "<thead><tr><th scope=\"col\">Row</th><th scope=\"col\">State</th><th scope=\"col\">Old path</th>\
<th scope=\"col\">New path</th><th scope=\"col\">ETag</th><th scope=\"col\">Bytes</th><th scope=\"col\">When (UTC)</th>\
<th scope=\"col\">By</th><th scope=\"col\">Verified (UTC)</th><th scope=\"col\">Source removed (UTC)</th>\
<th scope=\"col\">What is wrong</th></tr></thead>";

#[derive(Default)]
pub(super) struct Html {
    lines: u64,
}

impl ReportWriter for Html {
    fn write_header(&mut self, out: &mut dyn Write, ledger: &PostgresLedger) -> Result<()> {
        let title = format!("Run {} of {}", ledger.run_id(), ledger.table_name());
        let title = escape(&title);
        writeln!(
            out,
            "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n<style>{STYLE}</style></head>\n<body>\n<main>\n<h1>{title}</h1>\n<table>\n{HEADER}\n<tbody>"
        )
    }

    fn write_line(&mut self, out: &mut dyn Write, line: &ReportLine) -> Result<()> {
        self.lines += 1;
        let class = match (line.state.as_str(), &line.code) {
            ("failed", _) => " class=\"failed\"",
            (_, Some(_)) => " class=\"wrong\"",
            _ => "",
        };
        let size = line.size_bytes.map(|size| size.to_string());
        write!(out, "<tr{class}>")?;
        cell(out, "", Some(&line.id))?;
        cell(out, "", Some(&line.state))?;
        cell(out, " class=\"path\"", Some(&line.old_path))?;
        cell(out, " class=\"path\"", line.new_path.as_deref())?;
        cell(out, "", line.etag.as_deref())?;
        cell(out, " class=\"number\"", size.as_deref())?;
        cell(out, "", Some(&line.at))?;
        cell(out, "", line.by.as_deref())?;
        cell(out, "", line.verified_at.as_deref())?;
        cell(out, "", line.source_removed_at.as_deref())?;
        cell(out, "", wrong(line).as_deref())?;
        writeln!(out, "</tr>")
    }

    fn write_footer(&mut self, out: &mut dyn Write) -> Result<()> {
        let lines = self.lines;
        writeln!(
            out,
            "</tbody>\n</table>\n<p>{lines} rows.</p>\n</main>\n</body>\n</html>"
        )
    }
}

fn wrong(line: &ReportLine) -> Option<String> {
    match (&line.code, &line.message) {
        (Some(code), Some(message)) => Some(format!("{code}: {message}")),
        (one, other) => one.clone().or_else(|| other.clone()),
    }
}

fn cell(out: &mut dyn Write, class: &str, text: Option<&str>) -> Result<()> {
    write!(out, "<td{class}>{}</td>", escape(text.unwrap_or_default()))
}

/// Nothing of a path is markup. Controls, which HTML cannot hold, are shown as what they are.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            control if control.is_control() => escaped.extend(control.escape_default()),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_path_becomes_markup() {
        assert_eq!(
            escape("<script>alert('1' & \"2\")</script>\u{1}"),
            "&lt;script&gt;alert(&#39;1&#39; &amp; &quot;2&quot;)&lt;/script&gt;\\u{1}"
        );
    }
}
