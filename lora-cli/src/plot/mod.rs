//! Plots for reports: a chart becomes a picture of lines, areas, dots and text, and the picture is written as SVG
//! and as PNG, so that both show the same.

mod chart;
mod letters;
mod pixels;
mod png;
mod svg;

pub(crate) use chart::{Chart, HeatMap, Series, heat_map, lines};
pub(crate) use png::png;
pub(crate) use svg::svg;

/// Red, green, blue.
pub(crate) type Colour = [u8; 3];

/// Shapes on a white ground, drawn in their order. Coordinates go right and down.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Picture {
    pub(crate) width: f64,
    pub(crate) height: f64,
    pub(crate) shapes: Vec<Shape>,
}

/// A place in a picture.
pub(crate) type Point = (f64, f64);

/// One shape.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Shape {
    /// A filled rectangle.
    Area { corner: Point, width: f64, height: f64, fill: Colour },
    /// A line through all of the points.
    Line { points: Vec<Point>, width: f64, colour: Colour },
    /// A filled circle.
    Dot { centre: Point, radius: f64, fill: Colour },
    /// A line of text.
    Text(Text),
}

/// A line of text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Text {
    /// Where its baseline starts, has its middle or ends.
    pub(crate) at: Point,
    pub(crate) text: String,
    /// Height of the line.
    pub(crate) size: f64,
    pub(crate) anchor: Anchor,
    pub(crate) colour: Colour,
    /// Written from below upwards.
    pub(crate) upwards: bool,
}

/// Which part of a text is where it was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}
