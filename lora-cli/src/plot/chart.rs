//! Charts laid out as pictures: lines over an axis, and a heat map.

use super::{Anchor, Colour, Picture, Point, Shape, Text};

/// Lines over one axis.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// The vertical axis goes by powers of ten; points at or below zero are left out.
    pub(crate) logarithmic: bool,
    pub(crate) series: Vec<Series>,
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<Point>,
}

/// Numbers between 0 and 1 as colours, with row 1 at the bottom. The scale ends above the largest of them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HeatMap {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    /// What the colours mean.
    pub(crate) scale: String,
    pub(crate) columns: usize,
    /// Row by row; the first row is row 1.
    pub(crate) values: Vec<f64>,
}

const INK: Colour = [0x22, 0x22, 0x22];
const GREY: Colour = [0x66, 0x66, 0x66];
const FAINT: Colour = [0xe4, 0xe4, 0xe4];
const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const SMALL: f64 = 12.0;
/// Points of a line this short are marked.
const MARKED: usize = 40;
/// Told apart with every kind of colour vision (Okabe and Ito 2008), then the same darker.
const COLOURS: [Colour; 12] = [
    [0x00, 0x72, 0xb2],
    [0xd5, 0x5e, 0x00],
    [0x00, 0x9e, 0x73],
    [0xcc, 0x79, 0xa7],
    [0xe6, 0x9f, 0x00],
    [0x56, 0xb4, 0xe9],
    [0x44, 0x44, 0x44],
    [0x00, 0x44, 0x6b],
    [0x80, 0x38, 0x00],
    [0x00, 0x5f, 0x45],
    [0x7a, 0x49, 0x64],
    [0x8a, 0x5f, 0x00],
];
/// From 0 to 1: dark blue, teal, green, yellow; brightness grows evenly, so that it is also right in grey.
const HEAT: [[f64; 3]; 5] = [
    [68.0, 1.0, 84.0],
    [59.0, 82.0, 139.0],
    [33.0, 145.0, 140.0],
    [94.0, 201.0, 98.0],
    [253.0, 231.0, 37.0],
];

/// The part of the picture that the axes enclose.
#[derive(Clone, Copy)]
struct Frame {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

/// Where numbers are on an axis.
#[derive(Clone, Copy)]
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
    logarithmic: bool,
}

impl Axis {
    fn place(&self, value: f64) -> f64 {
        let value = if self.logarithmic { value.log10() } else { value };
        self.start + (value - self.from) / (self.to - self.from) * (self.end - self.start)
    }
}

/// The chart as a picture, with a legend beside it.
pub(crate) fn lines(chart: &Chart) -> Picture {
    let frame = Frame { left: 72.0, top: 44.0, right: WIDTH - 170.0, bottom: HEIGHT - 52.0 };
    let shown = |point: &&Point| {
        point.0.is_finite() && point.1.is_finite() && !(chart.logarithmic && point.1 <= 0.0)
    };
    let all = || chart.series.iter().flat_map(|series| &series.points).filter(shown);
    let x = linear_axis(all().map(|point| point.0), frame.left, frame.right, false);
    let y = if chart.logarithmic {
        logarithmic_axis(all().map(|point| point.1), frame.bottom, frame.top)
    } else {
        linear_axis(all().map(|point| point.1), frame.bottom, frame.top, true)
    };
    let mut shapes = Vec::new();
    for (value, name) in ticks(&y) {
        let at = y.place(value);
        line(&mut shapes, &[(frame.left, at), (frame.right, at)], 1.0, FAINT);
        text(&mut shapes, (frame.left - 8.0, at + 4.0), &name, Anchor::End, GREY);
    }
    let whole = all().all(|point| point.0.fract() == 0.0);
    for (value, name) in ticks(&x).into_iter().filter(|(value, _)| !whole || value.fract() == 0.0) {
        let at = x.place(value);
        line(&mut shapes, &[(at, frame.bottom), (at, frame.bottom + 4.0)], 1.0, GREY);
        text(&mut shapes, (at, frame.bottom + 18.0), &name, Anchor::Middle, GREY);
    }
    for (series, colour) in chart.series.iter().zip(COLOURS.iter().cycle()) {
        let points: Vec<Point> = series
            .points
            .iter()
            .filter(shown)
            .map(|point| (x.place(point.0), y.place(point.1)))
            .collect();
        if points.len() > 1 {
            line(&mut shapes, &points, 2.0, *colour);
        }
        if points.len() <= MARKED {
            let dot = |&centre: &Point| Shape::Dot { centre, radius: 3.0, fill: *colour };
            shapes.extend(points.iter().map(dot));
        }
    }
    let axes = [(frame.left, frame.top), (frame.left, frame.bottom), (frame.right, frame.bottom)];
    line(&mut shapes, &axes, 1.0, GREY);
    let step = ((frame.bottom - frame.top) / chart.series.len().max(1) as f64).min(20.0);
    for (at, (series, colour)) in chart.series.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let height = frame.top + 8.0 + at as f64 * step;
        let left = frame.right + 18.0;
        line(&mut shapes, &[(left, height), (left + 18.0, height)], 3.0, *colour);
        text(&mut shapes, (left + 26.0, height + 4.0), &series.name, Anchor::Start, INK);
    }
    titles(&mut shapes, frame, &chart.title, &chart.x, &chart.y);
    Picture { width: WIDTH, height: HEIGHT, shapes }
}

