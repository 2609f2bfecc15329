//! What is made of the results: a table for the terminal, a page to look at, a comparison with an older run.

pub(crate) mod chart;
pub(crate) mod compare;
pub(crate) mod page;
pub(crate) mod table;

use crate::results::{Better, Figure, Results, Role, Series};
use crate::stats::{self, Summary};

/// Figures of the same thing for several numbers, in order.
pub(crate) struct Growth<'a> {
    pub(crate) figures: Vec<&'a Figure>,
}

/// How a value grows with each one more.
pub(crate) struct Slope {
    pub(crate) who: String,
    pub(crate) summary: Summary,
}

impl<'a> Growth<'a> {
    /// All of a run that have more than one number.
    pub(crate) fn all(results: &'a Results) -> Vec<Self> {
        let mut all: Vec<Self> = Vec::new();
        for figure in results
            .figures
            .iter()
            .filter(|figure| figure.over.is_some())
        {
            match all.iter_mut().find(|growth| growth.is_of(figure)) {
                Some(growth) => growth.figures.push(figure),
                None => all.push(Self {
                    figures: vec![figure],
                }),
            }
        }
        all.retain(|growth| growth.figures.len() > 1);
        for growth in &mut all {
            growth.figures.sort_by(|a, b| at(a).total_cmp(&at(b)));
        }
        all
    }

    fn is_of(&self, figure: &Figure) -> bool {
        let first = self.figures[0];
        let what = |figure: &Figure| figure.over.as_ref().map(|over| over.what.clone());
        (&first.part, &first.group, &first.name, what(first))
            == (&figure.part, &figure.group, &figure.name, what(figure))
    }

    /// What the number counts.
    pub(crate) fn what(&self) -> &str {
        self.figures[0].over.as_ref().map_or("", |over| &over.what)
    }

    /// The slope of each, round by round.
    pub(crate) fn slopes(&self) -> Vec<Slope> {
        let whos = self.figures[0]
            .series
            .iter()
            .map(|series| series.who.clone());
        whos.filter_map(|who| {
            let points: Option<Vec<(f64, &Series)>> = self
                .figures
                .iter()
                .map(|figure| Some((at(figure), figure.of(&who)?)))
                .collect();
            let points = points?;
            let rounds = points.iter().map(|(_, series)| series.values.len()).min()?;
            let slopes = (0..rounds).filter_map(|round| {
                let points = points
                    .iter()
                    .map(|(at, series)| (*at, series.values[round]));
                stats::slope(&points.collect::<Vec<_>>())
            });
            let summary = Summary::of(&slopes.collect::<Vec<_>>())?;
            Some(Slope { who, summary })
        })
        .collect()
    }
}

/// The number that a figure depends on.
pub(crate) fn at(figure: &Figure) -> f64 {
    figure.over.as_ref().map_or(0.0, |over| over.at)
}

/// All who were measured: Ampoule, the others, Ampoule told otherwise, the machine itself.
pub(crate) fn everybody<'a>(figures: impl IntoIterator<Item = &'a Figure>) -> Vec<(String, Role)> {
    let mut all: Vec<(String, Role)> = Vec::new();
    for series in figures.into_iter().flat_map(|figure| &figure.series) {
        let one = (series.who.clone(), series.role);
        if !all.contains(&one) {
            all.push(one);
        }
    }
    let place = |role| match role {
        Role::Ours => 0,
        Role::Peer => 1,
        Role::Variant => 2,
        Role::Floor => 3,
    };
    all.sort_by_key(|(_, role)| place(*role));
    all
}

/// Parts and groups in the order in which they were measured, with their figures.
pub(crate) fn groups(results: &Results) -> Vec<(&str, &str, Vec<&Figure>)> {
    let mut groups: Vec<(&str, &str, Vec<&Figure>)> = Vec::new();
    for figure in &results.figures {
        match groups
            .iter_mut()
            .find(|group| (group.0, group.1) == (&figure.part, &figure.group))
        {
            Some(group) => group.2.push(figure),
            None => groups.push((&figure.part, &figure.group, vec![figure])),
        }
    }
    groups
}

/// Whether Ampoule's ratio to another's is the better one; none where they are as good as the same.
pub(crate) fn ahead(better: Better, ratio: Summary) -> Option<bool> {
    let clear = ratio.p10 > 1.0 || ratio.p90 < 1.0;
    clear.then_some((ratio.median < 1.0) == (better == Better::Less))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Over, tests::figure};

    #[test]
    fn slopes_are_taken_round_by_round() {
        let mut results = Results::new("");
        for (at, ours) in [(4.0, [9.0, 10.0]), (0.0, [1.0, 2.0]), (1.0, [3.0, 4.0])] {
            let mut figure = figure(&ours, &[5.0, 5.0], &[1.0, 1.0]);
            figure.over = Some(Over {
                what: "disks".into(),
                at,
            });
            results.figures.push(figure);
        }
        results.figures.push(figure(&[1.0], &[1.0], &[1.0]));
        let all = Growth::all(&results);
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].what(), "disks");
        assert_eq!(at(all[0].figures[0]), 0.0);
        let slopes = all[0].slopes();
        let ours = slopes.iter().find(|slope| slope.who == "Ampoule").unwrap();
        assert_eq!(ours.summary.median, 2.0);
        let peer = slopes.iter().find(|slope| slope.who == "qemu").unwrap();
        assert_eq!(peer.summary.median, 0.0);
    }

    #[test]
    fn ahead_is_what_is_clearly_so() {
        let ratio = |p10, median, p90| Summary { p10, median, p90 };
        assert_eq!(ahead(Better::Less, ratio(0.7, 0.8, 0.9)), Some(true));
        assert_eq!(ahead(Better::More, ratio(0.7, 0.8, 0.9)), Some(false));
        assert_eq!(ahead(Better::More, ratio(1.1, 1.2, 1.9)), Some(true));
        assert_eq!(ahead(Better::More, ratio(0.9, 1.2, 1.9)), None);
    }
}
