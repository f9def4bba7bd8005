//! The biggest of many, in room for twice as many as are wanted.

/// Of what is offered, the biggest.
#[derive(Debug)]
pub struct Best<T> {
    most: usize,
    /// What does not exceed this is not among them.
    least: u64,
    list: Vec<(u64, T)>,
}

impl<T> Best<T> {
    /// At most so many, at least one.
    pub fn new(most: usize) -> Self {
        Self { most: most.max(1), least: 0, list: Vec::new() }
    }

    /// Takes an item if it may be one of them. One of size zero never is.
    pub fn offer(&mut self, size: u64, item: impl FnOnce() -> T) {
        if size <= self.least {
            return;
        }
        self.list.push((size, item()));
        if self.list.len() >= 2 * self.most {
            self.cut();
        }
    }

    /// All of them, in no order.
    pub fn into_items(mut self) -> impl Iterator<Item = T> {
        self.cut();
        self.list.into_iter().map(|(_, item)| item)
    }

    fn cut(&mut self) {
        if self.list.len() <= self.most {
            return;
        }
        self.list.select_nth_unstable_by(self.most - 1, |(one, _), (other, _)| other.cmp(one));
        self.list.truncate(self.most);
        self.least = self.list[self.most - 1].0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_biggest_are_kept_whatever_the_order() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut sizes: Vec<u64> = (0..500).map(|_| random.u64(0..300)).collect();
            let mut best = Best::new(7);
            sizes.iter().for_each(|size| best.offer(*size, || *size));
            let mut kept: Vec<_> = best.into_items().collect();
            kept.sort_unstable_by(|one, other| other.cmp(one));
            sizes.sort_unstable_by(|one, other| other.cmp(one));
            assert_eq!(kept, sizes[..7], "seed {seed}");
        }
    }

    #[test]
    fn what_has_no_size_is_none_of_them() {
        let mut best = Best::new(3);
        [0, 0, 5].iter().for_each(|size| best.offer(*size, || *size));
        assert_eq!(best.into_items().collect::<Vec<_>>(), [5]);
    }
}
