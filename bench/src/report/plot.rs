//! Charts as SVG: one line a device (or path), medians over the x axis, bars from the lowest to the highest round, names at
//! the ends of the lines instead of a legend.
//!
//! There is no background, and text and grid are of a grey that is seen on white and on black: one file serves light and dark
//! pages. The lines' colours are told apart also by those who do not see red from green (Okabe and Ito's set, the pale yellow
//! left out); the one that the chart is about is the strongest and thickest.

use super::{Table, View};
use anyhow::{Context, Result};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Size, pixels.
const SIZE: (u32, u32) = (860, 440);
/// Around the field: left, top, bottom, pixels. On the right stand the names.
const MARGINS: (i32, i32, i32) = (64, 74, 52);
/// Width of a letter of the names, about; SVG does not tell.
const LETTER: f64 = 6.9;
/// From one name to the next, pixels.
const LINE_HEIGHT: i32 = 17;
/// Text.
const INK: RGBColor = RGBColor(118, 128, 140);
/// Lines of the grid, over which everything else lies.
const GRID: RGBAColor = RGBAColor(118, 128, 140, 0.28);
/// The line that the chart is about.
const OURS: RGBColor = RGBColor(224, 102, 10);
/// Devices have the same colour in all charts.
const KNOWN: [(&str, RGBColor); 3] = [
    ("bare redirect", RGBColor(0, 136, 200)),
    ("nft masquerade", RGBColor(0, 158, 115)),
    ("kernel forwarding", RGBColor(192, 104, 160)),
];
/// The others'.
const OTHERS: [RGBColor; 6] = [
    RGBColor(0, 136, 200),
    RGBColor(0, 158, 115),
    RGBColor(192, 104, 160),
    RGBColor(160, 132, 70),
    RGBColor(130, 130, 130),
    RGBColor(122, 110, 200),
];

type Field<'s> = DrawingArea<SVGBackend<'s>, plotters::coord::Shift>;

/// A chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    title: String,
    subtitle: String,
    x_title: String,
    y_title: &'static str,
    /// Times are compared by factors, rates by how far they reach.
    y_is_log: bool,
    /// Places on the x axis, with what is written there.
    ticks: Vec<(f64, String)>,
    lines: Vec<Line>,
    /// Name of the line that it is about.
    ours: &'static str,
}

#[derive(Clone, Debug, PartialEq)]
struct Line {
    name: String,
    points: Vec<Point>,
}

/// A row: its place, median, lowest and highest, in the chart's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Point {
    x: f64,
    median: f64,
    min: f64,
    max: f64,
}

impl Chart {
    /// The chart of a table's part. `None` when it is not to be charted, or has no line: fewer than two places on the x axis.
    pub fn of(section: &Table, view: &View, title: &str, machine: &str) -> Option<Self> {
        let ticks = ticks(&section.values(view.across));
        if ticks.len() < 2 || view.chart.is_empty() {
            return None;
        }
        let (scale, y_title) = match section.rows.first()?.unit.as_str() {
            "pps" => (1e-6, "Mpps"),
            "1/s" => (1e-3, "thousand/s"),
            "us" => (1.0, "µs"),
            "ns" => (1.0, "ns"),
            _ => (1.0, ""),
        };
        let mut lines = Vec::new();
        for name in section.values(view.down) {
            if name.starts_with('(') || !(view.charted.is_empty() || view.charted.contains(&name)) {
                continue;
            }
            let points = section.rows.iter().filter(|row| row.label(view.down) == name).filter_map(|row| {
                let (x, _) = ticks.iter().find(|(x, _)| *x == place(row.label(view.across), &ticks))?;
                let (median, spread) = (row.median()? * scale, row.spread()?);
                Some(Point { x: *x, median, min: spread.min * scale, max: spread.max * scale })
            });
            let mut points: Vec<_> = points.collect();
            points.sort_by(|a, b| a.x.total_cmp(&b.x));
            lines.push(Line { name: name.to_owned(), points });
        }
        lines.retain(|line| !line.points.is_empty());
        let subtitle: Vec<_> = [title, machine].into_iter().filter(|part| !part.is_empty()).collect();
        (!lines.is_empty()).then(|| Self {
            title: view.chart.to_owned(),
            subtitle: format!("{}; medians, bars from lowest to highest round", subtitle.join(", ")),
            x_title: view.across.to_owned(),
            y_title,
            y_is_log: matches!(y_title, "ns" | "µs"),
            ticks,
            lines,
            ours: view.ours,
        })
    }

