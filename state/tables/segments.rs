//! Growable storage that never copies itself as a whole.
//!
//! A `Vec` of ten million states doubles by holding the old and the new copy at once, and that peak is what kills a process
//! with a memory limit. Here values live in segments of 64 Ki that, once full, never move.

const SEGMENT_BITS: u32 = 16;
const SEGMENT_LEN: usize = 1 << SEGMENT_BITS;
const SEGMENT_MASK: usize = SEGMENT_LEN - 1;

/// One value per group.
#[derive(Debug)]
pub(crate) struct Segments<T> {
    segments: Vec<Vec<T>>,
    len: usize,
}

impl<T: Copy> Segments<T> {
    pub fn new() -> Self {
        Segments { segments: Vec::new(), len: 0 }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    #[inline]
    pub fn get(&self, index: usize) -> T {
        self.segments[index >> SEGMENT_BITS][index & SEGMENT_MASK]
    }

    #[inline]
    pub fn get_mut(&mut self, index: usize) -> &mut T {
        &mut self.segments[index >> SEGMENT_BITS][index & SEGMENT_MASK]
    }

    pub fn push(&mut self, value: T) {
        self.extend(1, value);
    }

    /// Appends `count` copies of `value`.
    pub fn extend(&mut self, mut count: usize, value: T) {
        while count > 0 {
            if self.len & SEGMENT_MASK == 0 {
                self.segments.push(Vec::new());
            }
            let segment = self.segments.last_mut().expect("one was pushed when the last became full");
            let added = count.min(SEGMENT_LEN - segment.len());
            let wanted = segment.len() + added;
            if wanted > segment.capacity() {
                segment.reserve_exact(wanted.next_power_of_two().max(8) - segment.len());
            }
            segment.resize(wanted, value);
            self.len += added;
            count -= added;
        }
    }

    /// Keeps the values whose bit is set, in their order, without a second copy.
    pub fn retain(&mut self, keep: &Bitmap) {
        let mut kept = 0;
        for index in keep.ones() {
            let value = self.get(index);
            *self.get_mut(kept) = value;
            kept += 1;
        }
        self.truncate(kept);
    }

    fn truncate(&mut self, len: usize) {
        self.segments.truncate(len.div_ceil(SEGMENT_LEN));
        self.len = len;
        if let Some(last) = self.segments.last_mut() {
            last.truncate(len - ((len - 1) & !SEGMENT_MASK));
            last.shrink_to(last.len().next_power_of_two().max(8));
        }
        self.segments.shrink_to_fit();
    }

    pub fn bytes(&self) -> usize {
        let full = self.segments.len().saturating_sub(1) * SEGMENT_LEN;
        let last = self.segments.last().map_or(0, Vec::capacity);
        (full + last) * size_of::<T>() + self.segments.capacity() * size_of::<Vec<T>>()
    }
}

/// One bit per group.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    len: usize,
}

impl Bitmap {
    pub fn new(len: usize, value: bool) -> Self {
        let mut bitmap = Bitmap::default();
        bitmap.extend(len, value);
        bitmap
    }

    pub fn extend(&mut self, count: usize, value: bool) {
        let start = self.len;
        self.len += count;
        self.words.resize(self.len.div_ceil(64), 0);
        if value {
            for index in start..self.len {
                self.words[index >> 6] |= 1 << (index & 63);
            }
        }
    }

    #[inline]
    pub fn get(&self, index: usize) -> bool {
        self.words[index >> 6] >> (index & 63) & 1 == 1
    }

    /// Sets a bit; true when it was clear.
    #[inline]
    pub fn set(&mut self, index: usize) -> bool {
        let word = &mut self.words[index >> 6];
        let bit = 1 << (index & 63);
        let was_clear = *word & bit == 0;
        *word |= bit;
        was_clear
    }

    /// Clears a bit; true when it was set.
    #[inline]
    pub fn clear(&mut self, index: usize) -> bool {
        let word = &mut self.words[index >> 6];
        let bit = 1 << (index & 63);
        let was_set = *word & bit != 0;
        *word &= !bit;
        was_set
    }

    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Clears the bits that are set in `other`, which may be shorter.
    pub fn remove(&mut self, other: &Bitmap) {
        for (word, removed) in self.words.iter_mut().zip(&other.words) {
            *word &= !removed;
        }
    }

    /// Sets the bits that are set in `other`, which may be shorter.
    pub fn insert(&mut self, other: &Bitmap) {
        for (word, added) in self.words.iter_mut().zip(&other.words) {
            *word |= added;
        }
    }

