//! A picture as PNG: eight bits each of red, green and blue (ISO 15948).

use std::io::{self, Write as _};

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

use super::{Picture, pixels};

/// Pixels for each unit of the picture: sharp on paper and on fine screens.
const SCALE: f64 = 2.0;
const SIGNATURE: [u8; 8] = [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n'];
/// Of 39.37 inches: 144 to the inch.
const PIXELS_PER_METRE: u32 = 5669;

/// The picture as a PNG file.
pub(crate) fn png(picture: &Picture) -> io::Result<Vec<u8>> {
    let drawn = pixels::draw(picture, SCALE);
    let size = |number: usize| u32::try_from(number).map_err(io::Error::other);
    let mut header = Vec::new();
    header.extend(size(drawn.width)?.to_be_bytes());
    header.extend(size(drawn.height)?.to_be_bytes());
    // Eight bits, red green blue, and the only compression, filter and no interlacing there are.
    header.extend([8, 2, 0, 0, 0]);
    let mut density = Vec::new();
    density.extend(PIXELS_PER_METRE.to_be_bytes());
    density.extend(PIXELS_PER_METRE.to_be_bytes());
    density.push(1);
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in drawn.bytes.chunks_exact(drawn.width.max(1) * 3) {
        // No filter: plain areas pack best as they are.
        packed.write_all(&[0])?;
        packed.write_all(row)?;
    }
    let mut file = SIGNATURE.to_vec();
    chunk(&mut file, b"IHDR", &header)?;
    chunk(&mut file, b"pHYs", &density)?;
    chunk(&mut file, b"IDAT", &packed.finish()?)?;
    chunk(&mut file, b"IEND", &[])?;
    Ok(file)
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) -> io::Result<()> {
    let length = u32::try_from(data.len()).map_err(io::Error::other)?;
    let mut sum = Crc::new();
    sum.update(kind);
    sum.update(data);
    file.extend(length.to_be_bytes());
    file.extend(kind);
    file.extend(data);
    file.extend(sum.sum().to_be_bytes());
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_file_has_its_chunks_and_every_pixel() {
        let file = png(&Picture { width: 3.0, height: 2.0, shapes: Vec::new() }).unwrap();
        assert_eq!(file[..8], SIGNATURE);
        assert_eq!(file[8..16], [0, 0, 0, 13, b'I', b'H', b'D', b'R']);
        assert_eq!(file[16..24], [0, 0, 0, 6, 0, 0, 0, 4]);
        // The end of every PNG file, its sum included.
        assert_eq!(
            file[file.len() - 12..],
            [0, 0, 0, 0, b'I', b'E', b'N', b'D', 0xae, 0x42, 0x60, 0x82]
        );
        let start = file.windows(4).position(|it| it == b"IDAT").unwrap() + 4;
        let mut rows = Vec::new();
        flate2::read::ZlibDecoder::new(&file[start..]).read_to_end(&mut rows).unwrap();
        assert_eq!(rows, [vec![0], vec![0xff; 18]].concat().repeat(4));
    }
}