    /// The chart as an SVG document.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub fn svg(&self) -> Result<String> {
        let mut text = String::new();
        {
            let root = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
            let axes = Axes::of(self);
            // plotters' errors borrow the backend.
            self.draw(&root, &axes).map_err(|error| anyhow::anyhow!("{error}")).context("cannot draw a chart")?;
            root.present().map_err(|error| anyhow::anyhow!("{error}")).context("cannot draw a chart")?;
        }
        Ok(text)
    }

    fn draw(&self, root: &Field<'_>, axes: &Axes) -> Result<(), Box<dyn std::error::Error>> {
        write(root, &self.title, (16, 22), (HPos::Left, &INK.to_rgba(), 18))?;
        write(root, &self.subtitle, (16, 44), (HPos::Left, &INK.to_rgba(), 12))?;
        for (value, name) in &axes.y_ticks {
            let y = axes.y(*value);
            root.draw(&PathElement::new([(axes.left, y), (axes.right, y)], GRID.stroke_width(1)))?;
            write(root, name, (axes.left - 8, y), (HPos::Right, &INK.to_rgba(), 12))?;
        }
        write(root, self.y_title, (axes.left - 8, axes.top - 15), (HPos::Right, &INK.to_rgba(), 12))?;
        for (value, name) in &self.ticks {
            let x = axes.x(*value);
            root.draw(&PathElement::new([(x, axes.bottom), (x, axes.bottom + 5)], INK.stroke_width(1)))?;
            write(root, name, (x, axes.bottom + 15), (HPos::Center, &INK.to_rgba(), 12))?;
        }
        let middle = (axes.left + axes.right) / 2;
        write(root, &self.x_title, (middle, axes.bottom + 36), (HPos::Center, &INK.to_rgba(), 12))?;
        let label_places = self.label_places(axes);
        // The last drawn lies on top: ours.
        let mut order: Vec<_> = (0..self.lines.len()).collect();
        order.sort_by_key(|index| self.style(*index).1);
        for index in order {
            self.draw_line(root, axes, index, label_places[index])?;
        }
        Ok(())
    }

    fn draw_line(
        &self,
        root: &Field<'_>,
        axes: &Axes,
        index: usize,
        label_y: i32,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let (line, (color, width)) = (&self.lines[index], self.style(index));
        // Beside each other, so that bars at the same place can be told apart.
        let aside = 5 * index as i32 - 5 * (self.lines.len() as i32 - 1) / 2;
        let at: Vec<_> = line.points.iter().map(|point| (axes.x(point.x) + aside, axes.y(point.median))).collect();
        for (point, (x, y)) in line.points.iter().zip(&at) {
            let (low, high) = (axes.y(point.min), axes.y(point.max));
            root.draw(&PathElement::new([(*x, low), (*x, high)], color.stroke_width(1)))?;
            for end in [low, high] {
                root.draw(&PathElement::new([(*x - 4, end), (*x + 4, end)], color.stroke_width(1)))?;
            }
            root.draw(&Circle::new((*x, *y), width + 1, color.filled()))?;
        }
        root.draw(&PathElement::new(at.clone(), color.stroke_width(width)))?;
        if line.name == self.ours {
            // The last figure stands with the name. Below the bar: above is where the limit's line may be near.
            for (point, (x, _)) in line.points.iter().zip(&at).take(at.len().saturating_sub(1)) {
                let below = (*x, axes.y(point.min) + 13);
                write(root, &short(point.median), below, (HPos::Center, &color.to_rgba(), 12))?;
            }
        }
        if let (Some((x, y)), Some(last)) = (at.last(), line.points.last()) {
            // From the line's end to its name, where that had to give way.
            root.draw(&PathElement::new([(*x + 6, *y), (axes.right + 10, label_y)], color.mix(0.5).stroke_width(1)))?;
            let text = self.label(line, last);
            write(root, &text, (axes.right + 14, label_y), (HPos::Left, &color.to_rgba(), 13))?;
        }
        Ok(())
    }

    /// A line's name with its last figure.
    fn label(&self, line: &Line, last: &Point) -> String {
        format!("{} {} {}", line.name, short(last.median), self.y_title)
    }

    /// Where the names stand: at the ends of their lines, moved apart where they would overlap.
    fn label_places(&self, axes: &Axes) -> Vec<i32> {
        let wanted = self.lines.iter().map(|line| line.points.last().map_or(axes.bottom, |point| axes.y(point.median)));
        let mut order: Vec<_> = wanted.enumerate().map(|(index, y)| (y, index)).collect();
        order.sort_unstable();
        let mut next = i32::MIN;
        for (y, _) in &mut order {
            *y = (*y).max(next);
            next = *y + LINE_HEIGHT;
        }
        // What was pushed below the field comes up again, with those above it.
        let mut next = axes.bottom;
        for (y, _) in order.iter_mut().rev() {
            *y = (*y).min(next);
            next = *y - LINE_HEIGHT;
        }
        let mut places = vec![0; self.lines.len()];
        order.into_iter().for_each(|(y, index)| places[index] = y);
        places
    }

    /// Colour and width of a line.
    fn style(&self, index: usize) -> (RGBColor, u32) {
        let is_ours = |line: &Line| line.name == self.ours;
        if is_ours(&self.lines[index]) {
            return (OURS, 3);
        }
        if let Some((_, color)) = KNOWN.iter().find(|(name, _)| *name == self.lines[index].name) {
            return (*color, 2);
        }
        let others_before = self.lines.iter().take(index).filter(|line| !is_ours(line)).count();
        (OTHERS[others_before % OTHERS.len()], 2)
    }
}

