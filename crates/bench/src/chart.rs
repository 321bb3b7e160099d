//! The results as a picture: how much of each target is used up, and what grows with the table.

use crate::results::{BenchResults, GrowthPoint, ResultRow, TargetBound, format_short};
use crate::stats::to_f64;

const CHART_WIDTH: f64 = 900.0;
const LABEL_WIDTH: f64 = 430.0;
const LINE_HEIGHT: f64 = 22.0;
const TOP_MARGIN: f64 = 48.0;
/// Bars are drawn up to twice the target.
const MAX_SHARE: f64 = 2.0;
const PANEL_HEIGHT: f64 = 140.0;
const PANEL_WIDTH: f64 = 235.0;

const GREEN: &str = "#2a7f4f";
const RED: &str = "#c0392b";
const BLUE: &str = "#2a5d9f";
const YELLOW: &str = "#d08b2c";

/// An SVG picture. Nothing in it is drawn by hand.
pub fn draw_chart(results: &BenchResults) -> String {
    let rows = results.rows.iter();
    let rows: Vec<_> = rows
        .filter_map(|row| Some((row, target_share(row)?)))
        .collect();
    let bars_end = TOP_MARGIN + to_f64(rows.len() as u64) * LINE_HEIGHT + 20.0;
    let bars = draw_bars(&rows, bars_end);
    let (mut height, mut growth) = (bars_end, String::new());
    if !results.growth.is_empty() {
        height += PANEL_HEIGHT + 90.0;
        growth = draw_growth(&results.growth, bars_end + 40.0);
    }
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CHART_WIDTH} {height}" font-family="sans-serif" font-size="12">
<rect width="{CHART_WIDTH}" height="{height}" fill="#fff"/>
{bars}{growth}</svg>
"##
    )
}

/// The share of its target that a row uses up: more than 1 misses it.
fn target_share(row: &ResultRow) -> Option<f64> {
    let value = row.compared?.median;
    match row.target? {
        TargetBound::AtMost(bound) => Some(value / bound),
        TargetBound::AtLeast(bound) => Some(bound / value),
    }
}

fn draw_bars(rows: &[(&ResultRow, f64)], end: f64) -> String {
    let scale = (CHART_WIDTH - LABEL_WIDTH - 120.0) / MAX_SHARE;
    let title = "Share of each target used up (median); shorter is better";
    let mut svg = vec![text(10.0, 20.0, "start", title)];
    for (index, (row, used)) in (0_u64..).zip(rows) {
        let y = TOP_MARGIN + to_f64(index) * LINE_HEIGHT;
        let (length, height) = (used.min(MAX_SHARE) * scale, LINE_HEIGHT - 6.0);
        let color = if *used <= 1.0 { GREEN } else { RED };
        svg.push(text(LABEL_WIDTH - 10.0, y + 12.0, "end", &row_label(row)));
        svg.push(format!(
            r#"<rect x="{LABEL_WIDTH}" y="{y}" width="{length:.1}" height="{height}" fill="{color}"/>
"#
        ));
        let x = LABEL_WIDTH + length + 6.0;
        svg.push(text(x, y + 12.0, "start", &value_label(row)));
    }
    let (x, from) = (LABEL_WIDTH + scale, TOP_MARGIN - 8.0);
    svg.push(format!(
        r##"<line x1="{x:.1}" y1="{from}" x2="{x:.1}" y2="{end}" stroke="#333" stroke-dasharray="4 3"/>
"##
    ));
    svg.push(text(x, TOP_MARGIN - 12.0, "middle", "target"));
    svg.concat()
}

fn row_label(row: &ResultRow) -> String {
    let against = row.against.as_ref();
    let of = against.map_or(String::new(), |figure| format!(": {}", figure.of));
    let name = format!("{}{of}", row.what);
    if name.chars().count() > 60 {
        let cut: String = name.chars().take(58).collect();
        return format!("{cut}…");
    }
    name
}

