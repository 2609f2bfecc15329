//! A run beside an older one: what is slower, what is faster, and what is noise.
//!
//! Machines are faster today than yesterday. So what is compared are ratios within a run, to the machine's own floor where there is
//! one, else to the first of the peers that both runs have; only where there is neither, the figures themselves, and the report says
//! so. Whether a difference is more than chance is told by a permutation test, for all figures together: of hundreds of comparisons
//! some differ by chance.

use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};

use crate::results::{Better, Figure, Results};
use crate::stats::{self, Summary, beyond_chance};

/// Of those called different, so many may be so by chance.
const WRONG: f64 = 0.05;
/// Less of a difference is none, however sure.
const LEAST: f64 = 0.03;

/// What became of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Worse,
    Better,
    /// No difference, or none that is more than chance.
    Noise,
    /// Too few rounds to tell any difference.
    TooFew,
}

/// A figure of both runs.
#[derive(Debug)]
pub(crate) struct Compared {
    title: String,
    /// What it is a ratio to; none, where it is the figure itself.
    to: Option<String>,
    old: f64,
    new: f64,
    pub(crate) change: Change,
}

impl Compared {
    /// `+12.3 %`
    fn percent(&self) -> String {
        format!("{:+.1} %", (self.new / self.old - 1.0) * 100.0)
    }
}

/// All figures that both runs have.
pub(crate) fn compare(old: &Results, new: &Results) -> Vec<Compared> {
    let mut all = Vec::new();
    let mut chances = Vec::new();
    for figure in &new.figures {
        let Some(before) = old
            .figures
            .iter()
            .find(|before| before.key() == figure.key())
        else {
            continue;
        };
        let Some((to, old, new)) = values(before, figure) else {
            continue;
        };
        let (Some(was), Some(is)) = (Summary::of(&old), Summary::of(&new)) else {
            continue;
        };
        let fewest = 1.0 / deals(old.len(), new.len());
        chances.push(stats::chance(&old, &new));
        let change = match (is.median < was.median) == (figure.better == Better::Less) {
            _ if fewest * 2.0 > WRONG => Change::TooFew,
            _ if (is.median / was.median - 1.0).abs() < LEAST => Change::Noise,
            true => Change::Better,
            false => Change::Worse,
        };
        all.push(Compared {
            title: format!("{} {}: {}", figure.part, figure.group, figure.title()),
            to,
            old: was.median,
            new: is.median,
            change,
        });
    }
    for (compared, beyond) in all.iter_mut().zip(beyond_chance(&chances, WRONG)) {
        if !beyond && compared.change != Change::TooFew {
            compared.change = Change::Noise;
        }
    }
    all
}

/// In how many ways the values can be dealt.
fn deals(old: usize, new: usize) -> f64 {
    (0..old.min(new))
        .map(|n| (old + new - n) as f64 / (n + 1) as f64)
        .product()
}

/// Ampoule's, as ratios where both runs have what to.
fn values(old: &Figure, new: &Figure) -> Option<(Option<String>, Vec<f64>, Vec<f64>)> {
    let others = new.floor().into_iter().chain(new.peers());
    let mut both = others.filter_map(|to| Some((to.who.clone(), old.of(&to.who)?, to)));
    let (ours_then, ours) = (old.ours()?, new.ours()?);
    Some(match both.next() {
        Some((who, then, now)) => (
            Some(who),
            stats::by_pairs(&ours_then.values, &then.values),
            stats::by_pairs(&ours.values, &now.values),
        ),
        None => (None, ours_then.values.clone(), ours.values.clone()),
    })
}

/// What differs, and how much does not.
pub(crate) fn text(compared: &[Compared], old: &str, width: u16) -> String {
    let count = |change| compared.iter().filter(|one| one.change == change).count();
    let mut text = format!(
        "\nBeside {old}: {} figures; worse {}, better {}, no more than noise {}, too few rounds to tell {}\n",
        compared.len(),
        count(Change::Worse),
        count(Change::Better),
        count(Change::Noise),
        count(Change::TooFew)
    );
    for (change, word) in [(Change::Worse, "Worse"), (Change::Better, "Better")] {
        let mut table = Table::new();
        table
            .load_style(NOTHING)
            .set_content_arrangement(ContentArrangement::Dynamic)
            .set_width(width);
        for one in compared.iter().filter(|one| one.change == change) {
            let to = one
                .to
                .as_ref()
                .map_or("itself".into(), |to| format!("ratio to {to}"));
            let from = format!("{:.3} to {:.3}", one.old, one.new);
            table.add_row([one.title.clone(), one.percent(), from, to]);
        }
        if !table.is_empty() {
            text.push_str(&format!("{word}\n{table}\n"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::figure;

    fn run(ours: &[f64], floor: &[f64]) -> Results {
        let mut results = Results::new("");
        results.figures.push(figure(ours, &[5.0; 5], floor));
        results
    }

    #[test]
    fn a_regression_is_told_from_a_slower_machine() {
        let floor = [2.0, 2.02, 1.98, 2.01, 1.99];
        let old = run(&[2.4, 2.42, 2.38, 2.41, 2.37], &floor);
        // All is slower by half: the machine.
        let machine = run(
            &[3.6, 3.63, 3.57, 3.61, 3.58],
            &floor.map(|value| value * 1.5),
        );
        let change = |new| compare(&old, new)[0].change;
        assert_eq!(change(&machine), Change::Noise);
        let regressed = run(&[2.9, 2.92, 2.88, 2.91, 2.89], &floor);
        assert_eq!(change(&regressed), Change::Worse);
        let better = run(&[2.0, 2.02, 1.98, 2.01, 1.99], &floor);
        assert_eq!(change(&better), Change::Better);
        // Sure, and too little to speak of.
        let hardly = run(&[2.44, 2.46, 2.42, 2.45, 2.41], &floor);
        assert_eq!(change(&hardly), Change::Noise);
        // One of two is like the old ones.
        let noisy = run(&[2.4, 3.6, 2.3, 2.2, 2.9], &floor);
        assert_eq!(change(&noisy), Change::Noise);
        let few = run(&[2.9, 2.92, 2.88], &floor[..3]);
        let few_too = run(&[2.4, 2.42, 2.38], &floor[..3]);
        assert_eq!(compare(&few_too, &few)[0].change, Change::TooFew);
    }

    #[test]
    fn what_one_run_lacks_is_not_compared() {
        let old = run(&[1.0; 5], &[1.0; 5]);
        let mut new = old.clone();
        new.figures[0].name = "another".into();
        assert!(compare(&old, &new).is_empty());
        let mut without_floor = old.clone();
        without_floor.figures[0].series.remove(0);
        assert_eq!(compare(&old, &without_floor)[0].to.as_deref(), Some("qemu"));
    }
}
