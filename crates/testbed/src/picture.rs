//! Pictures that no two rows share.

use anyhow::Result;
use fastrand::Rng;
use png::{BitDepth, ColorType, Compression, Encoder};

const BYTES_PER_PIXEL: f64 = 3.0;

/// A valid PNG of random pixels. Sizes are spread evenly over the powers of two between 1 KiB and
/// `largest_bytes`, so that small pictures are as common as they are in life.
pub fn random_png(random: &mut Rng, largest_bytes: u32) -> Result<Vec<u8>> {
    let largest = f64::from(largest_bytes.max(2048)).log2();
    let bytes = (10.0 + random.f64() * (largest - 10.0)).exp2();
    // A little less, for the header and what the encoding adds.
    let side = round_side((bytes * 0.97 / BYTES_PER_PIXEL).sqrt());
    let mut pixels = vec![0; side as usize * side as usize * 3];
    random.fill(&mut pixels);
    encode_png(side, &pixels)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "between 16 and some hundred"
)]
fn round_side(pixels: f64) -> u32 {
    pixels as u32
}

fn encode_png(side: u32, pixels: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(pixels.len() + 256);
    let mut encoder = Encoder::new(&mut bytes, side, side);
    encoder.set_color(ColorType::Rgb);
    encoder.set_depth(BitDepth::Eight);
    // Random pixels do not compress.
    encoder.set_compression(Compression::NoCompression);
    encoder.write_header()?.write_image_data(pixels)?;
    Ok(bytes)
}