/// From figures to pixels.
struct Axes {
    left: i32,
    right: i32,
    top: i32,
    bottom: i32,
    x_range: (f64, f64),
    y_range: (f64, f64),
    y_is_log: bool,
    y_ticks: Vec<(f64, String)>,
}

impl Axes {
    fn of(chart: &Chart) -> Self {
        let label = |line: &Line| line.points.last().map_or(0, |last| chart.label(line, last).chars().count());
        let longest = chart.lines.iter().map(label).max().unwrap_or(0) + 1;
        let right = SIZE.0 as i32 - 20 - (longest as f64 * LETTER) as i32;
        let points = || chart.lines.iter().flat_map(|line| &line.points);
        // By the medians: differences of two times may be near zero in a round, where a logarithm has no end.
        let low = points().map(|point| point.median).fold(f64::INFINITY, f64::min) / 2.0;
        let high = points().map(|point| point.max).fold(f64::NEG_INFINITY, f64::max);
        let y_values = if chart.y_is_log { decades(low, high) } else { steps(high) };
        let y_range = (y_values.first().copied().unwrap_or(0.0), y_values.last().copied().unwrap_or(1.0));
        let (first, last) =
            (chart.ticks.first().map_or(0.0, |tick| tick.0), chart.ticks.last().map_or(1.0, |tick| tick.0));
        Self {
            left: MARGINS.0,
            right,
            top: MARGINS.1,
            bottom: SIZE.1 as i32 - MARGINS.2,
            // Room for the bars of the first and the last.
            x_range: (first - (last - first) * 0.03, last + (last - first) * 0.03),
            y_range,
            y_is_log: chart.y_is_log,
            y_ticks: y_values.into_iter().map(|value| (value, tick(value))).collect(),
        }
    }

    fn x(&self, value: f64) -> i32 {
        let (first, last) = self.x_range;
        self.left + (f64::from(self.right - self.left) * (value - first) / (last - first)) as i32
    }

