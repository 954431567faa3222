//! A picture as SVG.

use std::fmt::Write as _;

use super::{Anchor, Colour, Picture, Shape, Text};

/// The picture as an SVG document.
pub(crate) fn svg(picture: &Picture) -> String {
    let Picture { width, height, shapes } = picture;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"Helvetica, Arial, sans-serif\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    for shape in shapes {
        write_shape(&mut out, shape);
    }
    out.push_str("</svg>\n");
    out
}

fn write_shape(out: &mut String, shape: &Shape) {
    let _ = match shape {
        Shape::Area { corner: (x, y), width, height, fill } => writeln!(
            out,
            "<rect x=\"{x:.2}\" y=\"{y:.2}\" width=\"{width:.2}\" height=\"{height:.2}\" fill=\"{}\" \
             shape-rendering=\"crispEdges\"/>",
            hex(*fill)
        ),
        Shape::Line { points, width, colour } => {
            let places: Vec<String> =
                points.iter().map(|(x, y)| format!("{x:.2},{y:.2}")).collect();
            writeln!(
                out,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" \
                 stroke-linejoin=\"round\" stroke-linecap=\"round\"/>",
                places.join(" "),
                hex(*colour)
            )
        }
        Shape::Dot { centre: (x, y), radius, fill } => {
            writeln!(
                out,
                "<circle cx=\"{x:.2}\" cy=\"{y:.2}\" r=\"{radius}\" fill=\"{}\"/>",
                hex(*fill)
            )
        }
        Shape::Text(text) => write_text(out, text),
    };
}

fn write_text(out: &mut String, text: &Text) -> std::fmt::Result {
    let Text { at: (x, y), size, .. } = text;
    let anchor = match text.anchor {
        Anchor::Start => "start",
        Anchor::Middle => "middle",
        Anchor::End => "end",
    };
    let turned = if text.upwards {
        format!(" transform=\"rotate(-90 {x:.2} {y:.2})\"")
    } else {
        String::new()
    };
    writeln!(
        out,
        "<text x=\"{x:.2}\" y=\"{y:.2}\" font-size=\"{size}\" text-anchor=\"{anchor}\" fill=\"{}\"{turned}>{}</text>",
        hex(text.colour),
        escaped(&text.text)
    )
}

fn hex([red, green, blue]: Colour) -> String {
    format!("#{red:02x}{green:02x}{blue:02x}")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_elements_and_text_is_escaped() {
        let picture = Picture {
            width: 10.0,
            height: 5.0,
            shapes: vec![
                Shape::Line {
                    points: vec![(0.0, 1.0), (2.5, 3.0)],
                    width: 2.0,
                    colour: [0, 16, 255],
                },
                Shape::Dot { centre: (1.0, 1.0), radius: 3.0, fill: [0; 3] },
                Shape::Text(Text {
                    at: (1.0, 2.0),
                    text: "a < b & c".to_string(),
                    size: 12.0,
                    anchor: Anchor::Middle,
                    colour: [0; 3],
                    upwards: true,
                }),
            ],
        };
        let text = svg(&picture);
        assert!(
            text.contains("points=\"0.00,1.00 2.50,3.00\" fill=\"none\" stroke=\"#0010ff\""),
            "{text}"
        );
        assert!(text.contains("rotate(-90 1.00 2.00)\">a &lt; b &amp; c</text>"), "{text}");
        assert_eq!(text.matches('<').count(), text.matches('>').count());
        assert!(text.starts_with("<svg ") && text.ends_with("</svg>\n"));
    }
}
