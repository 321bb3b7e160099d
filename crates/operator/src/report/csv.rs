//! The report as CSV, by RFC 4180 but for the line ends, which are this system's.

use std::io::{Result, Write};

use bucket_brigade_common::ledger::{PostgresLedger, ReportLine};

use super::ReportWriter;

const HEADER: &str =
    "id,state,old_path,new_path,etag,size_bytes,at,by,verified_at,source_removed_at,code,message";

pub(super) struct CsvReport;

impl ReportWriter for CsvReport {
    fn write_header(&mut self, out: &mut dyn Write, _: &PostgresLedger) -> Result<()> {
        writeln!(out, "{HEADER}")
    }

    fn write_line(&mut self, out: &mut dyn Write, line: &ReportLine) -> Result<()> {
        let size = line.size_bytes.map(|size| size.to_string());
        let fields = [
            &line.id,
            &line.state,
            &line.old_path,
            text_or_empty(line.new_path.as_ref()),
            text_or_empty(line.etag.as_ref()),
            text_or_empty(size.as_ref()),
            &line.at,
            text_or_empty(line.by.as_ref()),
            text_or_empty(line.verified_at.as_ref()),
            text_or_empty(line.source_removed_at.as_ref()),
            text_or_empty(line.code.as_ref()),
            text_or_empty(line.message.as_ref()),
        ];
        for (number, field) in fields.iter().enumerate() {
            if number > 0 {
                write!(out, ",")?;
            }
            write_field(out, field)?;
        }
        writeln!(out)
    }

    fn write_footer(&mut self, _: &mut dyn Write) -> Result<()> {
        Ok(())
    }
}

fn text_or_empty(field: Option<&String>) -> &str {
    field.map_or("", String::as_str)
}

fn write_field(out: &mut dyn Write, field: &str) -> Result<()> {
    if field.contains(['"', ',', '\n', '\r']) || field.starts_with(' ') || field.ends_with(' ') {
        write!(out, "\"{}\"", field.replace('"', "\"\""))
    } else {
        write!(out, "{field}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(field: &str) -> String {
        let mut out = Vec::new();
        write_field(&mut out, field).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_would_break_a_line_is_quoted() {
        assert_eq!(written("image/a b.png"), "image/a b.png");
        assert_eq!(written("a,b"), "\"a,b\"");
        assert_eq!(written("say \"a\""), "\"say \"\"a\"\"\"");
        assert_eq!(written("a\nb"), "\"a\nb\"");
        assert_eq!(written(""), "");
    }

    proptest! {
        #[test]
        fn a_field_reads_back_unchanged(field in "[a,\"\n\r é]{0,12}") {
            let written = written(&field);
            let read = match written.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
                Some(inner) => inner.replace("\"\"", "\""),
                None => written,
            };
            prop_assert_eq!(read, field);
        }
    }
}
