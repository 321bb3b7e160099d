//! The results as a picture: how much of each target is used up, and what grows with the table.

use std::fmt::Write;

use crate::results::{BenchResults, GrowthPoint, ResultRow, TargetBound, format_short};
use crate::stats::to_f64;

const CHART_WIDTH: f64 = 900.0;
const LABEL_WIDTH: f64 = 430.0;
const LINE_HEIGHT: f64 = 22.0;
const TOP_MARGIN: f64 = 48.0;
/// Bars are drawn up to twice the target.
const MAX_SHARE: f64 = 2.0;
const PANEL_HEIGHT: f64 = 170.0;

/// An SVG picture. Nothing in it is drawn by hand.
pub fn draw_chart(results: &BenchResults) -> String {
    let rows: Vec<(&ResultRow, f64)> = results
        .rows
        .iter()
        .filter_map(|row| Some((row, target_share(row)?)))
        .collect();
    let bars_end = TOP_MARGIN + to_f64(rows.len() as u64) * LINE_HEIGHT + 20.0;
    let growth_height = if results.growth.is_empty() {
        0.0
    } else {
        PANEL_HEIGHT + 60.0
    };
    let height = bars_end + growth_height;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {CHART_WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{CHART_WIDTH}\" height=\"{height}\" fill=\"#fff\"/>\n"
    );
    draw_bars(&mut svg, &rows, bars_end);
    draw_growth(&mut svg, &results.growth, bars_end + 40.0);
    svg.push_str("</svg>\n");
    svg
}

/// The share of its target that a row uses up: more than 1 misses it.
fn target_share(row: &ResultRow) -> Option<f64> {
    let value = row.compared?.median;
    match row.target? {
        TargetBound::AtMost(bound) => Some(value / bound),
        TargetBound::AtLeast(bound) => Some(bound / value),
    }
}

fn draw_bars(svg: &mut String, rows: &[(&ResultRow, f64)], end: f64) {
    let scale = (CHART_WIDTH - LABEL_WIDTH - 120.0) / MAX_SHARE;
    draw_text(
        svg,
        10.0,
        20.0,
        "start",
        "Share of each target used up (median); shorter is better",
    );
    for (index, (row, used)) in (0_u64..).zip(rows) {
        let y = TOP_MARGIN + to_f64(index) * LINE_HEIGHT;
        let color = if *used <= 1.0 { "#2a7f4f" } else { "#c0392b" };
        let length = used.min(MAX_SHARE) * scale;
        draw_text(svg, LABEL_WIDTH - 10.0, y + 12.0, "end", &row_label(row));
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<rect x=\"{LABEL_WIDTH}\" y=\"{y}\" width=\"{length:.1}\" height=\"{}\" fill=\"{color}\"/>",
            LINE_HEIGHT - 6.0
        );
        draw_text(
            svg,
            LABEL_WIDTH + length + 6.0,
            y + 12.0,
            "start",
            &value_label(row),
        );
    }
    let x = LABEL_WIDTH + scale;
    let _ = writeln!(
        svg,
        "<line x1=\"{x:.1}\" y1=\"{}\" x2=\"{x:.1}\" y2=\"{end}\" stroke=\"#333\" stroke-dasharray=\"4 3\"/>",
        TOP_MARGIN - 8.0
    );
    draw_text(svg, x, TOP_MARGIN - 12.0, "middle", "target");
}

fn row_label(row: &ResultRow) -> String {
    let against = row.against.as_ref().map(|figure| figure.of.as_str());
    let name = match against {
        Some(of) => format!("{}: {of}", row.what),
        None => row.what.clone(),
    };
    if name.chars().count() > 60 {
        let cut: String = name.chars().take(58).collect();
        return format!("{cut}…");
    }
    name
}

fn value_label(row: &ResultRow) -> String {
    let value = row.compared.map_or(0.0, |compared| compared.median);
    let times = if row.is_ratio { " ×" } else { "" };
    match row.target {
        Some(TargetBound::AtMost(bound)) => {
            format!("{}{times} (≤ {})", format_short(value), format_short(bound))
        }
        Some(TargetBound::AtLeast(bound)) => {
            format!("{}{times} (≥ {})", format_short(value), format_short(bound))
        }
        None => format_short(value),
    }
}

/// Three small panels over the number of rows, each power of ten as wide as the next.
fn draw_growth(svg: &mut String, points: &[GrowthPoint], top: f64) {
    if points.is_empty() {
        return;
    }
    let panels: [(&str, &[ChartLine]); 3] = [
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
        draw_panel(
            svg,
            points,
            (20.0 + to_f64(index) * 295.0, top),
            title,
            lines,
        );
    }
}

type ChartLine = (&'static str, &'static str, fn(&GrowthPoint) -> f64);

fn draw_panel(
    svg: &mut String,
    points: &[GrowthPoint],
    (left, top): (f64, f64),
    title: &str,
    lines: &[ChartLine],
) {
    let (width, height) = (235.0, PANEL_HEIGHT - 30.0);
    let values = lines
        .iter()
        .flat_map(|(_, _, value)| points.iter().map(value));
    let most = values.fold(0.0_f64, f64::max) * 1.15;
    draw_text(svg, left, top - 8.0, "start", title);
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{width}\" height=\"{height}\" fill=\"none\" stroke=\"#999\"/>"
    );
    let x = |rows: u64| left + (to_f64(rows).log10() - 3.0) / 4.0 * (width - 20.0) + 10.0;
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
            draw_text(svg, *x, y - 6.0, "middle", &format_short(*value));
        }
    }
    for point in points {
        draw_text(
            svg,
            x(point.rows),
            top + height + 14.0,
            "middle",
            &power_of_ten(point.rows),
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

fn power_of_ten(rows: u64) -> String {
    format!("10^{}", rows.max(1).ilog10())
}

fn draw_text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MachineInfo;

    fn results(rows: Vec<ResultRow>) -> BenchResults {
        BenchResults {
            machine: MachineInfo::detect("17"),
            rows,
            growth: Vec::new(),
            figures: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn a_missed_target_is_red_and_a_met_one_is_not() {
        let row = |ours: f64| {
            ResultRow::from_runs("a", "a & b", "s", &[ours], TargetBound::AtMost(1.0)).unwrap()
        };
        assert!(draw_chart(&results(vec![row(2.0)])).contains("#c0392b"));
        let svg = draw_chart(&results(vec![row(0.5)]));
        assert!(!svg.contains("#c0392b") && svg.contains("a &amp; b"));
    }

    #[test]
    fn rows_without_a_figure_are_left_out() {
        let missing =
            ResultRow::not_measured("peer", "peer", TargetBound::AtMost(1.0), "not installed");
        assert!(!draw_chart(&results(vec![missing])).contains("peer"));
    }
}