    /// The set bits, ascending.
    pub fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.words.iter().enumerate().flat_map(|(position, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                (rest != 0).then(|| {
                    let bit = rest.trailing_zeros() as usize;
                    rest &= rest - 1;
                    position * 64 + bit
                })
            })
        })
    }

    /// Keeps the bits at the positions that are set in `keep`; a position past the end counts as clear.
    pub fn retain(&mut self, keep: &Bitmap) {
        let mut kept = Bitmap::default();
        for index in keep.ones() {
            kept.extend(1, index < self.len && self.get(index));
        }
        kept.words.shrink_to_fit();
        *self = kept;
    }

    pub fn bytes(&self) -> usize {
        self.words.capacity() * 8
    }
}

/// Where a byte string lies in an [`Arena`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Span {
    block: u32,
    offset: u32,
    len: u32,
}

const BLOCK_BYTES: usize = 256 * 1024;

/// Byte strings, appended to blocks that never move.
#[derive(Debug, Default)]
pub(crate) struct Arena {
    blocks: Vec<Vec<u8>>,
    allocated_bytes: usize,
    live_bytes: usize,
    used_bytes: usize,
}

impl Arena {
    #[inline]
    pub fn get(&self, span: Span) -> &[u8] {
        if span.len == 0 {
            return &[];
        }
        &self.blocks[span.block as usize][span.offset as usize..][..span.len as usize]
    }

    pub fn push(&mut self, value: &[u8]) -> Span {
        if value.is_empty() {
            return Span::default();
        }
        let fits = |block: &Vec<u8>| block.len() + value.len() <= BLOCK_BYTES.max(block.capacity());
        if !self.blocks.last().is_some_and(fits) {
            self.blocks.push(Vec::new());
        }
        let index = self.blocks.len() - 1;
        let block = &mut self.blocks[index];
        let wanted = block.len() + value.len();
        if wanted > block.capacity() {
            let capacity = if wanted > BLOCK_BYTES { wanted } else { wanted.next_power_of_two() };
            self.allocated_bytes += capacity - block.capacity();
            block.reserve_exact(capacity - block.len());
        }
        let span = Span { block: index as u32, offset: block.len() as u32, len: value.len() as u32 };
        block.extend_from_slice(value);
        self.live_bytes += value.len();
        self.used_bytes += value.len();
        span
    }

    /// Replaces what `span` holds, in place when it fits.
    pub fn replace(&mut self, span: Span, value: &[u8]) -> Span {
        if value.len() > span.len as usize || value.is_empty() {
            self.live_bytes -= span.len as usize;
            return self.push(value);
        }
        self.live_bytes -= span.len as usize - value.len();
        self.blocks[span.block as usize][span.offset as usize..][..value.len()].copy_from_slice(value);
        Span { len: value.len() as u32, ..span }
    }

    /// Whether more than half of it is values that were replaced.
    pub fn is_mostly_garbage(&self) -> bool {
        self.used_bytes > 4096 && self.live_bytes < self.used_bytes / 2
    }

    /// Copies what `spans` hold into a new arena.
    pub fn rewrite(&mut self, spans: &mut Segments<Span>) {
        let old = std::mem::take(self);
        for index in 0..spans.len() {
            let span = spans.get_mut(index);
            *span = self.push(old.get(*span));
        }
    }

    pub fn bytes(&self) -> usize {
        self.allocated_bytes + self.blocks.capacity() * size_of::<Vec<u8>>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_keep_what_is_marked_and_give_memory_back() {
        let mut segments = Segments::new();
        for value in 0..200_000u64 {
            segments.push(value);
        }
        let before = segments.bytes();
        let mut keep = Bitmap::new(200_000, false);
        (0..200_000).step_by(10).for_each(|index| assert!(keep.set(index)));
        segments.retain(&keep);
        assert_eq!(segments.len(), 20_000);
        assert!((0..20_000).all(|index| segments.get(index) == index as u64 * 10));
        assert!(segments.bytes() * 4 < before);
        segments.push(7);
        assert_eq!(segments.get(20_000), 7);
        segments.retain(&Bitmap::new(20_001, false));
        assert_eq!((segments.len(), segments.bytes()), (0, 0));
    }

    #[test]
    fn an_arena_replaces_in_place_and_rewrites_its_garbage() {
        let mut arena = Arena::default();
        let mut spans = Segments::new();
        for _ in 0..100 {
            spans.push(arena.push(&[1; 100]));
        }
        for round in 0..20usize {
            for index in 0..100 {
                let span = spans.get(index);
                *spans.get_mut(index) = arena.replace(span, &vec![round as u8; 100 + round]);
            }
        }
        assert!(arena.is_mostly_garbage());
        arena.rewrite(&mut spans);
        assert!(!arena.is_mostly_garbage());
        assert!((0..100).all(|index| arena.get(spans.get(index)) == vec![19; 119]));
        let large = arena.push(&vec![5; BLOCK_BYTES * 3]);
        assert_eq!(arena.get(large).len(), BLOCK_BYTES * 3);
        let empty = arena.push(b"");
        assert_eq!(arena.get(empty), b"");
    }
}
