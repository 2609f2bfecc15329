//! What a handful of measurements says: medians and their spread, ratios by pairs, slopes, and whether two handfuls differ.

use serde::Serialize;

/// The middle of some values, and how far they spread.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) median: f64,
    /// Of ten values, one is below it.
    pub(crate) p10: f64,
    /// Of ten values, one is above it.
    pub(crate) p90: f64,
}

impl Summary {
    /// None of no values.
    pub(crate) fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        Some(Self {
            median: quantile(&sorted, 0.5)?,
            p10: quantile(&sorted, 0.1)?,
            p90: quantile(&sorted, 0.9)?,
        })
    }
}

/// Of sorted values; between two of them in proportion.
fn quantile(sorted: &[f64], share: f64) -> Option<f64> {
    let place = sorted.len().checked_sub(1)? as f64 * share;
    let (below, above) = (
        sorted[place.floor() as usize],
        sorted[place.ceil() as usize],
    );
    Some(below + (above - below) * place.fract())
}

/// The ratios of values that were measured one after the other, round by round.
pub(crate) fn by_pairs(values: &[f64], to: &[f64]) -> Vec<f64> {
    let pairs = values.iter().zip(to);
    pairs
        .map(|(value, to)| value / to)
        .filter(|ratio| ratio.is_finite())
        .collect()
}

/// By how much `y` grows with each `x`: the line of least squares. None where there is one `x` only.
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|point| point.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|point| point.1).sum::<f64>() / count;
    let spread: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
    let common: f64 = points
        .iter()
        .map(|point| (point.0 - mean_x) * (point.1 - mean_y))
        .sum();
    (spread > 0.0).then(|| common / spread)
}

/// How often chance alone would set two handfuls of the same kind as far apart as these are: a permutation test of the difference
/// of means, of the logarithms, so that twice as much and half as much are as far. Small where they differ.
///
/// All ways of dealing them are tried where there are few, else [`DEALS`] of them, always the same.
pub(crate) fn chance(old: &[f64], new: &[f64]) -> f64 {
    let all: Vec<f64> = old.iter().chain(new).map(|value| value.ln()).collect();
    if old.is_empty() || new.is_empty() || all.iter().any(|value| !value.is_finite()) {
        return 1.0;
    }
    let total: f64 = all.iter().sum();
    let distance = |sum_of_old: f64| {
        let (old, new) = (old.len() as f64, new.len() as f64);
        (sum_of_old / old - (total - sum_of_old) / new).abs()
    };
    let seen = distance(all[..old.len()].iter().sum());
    // Sums in another order differ in their last bits.
    let as_far = |sum| distance(sum) >= seen - 1e-12;
    let ways = ways(all.len(), old.len());
    let (mut far, mut tried) = (0_u64, 0_u64);
    if ways.is_some_and(|ways| ways <= DEALS) {
        deal(&all, old.len(), 0.0, &mut |sum| {
            tried += 1;
            far += u64::from(as_far(sum));
        });
    } else {
        let mut random = fastrand::Rng::with_seed(7);
        let mut dealt = all.clone();
        // What was seen is one of the ways.
        (far, tried) = (1, 1);
        for _ in 0..DEALS {
            random.shuffle(&mut dealt);
            tried += 1;
            far += u64::from(as_far(dealt[..old.len()].iter().sum()));
        }
    }
    far as f64 / tried as f64
}

const DEALS: u64 = 20_000;

/// The number of ways to choose `few` of `many`, where it is not beyond bounds.
fn ways(many: usize, few: usize) -> Option<u64> {
    let few = few.min(many - few);
    (0..few as u64).try_fold(1_u64, |ways, n| {
        Some(ways.checked_mul(many as u64 - n)? / (n + 1))
    })
}

/// Tells `each` the sum of every choice of `few` values.
fn deal(values: &[f64], few: usize, sum: f64, each: &mut impl FnMut(f64)) {
    if few == 0 {
        return each(sum);
    }
    for first in 0..=values.len().saturating_sub(few) {
        if let Some(value) = values.get(first) {
            deal(&values[first + 1..], few - 1, sum + value, each);
        }
    }
}

/// Which of several chances are too small to be chance, if no more than `share` of those named is to be named wrongly (Benjamini and
/// Hochberg): where hundreds of figures are compared, some look far apart by chance.
pub(crate) fn beyond_chance(chances: &[f64], share: f64) -> Vec<bool> {
    let mut sorted = chances.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = sorted.len() as f64;
    let bound = sorted.iter().enumerate().rev();
    let bound = bound
        .map(|(rank, chance)| (*chance, share * (rank + 1) as f64 / count))
        .find(|(chance, allowed)| chance <= allowed)
        .map(|(chance, _)| chance);
    chances
        .iter()
        .map(|chance| bound.is_some_and(|bound| *chance <= bound))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn middles_and_spreads() {
        assert_eq!(Summary::of(&[]), None);
        let summary = Summary::of(&[3.0, 1.0, 2.0, f64::NAN]).unwrap();
        assert_eq!(summary.median, 2.0);
        assert!((summary.p10 - 1.2).abs() < 1e-9 && (summary.p90 - 2.8).abs() < 1e-9);
        assert_eq!(by_pairs(&[2.0, 9.0], &[1.0, 3.0]), [2.0, 3.0]);
        assert_eq!(by_pairs(&[2.0, 9.0], &[0.0, 3.0]), [3.0]);
    }

    #[test]
    fn slopes() {
        assert_eq!(slope(&[(0.0, 1.0), (1.0, 3.0), (4.0, 9.0)]), Some(2.0));
        assert_eq!(slope(&[(1.0, 1.0), (1.0, 3.0)]), None);
        assert_eq!(slope(&[]), None);
    }

    #[test]
    fn what_differs_is_told_from_chance() {
        let old = [1.00, 1.02, 0.99, 1.01, 1.00];
        let same = [1.01, 0.99, 1.00, 1.02, 1.00];
        let slower = [1.21, 1.19, 1.20, 1.22, 1.20];
        assert!(chance(&old, &same) > 0.5);
        // Two of the 252 ways to deal ten values are as far apart.
        assert!((chance(&old, &slower) - 2.0 / 252.0).abs() < 1e-9);
        // Three values of each cannot tell.
        assert!(chance(&old[..3], &slower[..3]) >= 0.1);
        assert_eq!(chance(&[], &old), 1.0);
        // Too many ways to try them all.
        let many: Vec<f64> = (0..20).map(|n| 1.0 + f64::from(n % 5) / 100.0).collect();
        let more: Vec<f64> = many.iter().map(|value| value * 1.1).collect();
        assert!(chance(&many, &more) < 0.001);
        assert!(chance(&many, &many) > 0.9);
    }

    #[test]
    fn of_many_figures_some_look_far_apart_by_chance() {
        let mut chances: Vec<f64> = (1..=100).map(|n| f64::from(n) / 100.0).collect();
        assert!(!beyond_chance(&chances, 0.05).contains(&true));
        chances.push(0.0001);
        let beyond = beyond_chance(&chances, 0.05);
        assert_eq!(beyond.iter().filter(|beyond| **beyond).count(), 1);
        assert!(beyond[100]);
        assert!(beyond_chance(&[], 0.05).is_empty());
    }
}
