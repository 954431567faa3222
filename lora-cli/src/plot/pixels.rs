//! A picture as pixels: every shape covers a pixel by the part of it that lies inside, so that edges are
//! smooth.

use super::letters;
use super::{Colour, Picture, Point, Shape};

/// Rows of pixels, red, green and blue one after the other.
pub(crate) struct Pixels {
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) bytes: Vec<u8>,
}

/// Draws a picture on white, `scale` pixels for each of its units.
pub(crate) fn draw(picture: &Picture, scale: f64) -> Pixels {
    let (width, height) =
        ((picture.width * scale).round() as usize, (picture.height * scale).round() as usize);
    let mut pixels = Pixels { width, height, bytes: vec![0xff; width * height * 3] };
    let scaled = |(x, y): Point| (x * scale, y * scale);
    for shape in &picture.shapes {
        match shape {
            Shape::Area { corner, width, height, fill } => {
                pixels.area(scaled(*corner), width * scale, height * scale, *fill);
            }
            Shape::Line { points, width, colour } => {
                let points: Vec<Point> = points.iter().map(|&point| scaled(point)).collect();
                pixels.line(&points, width * scale, *colour);
            }
            Shape::Dot { centre, radius, fill } => {
                pixels.line(&[scaled(*centre)], 2.0 * radius * scale, *fill);
            }
            Shape::Text(text) => {
                let width = letters::stroke(text.size) * scale;
                for stroke in letters::strokes(text) {
                    let points: Vec<Point> = stroke.into_iter().map(scaled).collect();
                    pixels.line(&points, width, text.colour);
                }
            }
        }
    }
    pixels
}

impl Pixels {
    /// A rectangle whose edges are the nearest ones between pixels, so that neighbours leave no gap.
    fn area(&mut self, (x, y): Point, width: f64, height: f64, fill: Colour) {
        let edge = |value: f64, limit: usize| value.round().clamp(0.0, limit as f64) as usize;
        let (left, right) = (edge(x, self.width), edge(x + width, self.width));
        for row in edge(y, self.height)..edge(y + height, self.height) {
            for column in left..right {
                self.mix(column, row, fill, 1.0);
            }
        }
    }

    /// A line with round ends and corners; a single point is a dot.
    fn line(&mut self, points: &[Point], width: f64, colour: Colour) {
        let radius = width / 2.0;
        let ends: Vec<(Point, Point)> = match points {
            [] => Vec::new(),
            [point] => vec![(*point, *point)],
            points => points.windows(2).map(|pair| (pair[0], pair[1])).collect(),
        };
        let bound = |low: f64, high: f64, limit: usize| {
            let from = (low - radius - 1.0).floor().clamp(0.0, limit as f64) as usize;
            let to = (high + radius + 1.0).ceil().clamp(0.0, limit as f64) as usize;
            from..to
        };
        for (from, to) in ends {
            for row in bound(from.1.min(to.1), from.1.max(to.1), self.height) {
                for column in bound(from.0.min(to.0), from.0.max(to.0), self.width) {
                    let middle = (column as f64 + 0.5, row as f64 + 0.5);
                    let covered = radius + 0.5 - distance(middle, from, to);
                    self.mix(column, row, colour, covered.clamp(0.0, 1.0));
                }
            }
        }
    }

    fn mix(&mut self, column: usize, row: usize, colour: Colour, share: f64) {
        if share <= 0.0 {
            return;
        }
        let at = (row * self.width + column) * 3;
        for (byte, channel) in self.bytes[at..at + 3].iter_mut().zip(colour) {
            let mixed = f64::from(*byte) + share * (f64::from(channel) - f64::from(*byte));
            *byte = mixed.round() as u8;
        }
    }
}

/// From a point to the nearest point of a line between two.
fn distance(point: Point, from: Point, to: Point) -> f64 {
    let along = (to.0 - from.0, to.1 - from.1);
    let off = (point.0 - from.0, point.1 - from.1);
    let square = along.0 * along.0 + along.1 * along.1;
    let share = if square > 0.0 { (off.0 * along.0 + off.1 * along.1) / square } else { 0.0 };
    let share = share.clamp(0.0, 1.0);
    (off.0 - share * along.0).hypot(off.1 - share * along.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(shapes: Vec<Shape>) -> Pixels {
        draw(&Picture { width: 8.0, height: 4.0, shapes }, 2.0)
    }

    fn at(pixels: &Pixels, column: usize, row: usize) -> [u8; 3] {
        let start = (row * pixels.width + column) * 3;
        [pixels.bytes[start], pixels.bytes[start + 1], pixels.bytes[start + 2]]
    }

    #[test]
    fn areas_lines_and_dots_are_where_they_should_be() {
        let red = [255, 0, 0];
        let pixels = picture(vec![
            Shape::Area { corner: (0.0, 0.0), width: 2.0, height: 1.0, fill: red },
            Shape::Line { points: vec![(4.0, 2.0), (7.0, 2.0)], width: 2.0, colour: [0; 3] },
            Shape::Dot { centre: (1.0, 3.0), radius: 0.5, fill: [0, 0, 255] },
        ]);
        assert_eq!((pixels.width, pixels.height), (16, 8));
        assert_eq!([at(&pixels, 0, 0), at(&pixels, 3, 1), at(&pixels, 4, 0)], [red, red, [255; 3]]);
        assert_eq!([at(&pixels, 10, 3), at(&pixels, 10, 4)], [[0; 3]; 2]);
        assert_eq!([at(&pixels, 10, 0), at(&pixels, 10, 7)], [[255; 3]; 2]);
        assert!(at(&pixels, 2, 6)[2] == 255 && at(&pixels, 2, 6)[0] < 128);
    }

    #[test]
    fn what_lies_outside_is_not_drawn() {
        let line =
            Shape::Line { points: vec![(-50.0, -9.0), (90.0, 70.0)], width: 3.0, colour: [0; 3] };
        let area = Shape::Area { corner: (-5.0, -5.0), width: 50.0, height: 2.0, fill: [0; 3] };
        assert_eq!(picture(vec![line, area]).bytes.len(), 16 * 8 * 3);
    }
}
