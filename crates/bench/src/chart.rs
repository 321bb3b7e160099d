//! The results as a picture: how much of each target is used up, and what grows with the table.

use std::fmt::Write;

use crate::results::{Growth, Results, Row, Target, short};
use crate::stats::float;

const WIDTH: f64 = 900.0;
const LABELS: f64 = 430.0;
const LINE: f64 = 22.0;
const TOP: f64 = 48.0;
/// Bars are drawn up to twice the target.
const MOST: f64 = 2.0;
const PANEL: f64 = 170.0;

/// An SVG picture. Nothing in it is drawn by hand.
pub fn draw(results: &Results) -> String {
    let rows: Vec<(&Row, f64)> = results
        .rows
        .iter()
        .filter_map(|row| Some((row, used(row)?)))
        .collect();
    let bars_end = TOP + float(rows.len() as u64) * LINE + 20.0;
    let growth_height = if results.growth.is_empty() {
        0.0
    } else {
        PANEL + 60.0
    };
    let height = bars_end + growth_height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    bars(&mut svg, &rows, bars_end);
    growth(&mut svg, &results.growth, bars_end + 40.0);
    svg.push_str("</svg>\n");
    svg
}

/// The share of its target that a row uses up: more than 1 misses it.
fn used(row: &Row) -> Option<f64> {
    let value = row.compared?.median;
    match row.target? {
        Target::AtMost(bound) => Some(value / bound),
        Target::AtLeast(bound) => Some(bound / value),
    }
}

fn bars(svg: &mut String, rows: &[(&Row, f64)], end: f64) {
    let scale = (WIDTH - LABELS - 120.0) / MOST;
    text(
        svg,
        10.0,
        20.0,
        "start",
        "Share of each target used up (median); shorter is better",
    );
    for (index, (row, used)) in (0_u64..).zip(rows) {
        let y = TOP + float(index) * LINE;
        let color = if *used <= 1.0 { "#2a7f4f" } else { "#c0392b" };
        let length = used.min(MOST) * scale;
        text(svg, LABELS - 10.0, y + 12.0, "end", &label(row));
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>",
            LINE - 6.0
        );
        text(svg, LABELS + length + 6.0, y + 12.0, "start", &verdict(row));
    }
    let x = LABELS + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{end}\" stroke=\"#333\" stroke-dasharray=\"4 3\"/>",
        TOP - 8.0
    );
    text(svg, x, TOP - 12.0, "middle", "target");
}

fn label(row: &Row) -> String {
    let against = row.against.as_ref().map(|figure| figure.of.as_str());
    let name = match against {
        Some(of) => format!("{}: {of}", row.what),
        None => row.what.clone(),
    };
    if name.chars().count() > 72 {
        let cut: String = name.chars().take(70).collect();
        return format!("{cut}…");
    }
    name
}

fn verdict(row: &Row) -> String {
    let value = row.compared.map_or(0.0, |compared| compared.median);
    let times = if row.is_ratio { " ×" } else { "" };
    match row.target {
        Some(Target::AtMost(bound)) => format!("{}{times} (≤ {})", short(value), short(bound)),
        Some(Target::AtLeast(bound)) => format!("{}{times} (≥ {})", short(value), short(bound)),
        None => short(value),
    }
}

/// Three small panels over the number of rows, each power of ten as wide as the next.
fn growth(svg: &mut String, points: &[Growth], top: f64) {
    if points.is_empty() {
        return;
    }
    let panels: [(&str, &[Line]); 3] = [
        (
            "CPU per image, µs",
            &[
                ("consumer", "#2a5d9f", |point| point.consumer_cpu_us),
                ("feeder", "#d08b2c", |point| point.feeder_cpu_us),
            ],
        ),
        (
            "peak RSS, MiB",
            &[
                ("consumer", "#2a5d9f", |point| point.consumer_rss_mib),
                ("feeder", "#d08b2c", |point| point.feeder_rss_mib),
            ],
        ),
        (
            "a keyset page of 1,000, ms",
            &[("page", "#2a7f4f", |point| point.page_ms)],
        ),
    ];
    for (index, (title, lines)) in (0_u64..).zip(panels) {
        panel(
            svg,
            points,
            (20.0 + float(index) * 295.0, top),
            title,
            lines,
        );
    }
}

type Line = (&'static str, &'static str, fn(&Growth) -> f64);

fn panel(
    svg: &mut String,
    points: &[Growth],
    (left, top): (f64, f64),
    title: &str,
    lines: &[Line],
) {
    let (width, height) = (235.0, PANEL - 30.0);
    let values = lines
        .iter()
        .flat_map(|(_, _, value)| points.iter().map(value));
    let most = values.fold(0.0_f64, f64::max) * 1.15;
    text(svg, left, top - 8.0, "start", title);
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\"/>"
    );
    let x = |rows: u64| left + (float(rows).log10() - 3.0) / 4.0 * (width - 20.0) + 10.0;
    let y = |value: f64| top + height - value / most * height;
    for (name, color, value) in lines {
        let places: Vec<(f64, f64, f64)> = points
            .iter()
            .map(|point| (x(point.rows), y(value(point)), value(point)))
            .collect();
        let path: Vec<String> = places
            .iter()
            .map(|(x, y, _)| format!("{x:.1},{y:.1}"))
            .collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"><title>{name}</title></polyline>",
            path.join(" ")
        );
        for (x, y, value) in &places {
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{color}\"/>"
            );
            text(svg, *x, y - 6.0, "middle", &short(*value));
        }
    }
    for point in points {
        text(
            svg,
            x(point.rows),
            top + height + 14.0,
            "middle",
            &power(point.rows),
        );
    }
    let names: Vec<String> = lines
        .iter()
        .map(|(name, color, _)| format!("<tspan fill=\"{color}\">{name}</tspan>"))
        .collect();
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
        left + width,
        top - 8.0,
        names.join(" · ")
    );
}

fn power(rows: u64) -> String {
    format!("10^{}", rows.max(1).ilog10())
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Machine;

    fn results(rows: Vec<Row>) -> Results {
        Results {
            machine: Machine::ask("17"),
            rows,
            growth: Vec::new(),
            told: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_missed_target_is_red_and_a_met_one_is_not() {
        let row = |ours: f64| Row::plain("a", "a & b", "s", &[ours], Target::AtMost(1.0)).unwrap();
        assert!(draw(&results(vec![row(2.0)])).contains("#c0392b"));
        let svg = draw(&results(vec![row(0.5)]));
        assert!(!svg.contains("#c0392b") && svg.contains("a &amp; b"));
    }

    #[test]
    fn rows_without_a_figure_are_left_out() {
        let missing = Row::missing("peer", "peer", Target::AtMost(1.0), "not installed");
        assert!(!draw(&results(vec![missing])).contains("peer"));
    }
}
