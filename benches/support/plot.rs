//! Line plots as SVG text: a few panels side by side, both axes logarithmic.

use std::fmt::Write;

/// One line: a name and its points.
pub struct Line {
    pub name: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// One panel: a title, what the axes are, and lines.
pub struct Panel {
    pub title: &'static str,
    pub x: &'static str,
    pub y: &'static str,
    pub lines: Vec<Line>,
}

const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 52.0;
const COLOURS: [&str; 4] = ["#1b6ca8", "#c0392b", "#2e8b57", "#8e44ad"];

/// The powers of ten around all values.
fn decades(values: impl Iterator<Item = f64>) -> (i32, i32) {
    let (least, most) = values.filter(|v| *v > 0.0).fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(v), b.max(v)));
    if least > most {
        return (0, 1);
    }
    let (low, high) = (least.log10().floor() as i32, most.log10().ceil() as i32);
    (low, high.max(low + 1))
}

/// A power of ten as people write it.
fn short(power: i32) -> String {
    let unit = |prefix: &str, power: i32| format!("{}{prefix}", 10_i64.pow(power.unsigned_abs()));
    match power {
        ..0 => format!("{}", 10_f64.powi(power)),
        0..3 => unit("", power),
        3..6 => unit("k", power - 3),
        6..9 => unit("M", power - 6),
        _ => format!("1e{power}"),
    }
}

fn panel(out: &mut String, panel: &Panel, left: f64) {
    let points = || panel.lines.iter().flat_map(|line| line.points.iter().copied());
    let (x_low, x_high) = decades(points().map(|p| p.0));
    let (y_low, y_high) = decades(points().map(|p| p.1));
    let x_at = |v: f64| left + LEFT + (v.log10() - f64::from(x_low)) / f64::from(x_high - x_low) * (WIDTH - LEFT - RIGHT);
    let y_at = |v: f64| HEIGHT - BOTTOM - (v.log10() - f64::from(y_low)) / f64::from(y_high - y_low) * (HEIGHT - TOP - BOTTOM);
    let mut line = |text: String| writeln!(out, "{text}").expect("strings take text");
    line(format!(r#"<text x="{:.1}" y="18" font-weight="bold">{}</text>"#, left + LEFT, panel.title));
    for power in x_low..=x_high {
        let x = x_at(10_f64.powi(power));
        line(format!(r##"<path d="M{x:.1} {TOP}V{:.1}" stroke="#ddd"/>"##, HEIGHT - BOTTOM));
        line(format!(r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{}</text>"#, HEIGHT - BOTTOM + 15.0, short(power)));
    }
    for power in y_low..=y_high {
        let y = y_at(10_f64.powi(power));
        line(format!(r##"<path d="M{:.1} {y:.1}H{:.1}" stroke="#ddd"/>"##, left + LEFT, left + WIDTH - RIGHT));
        line(format!(r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#, left + LEFT - 5.0, y + 4.0, short(power)));
    }
    let middle = left + LEFT + (WIDTH - LEFT - RIGHT) / 2.0;
    line(format!(r#"<text x="{middle:.1}" y="{:.1}" text-anchor="middle">{}</text>"#, HEIGHT - BOTTOM + 31.0, panel.x));
    let (x, y) = (left + 13.0, TOP + (HEIGHT - TOP - BOTTOM) / 2.0);
    line(format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="middle" transform="rotate(-90 {x:.1} {y:.1})">{}</text>"#, panel.y));
    for (number, (this, colour)) in panel.lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let place = |&(x, y): &(f64, f64)| format!("{:.1} {:.1}", x_at(x), y_at(y.max(10_f64.powi(y_low))));
        let path: Vec<String> = this.points.iter().map(place).collect();
        line(format!(r#"<path d="M{}" fill="none" stroke="{colour}" stroke-width="2"/>"#, path.join(" L")));
        for point in &this.points {
            let (x, y) = (x_at(point.0), y_at(point.1.max(10_f64.powi(y_low))));
            line(format!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="3" fill="{colour}"/>"#));
        }
        let (x, y) = (left + LEFT + 8.0, TOP + 14.0 + 14.0 * number as f64);
        line(format!(r#"<text x="{x:.1}" y="{y:.1}" fill="{colour}">{}</text>"#, this.name));
    }
}

/// The whole picture.
pub fn svg(panels: &[Panel]) -> String {
    let width = WIDTH * panels.len() as f64;
    let mut out = String::new();
    writeln!(
        out,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" font-family="sans-serif" font-size="11">
<rect width="{width}" height="{HEIGHT}" fill="white"/>"#
    )
    .expect("strings take text");
    for (number, this) in panels.iter().enumerate() {
        panel(&mut out, this, WIDTH * number as f64);
    }
    out.push_str("</svg>\n");
    out
}