/// The heat map as a picture, with its scale beside it.
pub(crate) fn heat_map(map: &HeatMap) -> Picture {
    let rows = map.values.len() / map.columns.max(1);
    let side = 330.0;
    let (columns_wide, rows_high) = (map.columns as f64, rows as f64);
    // Cells are squares where that does not make the map a strip.
    let shape = (columns_wide / rows_high).clamp(0.6, 1.6);
    let (wide, high) =
        if shape > 1.0 { (side * shape, side) } else { (side, side / shape.max(0.9)) };
    let frame = Frame { left: 72.0, top: 44.0, right: 72.0 + wide, bottom: 44.0 + high };
    let (cell, row_height) = (wide / columns_wide, high / rows_high);
    let largest = map.values.iter().fold(0.0, |most: f64, value| most.max(*value));
    let top = [0.1, 0.2, 0.5].into_iter().find(|top| largest <= *top).unwrap_or(1.0);
    let mut shapes = Vec::new();
    for (at, value) in map.values.iter().enumerate() {
        let (row, column) = (at / map.columns, at % map.columns);
        let corner =
            (frame.left + column as f64 * cell, frame.bottom - (row + 1) as f64 * row_height);
        shapes.push(Shape::Area {
            corner,
            width: cell,
            height: row_height,
            fill: heat(value / top),
        });
    }
    for (count, is_across) in [(map.columns, true), (rows, false)] {
        let every = count.div_ceil(8).max(1);
        for number in (1..=count).filter(|n| *n == 1 || n.is_multiple_of(every)) {
            let middle = number as f64 - 0.5;
            let (at, anchor) = if is_across {
                ((frame.left + middle * cell, frame.bottom + 18.0), Anchor::Middle)
            } else {
                ((frame.left - 8.0, frame.bottom - middle * row_height + 4.0), Anchor::End)
            };
            text(&mut shapes, at, &number.to_string(), anchor, GREY);
        }
    }
    scale_beside(&mut shapes, frame, &map.scale, top);
    titles(&mut shapes, frame, &map.title, &map.x, &map.y);
    Picture { width: frame.right + 130.0, height: frame.bottom + 52.0, shapes }
}

fn scale_beside(shapes: &mut Vec<Shape>, frame: Frame, name: &str, top: f64) {
    const STEPS: usize = 60;
    let left = frame.right + 24.0;
    let height = (frame.bottom - frame.top) / STEPS as f64;
    for step in 0..STEPS {
        let corner = (left, frame.bottom - (step + 1) as f64 * height);
        let fill = heat((step as f64 + 0.5) / STEPS as f64);
        shapes.push(Shape::Area { corner, width: 16.0, height, fill });
    }
    for part in 0..=5 {
        let share = f64::from(part) / 5.0;
        let at = (left + 22.0, frame.bottom - share * (frame.bottom - frame.top) + 4.0);
        text(shapes, at, &format!("{:.2}", share * top), Anchor::Start, GREY);
    }
    let middle = (left + 74.0, (frame.top + frame.bottom) / 2.0);
    upwards(shapes, middle, name);
}

