//! A small SVG writer for one kind of plot: how many of the opens took at most how long.

use std::fmt::Write as _;

/// One line of the plot.
#[derive(Debug)]
pub(crate) struct Line {
    /// What it shows.
    pub(crate) label: String,
    /// In rising order, in µs; not empty.
    pub(crate) sorted_us: Vec<f64>,
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 560.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 270.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 70.0;
/// Distinct for most colour-blind readers (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#000000", "#999999", "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7",
];
/// Points of a line: more cannot be seen.
const POINTS: usize = 300;

/// The share of opens (y) that took at most so long (x, logarithmic).
pub(crate) fn distribution(title: &str, subtitle: &str, lines: &[Line]) -> String {
    let values = || lines.iter().flat_map(|line| &line.sorted_us);
    let lowest = values().copied().fold(f64::INFINITY, f64::min);
    let highest = values().copied().fold(0.0, f64::max);
    let decades = (lowest.log10().floor() as i32, highest.log10().ceil() as i32);
    let axes = Axes { decades };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         font-family=\"DejaVu Sans, Verdana, sans-serif\" font-size=\"13\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#ffffff\"/>\n"
    );
    text(&mut svg, LEFT, 28.0, "font-size=\"18\"", title);
    text(&mut svg, LEFT, 48.0, "fill=\"#555555\"", subtitle);
    axes.draw(&mut svg);
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        axes.line(&mut svg, line, colour);
        legend(&mut svg, number, &line.label, colour);
    }
    svg.push_str("</svg>\n");
    svg
}

/// Maps values to places. Powers of ten of a µs, lowest and highest.
struct Axes {
    decades: (i32, i32),
}

impl Axes {
    fn x(&self, us: f64) -> f64 {
        let (low, high) = (f64::from(self.decades.0), f64::from(self.decades.1));
        LEFT + (us.log10() - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    }

    fn y(share: f64) -> f64 {
        HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)
    }

    fn draw(&self, svg: &mut String) {
        for power in self.decades.0..=self.decades.1 {
            let x = self.x(10_f64.powi(power));
            stroke(svg, (x, Self::y(0.0)), (x, Self::y(1.0)));
            let label = duration(power);
            text(
                svg,
                x,
                Self::y(0.0) + 20.0,
                "text-anchor=\"middle\"",
                &label,
            );
        }
        for percent in (0..=100).step_by(25) {
            let y = Self::y(f64::from(percent) / 100.0);
            stroke(svg, (LEFT, y), (WIDTH - RIGHT, y));
            let label = format!("{percent} %");
            text(svg, LEFT - 8.0, y + 4.0, "text-anchor=\"end\"", &label);
        }
        let middle = (LEFT + WIDTH - RIGHT) / 2.0;
        let below = HEIGHT - 22.0;
        let what = "open + close took at most (logarithmic)";
        text(svg, middle, below, "text-anchor=\"middle\"", what);
        let turn = "text-anchor=\"middle\" transform=\"rotate(-90)\"";
        let middle = (TOP + HEIGHT - BOTTOM) / 2.0;
        text(svg, -middle, 24.0, turn, "share of opens");
    }

    fn line(&self, svg: &mut String, line: &Line, colour: &str) {
        let count = line.sorted_us.len();
        let mut points = String::new();
        for point in 0..=POINTS {
            let share = point as f64 / POINTS as f64;
            let index = ((count as f64 * share) as usize).min(count - 1);
            let (x, y) = (self.x(line.sorted_us[index]), Self::y(share));
            write!(points, "{x:.1},{y:.1} ").expect("writing to a String cannot fail");
        }
        let points = points.trim_end();
        push(
            svg,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{points}\"/>"
            ),
        );
    }
}

fn legend(svg: &mut String, number: usize, label: &str, colour: &str) {
    let x = WIDTH - RIGHT + 16.0;
    let y = TOP + 20.0 + 24.0 * number as f64;
    push(
        svg,
        format_args!(
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{colour}\" stroke-width=\"3\"/>",
            x + 22.0
        ),
    );
    text(svg, x + 30.0, y + 4.0, "", label);
}

fn duration(power: i32) -> String {
    let (power, unit) = match power {
        ..0 => (power + 3, "ns"),
        0..3 => (power, "µs"),
        3..6 => (power - 3, "ms"),
        _ => (power - 6, "s"),
    };
    format!("{} {unit}", 10_f64.powi(power))
}

fn stroke(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let ((x1, y1), (x2, y2)) = (from, to);
    push(
        svg,
        format_args!(
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"#dddddd\"/>"
        ),
    );
}

fn text(svg: &mut String, x: f64, y: f64, attributes: &str, content: &str) {
    let content = content
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    push(
        svg,
        format_args!("<text x=\"{x:.1}\" y=\"{y:.1}\" {attributes}>{content}</text>"),
    );
}

fn push(svg: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(svg, "{line}").expect("writing to a String cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let labels: Vec<String> = (-1..=6).map(duration).collect();
        assert_eq!(
            labels,
            [
                "100 ns", "1 µs", "10 µs", "100 µs", "1 ms", "10 ms", "100 ms", "1 s"
            ]
        );
    }

    #[test]
    fn every_line_is_drawn_and_escaped() {
        let line = |label: &str| Line {
            label: label.into(),
            sorted_us: vec![1.0, 10.0, 1000.0],
        };
        let svg = distribution("t", "s", &[line("a<b"), line("c")]);
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert!(svg.contains("a&lt;b"));
    }
}