    fn y(&self, value: f64) -> i32 {
        let (low, high) = self.y_range;
        let share =
            if self.y_is_log { (value.max(low) / low).ln() / (high / low).ln() } else { (value - low) / (high - low) };
        self.bottom - (f64::from(self.bottom - self.top) * share) as i32
    }
}

/// Round values from 0 to above `high`, at most seven.
fn steps(high: f64) -> Vec<f64> {
    let high = if high > 0.0 { high } else { 1.0 };
    let rough = high / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step =
        [1.0, 2.0, 2.5, 5.0, 10.0].iter().map(|factor| factor * power).find(|step| *step >= rough).unwrap_or(rough);
    (0..=(high / step).ceil() as u32).map(|count| f64::from(count) * step).collect()
}

/// 1, 2, 5, 10, … from below `low` to above `high`.
fn decades(low: f64, high: f64) -> Vec<f64> {
    let low = low.max(1e-3);
    let (first, last) = (low.log10().floor() as i32, high.max(low).log10().ceil() as i32);
    let all = (first..=last).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    let mut values: Vec<_> = all.collect();
    let from = values.iter().rposition(|value| *value <= low).unwrap_or(0);
    let to = values.iter().position(|value| *value >= high).unwrap_or(values.len() - 1);
    values.truncate(to.max(from + 1) + 1);
    values.split_off(from)
}

/// Where labels of the x axis stand: numbers by their logarithm, other words and percentiles in their order.
fn ticks(labels: &[&str]) -> Vec<(f64, String)> {
    let mut numbers: Vec<_> = labels.iter().filter_map(|label| label.parse::<u64>().ok()).collect();
    if numbers.len() < labels.len() || numbers.contains(&0) {
        return (0u32..).map(f64::from).zip(labels.iter().map(|label| (*label).to_owned())).collect();
    }
    numbers.sort_unstable();
    numbers.iter().map(|number| ((*number as f64).log10(), count(*number))).collect()
}

fn place(label: &str, ticks: &[(f64, String)]) -> f64 {
    let by_name = |name: &str| ticks.iter().find(|(_, there)| there == name).map(|(x, _)| *x);
    by_name(label).or_else(|| by_name(&count(label.parse().ok()?))).unwrap_or(f64::NAN)
}

/// 1000 as 1k, 1000000 as 1M.
fn count(number: u64) -> String {
    match number {
        0..1_000 => number.to_string(),
        1_000..1_000_000 if number.is_multiple_of(100) => format!("{}k", number as f64 / 1e3),
        1_000_000.. if number.is_multiple_of(100_000) => format!("{}M", number as f64 / 1e6),
        _ => number.to_string(),
    }
}

/// As an axis has it: no more digits than there are.
fn tick(value: f64) -> String {
    let text = format!("{value:.3}");
    grouped(text.trim_end_matches('0').trim_end_matches('.'))
}