fn titles(shapes: &mut Vec<Shape>, frame: Frame, title: &str, x: &str, y: &str) {
    let (middle, height) = ((frame.left + frame.right) / 2.0, (frame.top + frame.bottom) / 2.0);
    shapes.push(Shape::Text(Text {
        at: (frame.left, 26.0),
        text: title.to_string(),
        size: 15.0,
        anchor: Anchor::Start,
        colour: INK,
        upwards: false,
    }));
    text(shapes, (middle, frame.bottom + 40.0), x, Anchor::Middle, INK);
    upwards(shapes, (20.0, height), y);
}

fn line(shapes: &mut Vec<Shape>, points: &[Point], width: f64, colour: Colour) {
    shapes.push(Shape::Line { points: points.to_vec(), width, colour });
}

fn text(shapes: &mut Vec<Shape>, at: Point, text: &str, anchor: Anchor, colour: Colour) {
    let text = text.to_string();
    shapes.push(Shape::Text(Text { at, text, size: SMALL, anchor, colour, upwards: false }));
}

fn upwards(shapes: &mut Vec<Shape>, at: Point, text: &str) {
    let (text, anchor) = (text.to_string(), Anchor::Middle);
    shapes.push(Shape::Text(Text { at, text, size: SMALL, anchor, colour: INK, upwards: true }));
}

fn heat(value: f64) -> Colour {
    let place = value.clamp(0.0, 1.0) * (HEAT.len() - 1) as f64;
    let below = (place.floor() as usize).min(HEAT.len() - 2);
    let share = place - below as f64;
    let mixed = |channel: usize| {
        HEAT[below][channel] + share * (HEAT[below + 1][channel] - HEAT[below][channel])
    };
    [mixed(0).round() as u8, mixed(1).round() as u8, mixed(2).round() as u8]
}

fn linear_axis(
    values: impl Iterator<Item = f64> + Clone,
    start: f64,
    end: f64,
    from_zero: bool,
) -> Axis {
    let mut from = values.clone().fold(f64::INFINITY, f64::min);
    let mut to = values.fold(f64::NEG_INFINITY, f64::max);
    if from > to {
        (from, to) = (0.0, 1.0);
    }
    if from_zero {
        from = from.min(0.0);
        let step = step(to - from);
        to = (to / step).ceil() * step;
    }
    if to - from < 1e-12 {
        (from, to) = (from - 0.5, to + 0.5);
    }
    Axis { from, to, start, end, logarithmic: false }
}

fn logarithmic_axis(values: impl Iterator<Item = f64> + Clone, start: f64, end: f64) -> Axis {
    let from = values.clone().fold(f64::INFINITY, f64::min).log10();
    let to = values.fold(f64::NEG_INFINITY, f64::max).log10();
    let (from, to) = if from.is_finite() && to.is_finite() { (from, to) } else { (0.0, 1.0) };
    // A little room, so that no line runs along the frame.
    let room = (0.04 * (to - from)).max(0.05);
    Axis { from: from - room, to: to + room, start, end, logarithmic: true }
}

/// Round numbers on the axis with their names: four to nine of them.
fn ticks(axis: &Axis) -> Vec<(f64, String)> {
    if !axis.logarithmic {
        let step = step(axis.to - axis.from);
        let decimals = (-step.log10().floor()).max(0.0) as usize;
        let first = (axis.from / step - 1e-9).ceil() as i64;
        let last = (axis.to / step + 1e-9).floor() as i64;
        let tick =
            |number: i64| (number as f64 * step, format!("{:.decimals$}", number as f64 * step));
        return (first..=last).map(tick).collect();
    }
    let decades = axis.to - axis.from;
    let factors: &[f64] = match decades {
        span if span > 2.5 => &[1.0],
        span if span > 1.0 => &[1.0, 2.0, 5.0],
        _ => &[1.0, 1.5, 2.0, 3.0, 5.0, 7.0],
    };
    let every = (decades / 8.0).ceil().max(1.0) as i32;
    let exponents = axis.from.floor() as i32..=axis.to.ceil() as i32;
    exponents
        .filter(|exponent| exponent.rem_euclid(every) == 0)
        .flat_map(|exponent| factors.iter().map(move |factor| factor * 10f64.powi(exponent)))
        .filter(|value| (axis.from..=axis.to).contains(&value.log10()))
        .map(|value| (value, power_name(value)))
        .collect()
}

