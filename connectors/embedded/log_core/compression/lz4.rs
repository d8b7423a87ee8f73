//! Reads LZ4 frames (format 1.6.1, <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>).
//!
//! Only reading, only what a record batch needs: the batch's own checksum has been checked, so the frame's checksums are
//! skipped. All blocks go into one output, which serves linked blocks as well. Output is bounded by
//! [`DECOMPRESSED_BYTES_MAX`], so that a small batch can't take all memory.

/// The most that one batch may decompress to.
pub const DECOMPRESSED_BYTES_MAX: usize = 128 << 20;

const MAGIC: u32 = 0x184D_2204;
const FLAG_BLOCK_CHECKSUM: u8 = 0x10;
const FLAG_CONTENT_SIZE: u8 = 0x08;
const FLAG_DICTIONARY: u8 = 0x01;
/// Set in a block's size: the block is stored as it is.
const BLOCK_STORED: u32 = 1 << 31;
const MATCH_BYTES_MIN: usize = 4;

/// The content of a frame, or `None` when it is none, is damaged, or is too large.
pub fn decompress_frame(frame: &[u8]) -> Option<Vec<u8>> {
    let mut input = Input { bytes: frame };
    if input.u32()? != MAGIC {
        return None;
    }
    let flags = input.u8()?;
    if flags >> 6 != 1 || flags & FLAG_DICTIONARY != 0 {
        return None; // another version, or a dictionary that is not here
    }
    input.take(1)?; // block size limit
    input.take(if flags & FLAG_CONTENT_SIZE != 0 { 8 } else { 0 })?;
    input.take(1)?; // header checksum
    let mut output = Vec::with_capacity(frame.len() * 2);
    loop {
        let size = input.u32()?;
        if size == 0 {
            return Some(output); // the end mark; a content checksum may follow
        }
        let block = input.take((size & !BLOCK_STORED) as usize)?;
        if size & BLOCK_STORED != 0 {
            append(&mut output, block)?;
        } else {
            decompress_block(block, &mut output)?;
        }
        input.take(if flags & FLAG_BLOCK_CHECKSUM != 0 { 4 } else { 0 })?;
    }
}

/// A block is a row of sequences: literals, then a match of earlier output; the last one has literals only.
fn decompress_block(block: &[u8], output: &mut Vec<u8>) -> Option<()> {
    let mut input = Input { bytes: block };
    loop {
        let token = input.u8()?;
        let literals = input.length(token >> 4)?;
        append(output, input.take(literals)?)?;
        if input.bytes.is_empty() {
            return Some(());
        }
        let distance = usize::from(u16::from_le_bytes(input.take(2)?.try_into().ok()?));
        let length = input.length(token & 0x0f)? + MATCH_BYTES_MIN;
        let start = output.len().checked_sub(distance).filter(|_| distance > 0)?;
        if output.len() + length > DECOMPRESSED_BYTES_MAX {
            return None;
        }
        if distance >= length {
            output.extend_from_within(start..start + length);
        } else {
            // the match reaches into what it writes
            for at in start..start + length {
                output.push(output[at]);
            }
        }
    }
}

fn append(output: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    if output.len() + bytes.len() > DECOMPRESSED_BYTES_MAX {
        return None;
    }
    output.extend_from_slice(bytes);
    Some(())
}

struct Input<'a> {
    bytes: &'a [u8],
}

impl<'a> Input<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count)?;
        self.bytes = rest;
        Some(taken)
    }
    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|bytes| bytes[0])
    }
    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }
    /// Four bits; 15 means that bytes follow which are added up, up to the first below 255.
    fn length(&mut self, bits: u8) -> Option<usize> {
        let mut length = usize::from(bits);
        if bits == 15 {
            loop {
                let more = self.u8()?;
                length = length.checked_add(usize::from(more))?;
                if more < 255 {
                    break;
                }
            }
        }
        Some(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Header without optional fields, one block, end mark.
    fn frame(block: &[u8], stored: bool) -> Vec<u8> {
        let size = block.len() as u32 | if stored { BLOCK_STORED } else { 0 };
        [&MAGIC.to_le_bytes()[..], &[0x40, 0x40, 0], &size.to_le_bytes(), block, &[0; 4]].concat()
    }

    #[test]
    fn literals_and_an_overlapping_match_are_copied() {
        // "ab", then 10 bytes from 2 back, then "!"
        let block = [0x26, b'a', b'b', 2, 0, 0x10, b'!'];
        assert_eq!(decompress_frame(&frame(&block, false)).as_deref(), Some(&b"abababababab!"[..]));
    }

    #[test]
    fn a_stored_block_is_taken_as_it_is() {
        assert_eq!(decompress_frame(&frame(b"plain", true)).as_deref(), Some(&b"plain"[..]));
    }

    #[test]
    fn a_match_before_the_start_or_a_cut_frame_is_damage() {
        let block = [0x16, b'a', 9, 0, 0x10, b'!'];
        assert_eq!(decompress_frame(&frame(&block, false)), None);
        let whole = frame(b"plain", true);
        for length in 0..whole.len() {
            assert_eq!(decompress_frame(&whole[..length]), None, "{length} bytes");
        }
    }

    #[test]
    fn output_is_bounded() {
        // one literal, then a match whose length never ends to grow
        let mut block = vec![0x1f, b'a', 1, 0];
        block.extend(vec![255; DECOMPRESSED_BYTES_MAX / 255 + 1]);
        block.extend([0, 0x10, b'!']);
        assert_eq!(decompress_frame(&frame(&block, false)), None);
    }
}