/// Three digits at most before the point, two in all behind it.
fn short(value: f64) -> String {
    match value {
        value if value >= 10.0 || value == 0.0 => grouped(&format!("{value:.0}")),
        value if (value * 10.0 - (value * 10.0).round()).abs() < 1e-6 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// With a comma between thousands: 10174 as 10,174.
fn grouped(text: &str) -> String {
    let whole = text.find('.').unwrap_or(text.len());
    let mut grouped = String::new();
    for (place, letter) in text.chars().enumerate() {
        if place > 0 && place < whole && (whole - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(letter);
    }
    grouped
}

fn write(
    root: &Field<'_>,
    text: &str,
    at: (i32, i32),
    (side, color, size): (HPos, &RGBAColor, i32),
) -> Result<(), Box<dyn std::error::Error>> {
    let style = ("sans-serif", size).into_font().color(color).pos(Pos::new(side, VPos::Center));
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn local() -> Table {
        let mut table = Table::new("local");
        for (device, factor) in
            [("bare redirect", 4.0), ("forwarder", 3.0), ("nft masquerade", 0.6), ("kernel forwarding", 0.61)]
        {
            for (flows, share) in [("1", 1.0), ("1000", 0.95), ("100000", 0.6), ("1000000", 0.5)] {
                let pps = factor * share * 1e6;
                table.row("pps", [("device", device), ("flows", flows)]).rounds.extend([pps, pps * 0.93, pps * 1.04]);
            }
        }
        table
    }

    #[test]
    fn a_chart_names_every_line_once_and_its_axes() {
        let table = local();
        let chart = Chart::of(&table, &View::of(&table), "size 64", "AMD EPYC").unwrap();
        let svg = chart.svg().unwrap();
        for text in ["forwarder 1.5", "bare redirect 2", "nft masquerade 0.3", "size 64, AMD EPYC", "100k"] {
            assert_eq!(svg.matches(text).count(), 1, "{text} in {svg}");
        }
        // At the axis, and at the end of each of the four lines.
        assert_eq!(svg.matches("Mpps").count(), 5, "{svg}");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    }

    #[test]
    fn names_do_not_overlap_nor_leave_the_field() {
        let table = local();
        let chart = Chart::of(&table, &View::of(&table), "", "").unwrap();
        let axes = Axes::of(&chart);
        let mut places = chart.label_places(&axes);
        places.sort_unstable();
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= LINE_HEIGHT), "{places:?}");
        assert!(places.iter().all(|y| (axes.top..=axes.bottom).contains(y)), "{places:?}");
    }

    #[test]
    fn percentiles_stand_in_their_order_and_loads_apart() {
        let mut table = Table::new("latency");
        for (load, factor) in [("idle", 1.0), ("90 %", 1.8)] {
            for (device, us) in [("forwarder", 14.0), ("nft masquerade", 31.0)] {
                for (percentile, times) in [("p50", 1.0), ("p90", 1.3), ("p99", 2.2), ("p99.9", 5.0), ("max", 14.0)] {
                    let row = table.row("us", [("device", device), ("load", load), ("percentile", percentile)]);
                    row.rounds.extend([0.93, 1.0, 1.1].map(|round| round * us * factor * times));
                }
            }
        }
        let view = View::of(&table);
        let sections = table.sections(&view);
        assert_eq!(sections.iter().map(|(title, _)| title.as_str()).collect::<Vec<_>>(), ["load idle", "load 90 %"]);
        let (title, section) = &sections[1];
        let chart = Chart::of(section, &view, title, "AMD EPYC").unwrap();
        let ticks: Vec<_> = chart.ticks.iter().map(|(_, name)| name.as_str()).collect();
        assert_eq!(ticks, ["p50", "p90", "p99", "p99.9", "max"]);
        assert_eq!((chart.lines.len(), chart.lines[0].points.len(), chart.y_title), (2, 5, "µs"));
    }

    #[test]
    fn one_place_on_the_axis_is_no_chart() {
        let mut table = local();
        table.rows.retain(|row| row.label("flows") == "1");
        assert_eq!(Chart::of(&table, &View::of(&table), "", ""), None);
    }

    #[test]
    fn axes_have_round_values_around_all_figures() {
        assert_eq!(steps(4.4), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(steps(0.61).into_iter().map(tick).collect::<Vec<_>>(), ["0", "0.2", "0.4", "0.6", "0.8"]);
        assert_eq!(decades(37.0, 2600.0), [20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0]);
        assert_eq!(decades(10.0, 10.0), [10.0, 20.0]);
    }

    #[test]
    fn labels_stand_by_size_or_in_their_order() {
        let names = |labels: &[&str]| ticks(labels).into_iter().map(|(_, name)| name).collect::<Vec<_>>();
        assert_eq!(names(&["1000000", "1", "1000"]), ["1", "1k", "1M"]);
        assert_eq!(names(&["p50", "p99", "max"]), ["p50", "p99", "max"]);
        assert_eq!(place("1000", &ticks(&["1", "1000"])), 3.0);
        assert_eq!(["999", "1000", "10174", "0.25"].map(grouped), ["999", "1,000", "10,174", "0.25"]);
        assert_eq!((count(1048576), count(4096)), ("1048576".to_owned(), "4096".to_owned()));
    }
}