fn power_name(value: f64) -> String {
    match value {
        value if !(1e-4..1e5).contains(&value) => format!("{value:.0e}"),
        value => {
            let decimals = (-value.log10().floor()).max(0.0) as usize;
            let rounded = format!("{value:.decimals$}");
            // 0.15 and 1.5 have a digit more than their power of ten.
            let is_whole =
                rounded.parse::<f64>().is_ok_and(|read| (read / value - 1.0).abs() < 1e-6);
            let more = decimals + 1;
            if is_whole { rounded } else { format!("{value:.more$}") }
        }
    }
}

/// A step of 1, 2 or 5 times a power of ten that divides the span in four to nine.
fn step(span: f64) -> f64 {
    let rough = (span / 6.0).max(1e-12);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(from: f64, to: f64, logarithmic: bool) -> Vec<String> {
        let axis = Axis { from, to, start: 0.0, end: 1.0, logarithmic };
        ticks(&axis).into_iter().map(|(_, name)| name).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(names(0.0, 10.0, false), ["0", "2", "4", "6", "8", "10"]);
        assert_eq!(names(0.0, 0.37, false), ["0.0", "0.1", "0.2", "0.3"]);
        assert_eq!(names(1.0, 8.0, false), ["2", "4", "6", "8"]);
        assert_eq!(names(-3.1, 1.0, true), ["0.001", "0.01", "0.1", "1", "10"]);
        assert_eq!(names(-0.05, 0.5, true), ["1", "1.5", "2", "3"]);
        assert_eq!(power_name(0.15), "0.15");
        assert_eq!(power_name(2e-7), "2e-7");
    }

    #[test]
    fn colours_of_heat_go_from_dark_to_bright() {
        assert_eq!((heat(-1.0), heat(1.0)), ([68, 1, 84], [253, 231, 37]));
        let brightness =
            |colour: Colour| colour.iter().map(|&channel| u32::from(channel)).sum::<u32>();
        let steps: Vec<u32> =
            (0..=20).map(|step| brightness(heat(f64::from(step) / 20.0))).collect();
        assert!(steps.windows(2).all(|pair| pair[0] <= pair[1]), "{steps:?}");
    }

    #[test]
    fn every_shape_lies_in_its_picture_and_what_has_no_place_is_left_out() {
        let series =
            |name: &str, points: &[Point]| Series { name: name.into(), points: points.to_vec() };
        let mut chart = Chart {
            title: "title".into(),
            x: "x".into(),
            y: "y".into(),
            logarithmic: true,
            series: vec![
                series("one", &[(1.0, 1e-3), (2.0, 0.0), (3.0, 5.0)]),
                series("none", &[]),
            ],
        };
        for logarithmic in [true, false] {
            chart.logarithmic = logarithmic;
            let picture = lines(&chart);
            for shape in &picture.shapes {
                let points = match shape {
                    Shape::Line { points, .. } => points.clone(),
                    Shape::Dot { centre, .. } => vec![*centre],
                    Shape::Area { corner, .. } => vec![*corner],
                    Shape::Text(text) => vec![text.at],
                };
                let inside = |&(x, y): &Point| {
                    (0.0..=picture.width).contains(&x) && (0.0..=picture.height).contains(&y)
                };
                assert!(points.iter().all(inside), "{shape:?}");
            }
            let dots = picture.shapes.iter().filter(|it| matches!(it, Shape::Dot { .. })).count();
            assert_eq!(dots, if logarithmic { 2 } else { 3 });
        }
        let empty = Chart { series: Vec::new(), ..chart };
        assert!(!lines(&empty).shapes.is_empty());
    }
}