fn value_label(row: &ResultRow) -> String {
    let value = row.compared.map_or(0.0, |compared| compared.median);
    let times = if row.is_ratio { " ×" } else { "" };
    let target = row.target.map(|target| format!("{times} ({target})"));
    format_short(value) + &target.unwrap_or_default()
}

type ChartLine = (&'static str, &'static str, fn(&GrowthPoint) -> f64);

/// Three small panels over the number of rows, each power of ten as wide as the next.
fn draw_growth(points: &[GrowthPoint], top: f64) -> String {
    let cpu: [ChartLine; 2] = [
        ("consumer", BLUE, |point| point.consumer_cpu_us),
        ("feeder", YELLOW, |point| point.feeder_cpu_us),
    ];
    let memory: [ChartLine; 2] = [
        ("consumer", BLUE, |point| point.consumer_rss_mib),
        ("feeder", YELLOW, |point| point.feeder_rss_mib),
    ];
    let page: [ChartLine; 1] = [("page", GREEN, |point| point.page_ms)];
    let panels: [(&str, &[ChartLine]); 3] = [
        ("CPU per image, µs", &cpu),
        ("peak RSS, MiB", &memory),
        ("a keyset page of 1,000, ms", &page),
    ];
    let lefts = [20.0, 315.0, 610.0].into_iter();
    lefts
        .zip(panels)
        .map(|(left, (title, lines))| {
            text(left, top - 8.0, "start", title) + &draw_panel(points, (left, top), lines)
        })
        .collect()
}

fn draw_panel(points: &[GrowthPoint], (left, top): (f64, f64), lines: &[ChartLine]) -> String {
    let values = lines
        .iter()
        .flat_map(|(_, _, value)| points.iter().map(value));
    let most = values.fold(0.0_f64, f64::max) * 1.15;
    let x = |rows: u64| left + (to_f64(rows).log10() - 3.0) / 4.0 * (PANEL_WIDTH - 20.0) + 10.0;
    let y = |value: f64| top + PANEL_HEIGHT - value / most * PANEL_HEIGHT;
    let mut svg = vec![format!(
        r##"<rect x="{left}" y="{top}" width="{PANEL_WIDTH}" height="{PANEL_HEIGHT}" fill="none" stroke="#999"/>
"##
    )];
    let mut names = Vec::new();
    for (name, color, value) in lines {
        let (mut path, mut marks) = (Vec::new(), Vec::new());
        for point in points {
            let (x, y) = (x(point.rows), y(value(point)));
            path.push(format!("{x:.1},{y:.1}"));
            marks.push(format!(
                r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{color}"/>
"#
            ));
            marks.push(text(x, y - 6.0, "middle", &format_short(value(point))));
        }
        let (path, marks) = (path.join(" "), marks.concat());
        svg.push(format!(
            r#"<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"><title>{name}</title></polyline>
{marks}"#
        ));
        names.push(format!(r#"<tspan fill="{color}">{name}</tspan>"#));
    }
    for point in points {
        let power = format!("10^{}", point.rows.max(1).ilog10());
        svg.push(text(
            x(point.rows),
            top + PANEL_HEIGHT + 14.0,
            "middle",
            &power,
        ));
    }
    let (right, y, names) = (left + PANEL_WIDTH, top - 8.0, names.join(" · "));
    svg.push(format!(
        r#"<text x="{right}" y="{y}" text-anchor="end">{names}</text>
"#
    ));
    svg.concat()
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    format!(
        r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::MachineInfo;

    #[test]
    fn a_missed_target_is_red_and_one_that_was_not_measured_is_left_out() {
        let chart = |ours: f64| {
            let mut results = BenchResults::new(MachineInfo::detect("17"));
            let (label, target) = (("a", "a & b", "s"), TargetBound::AtMost(1.0));
            results.add(label, &[ours], target).unwrap();
            results.add_missing("peer", "peer", target, "not installed");
            draw_chart(&results)
        };
        assert!(chart(2.0).contains(RED));
        let svg = chart(0.5);
        assert!(!svg.contains(RED) && svg.contains("a &amp; b") && !svg.contains("peer"));
    }
}
