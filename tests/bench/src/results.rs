//! What was measured: the form in which it is kept, compared and drawn.

use std::collections::BTreeMap;

use chrono::{SecondsFormat, Utc};
use serde::{Deserialize, Serialize};

use crate::host::Host;
use crate::stats::{self, Summary};

/// The form's version; another one is not read.
pub(crate) const FORM: u32 = 1;

/// Ampoule's own name among those measured.
pub(crate) const AMPOULE: &str = "Ampoule";

/// All of one run, or of one of its parts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Results {
    pub(crate) form: u32,
    /// When it began, in UTC, RFC 3339.
    pub(crate) began: String,
    /// For how long it went on.
    pub(crate) seconds: f64,
    /// The command that makes it again.
    pub(crate) command: String,
    /// By the name of the part: `bare`, `linux`.
    pub(crate) hosts: BTreeMap<String, Host>,
    pub(crate) programs: Vec<Program>,
    pub(crate) figures: Vec<Figure>,
    /// What was not measured, or went wrong, and why.
    pub(crate) notes: Vec<String>,
}

impl Results {
    /// None yet, of a command.
    pub(crate) fn new(command: &str) -> Self {
        Self {
            form: FORM,
            began: Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true),
            seconds: 0.0,
            command: command.into(),
            hosts: BTreeMap::new(),
            programs: Vec::new(),
            figures: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Notes what is not among the figures, and why; once.
    pub(crate) fn note(&mut self, text: String) {
        if !self.notes.contains(&text) {
            crate::progress::note(&text);
            self.notes.push(text);
        }
    }

    /// Adds a figure.
    pub(crate) fn push(&mut self, part: &str, group: &str, kind: Kind, series: Vec<Series>) {
        let figure = Figure {
            part: part.into(),
            group: group.into(),
            name: kind.name,
            unit: kind.unit.into(),
            better: kind.better,
            over: kind.over,
            series,
            targets: kind.targets,
        };
        crate::progress::figure(&figure);
        self.figures.push(figure);
    }

    /// Adds those of another part.
    pub(crate) fn add(&mut self, part: Self) {
        self.seconds += part.seconds;
        self.hosts.extend(part.hosts);
        self.programs.extend(part.programs);
        self.programs.sort();
        self.programs.dedup();
        self.figures.extend(part.figures);
        for note in part.notes {
            if !self.notes.contains(&note) {
                self.notes.push(note);
            }
        }
    }
}

/// A VMM that was measured.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Program {
    pub(crate) name: String,
    pub(crate) version: String,
}

/// One thing that was measured, of everybody whom it was measured of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Figure {
    /// Where it was measured: `bare` or `linux`.
    pub(crate) part: String,
    /// Of what: `start`, `block`.
    pub(crate) group: String,
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// Where the same was measured for several numbers of something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) over: Option<Over>,
    pub(crate) series: Vec<Series>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) targets: Vec<Target>,
}

/// Which of two values is to be preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Better {
    Less,
    More,
}

/// A number that a figure depends on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Over {
    pub(crate) what: String,
    pub(crate) at: f64,
}

/// What was measured of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) struct Series {
    pub(crate) who: String,
    pub(crate) role: Role,
    /// A value for each round; those of one round were taken one after the other.
    pub(crate) values: Vec<f64>,
}

/// What one stands for in a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Role {
    /// Ampoule as it comes.
    Ours,
    /// Ampoule told otherwise.
    Variant,
    /// Another VMM.
    Peer,
    /// No VMM: what the machine itself can do.
    Floor,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Target {
    /// A median of no more than this.
    AtMost(f64),
    /// A median of no less.
    AtLeast(f64),
    /// No more than so many times the floor's, by pairs.
    FloorsAtMost(f64),
    /// No less.
    FloorsAtLeast(f64),
    /// At most so many times each peer's, by pairs; where more is better, at least.
    Peers(f64),
}

/// Whether a target is met.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) met: bool,
    /// `at most 1.30 x the floor`
    pub(crate) wanted: String,
    /// `1.23 x`
    pub(crate) found: String,
}

impl Figure {
    pub(crate) fn of(&self, who: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.who == who)
    }

    pub(crate) fn ours(&self) -> Option<&Series> {
        self.series.iter().find(|series| series.role == Role::Ours)
    }

    pub(crate) fn floor(&self) -> Option<&Series> {
        self.series.iter().find(|series| series.role == Role::Floor)
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = &Series> {
        self.series
            .iter()
            .filter(|series| series.role == Role::Peer)
    }

    /// What this one is called, with its number: `PSS, 4 devices`.
    pub(crate) fn title(&self) -> String {
        match &self.over {
            Some(over) => format!("{}, {} {}", self.name, over.at, over.what),
            None => self.name.clone(),
        }
    }

    /// What is the same from run to run.
    pub(crate) fn key(&self) -> (String, String, String) {
        (self.part.clone(), self.group.clone(), self.title())
    }

    /// Ampoule's, as a ratio to another's, by pairs.
    pub(crate) fn ratio_to(&self, other: &Series) -> Option<Summary> {
        Summary::of(&stats::by_pairs(&self.ours()?.values, &other.values))
    }

    /// Each target, and whether it is met; none that nothing was measured for.
    pub(crate) fn verdicts(&self) -> Vec<Verdict> {
        self.targets
            .iter()
            .flat_map(|target| self.verdict(*target))
            .collect()
    }

    fn verdict(&self, target: Target) -> Vec<Verdict> {
        let absolute = |bound: f64, at_most: bool| {
            let found = self.ours().and_then(|ours| Summary::of(&ours.values));
            found.map(|found| Verdict {
                met: holds(found.median, bound, at_most),
                wanted: format!("{} {} {}", word(at_most), short(bound), self.unit),
                found: format!("{} {}", short(found.median), self.unit),
            })
        };
        let relative = |to: &Series, name: &str, bound: f64, at_most: bool| {
            self.ratio_to(to).map(|ratio| Verdict {
                met: holds(ratio.median, bound, at_most),
                wanted: format!("{} {bound:.2} x {name}", word(at_most)),
                found: format!("{:.2} x", ratio.median),
            })
        };
        match target {
            Target::AtMost(bound) => absolute(bound, true).into_iter().collect(),
            Target::AtLeast(bound) => absolute(bound, false).into_iter().collect(),
            Target::FloorsAtMost(bound) | Target::FloorsAtLeast(bound) => {
                let at_most = matches!(target, Target::FloorsAtMost(_));
                let floor = self.floor();
                floor
                    .and_then(|floor| relative(floor, &floor.who, bound, at_most))
                    .into_iter()
                    .collect()
            }
            Target::Peers(bound) => {
                let at_most = self.better == Better::Less;
                self.peers()
                    .filter_map(|peer| relative(peer, &peer.who, bound, at_most))
                    .collect()
            }
        }
    }
}

fn word(at_most: bool) -> &'static str {
    if at_most { "at most" } else { "at least" }
}

/// What is printed the same is the same.
fn holds(found: f64, bound: f64, at_most: bool) -> bool {
    let found = (found * 100.0).round() / 100.0;
    if at_most {
        found <= bound
    } else {
        found >= bound
    }
}

/// A number in as many places as one reads: `2,052,000`, `1.25`, `0.039`.
pub(crate) fn short(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 1000.0 {
        let digits = format!("{:.0}", magnitude);
        let mut text = String::new();
        for (place, digit) in digits.chars().enumerate() {
            if place > 0 && (digits.len() - place) % 3 == 0 {
                text.push(',');
            }
            text.push(digit);
        }
        return if value < 0.0 {
            format!("-{text}")
        } else {
            text
        };
    }
    let places = match magnitude {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        m if m >= 1.0 || m == 0.0 => 2,
        _ => 3,
    };
    format!("{value:.places$}")
}

/// A figure in the making.
#[derive(Debug, Clone)]
pub(crate) struct Kind {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) better: Better,
    pub(crate) over: Option<Over>,
    pub(crate) targets: Vec<Target>,
}

/// A figure of which less is better.
pub(crate) fn less(name: impl Into<String>, unit: &'static str) -> Kind {
    Kind {
        name: name.into(),
        unit,
        better: Better::Less,
        over: None,
        targets: Vec::new(),
    }
}

/// A figure of which more is better.
pub(crate) fn more(name: impl Into<String>, unit: &'static str) -> Kind {
    Kind {
        better: Better::More,
        ..less(name, unit)
    }
}

impl Kind {
    /// It depends on this number.
    pub(crate) fn over(mut self, what: &str, at: f64) -> Self {
        self.over = Some(Over {
            what: what.into(),
            at,
        });
        self
    }

    /// It should be like this.
    pub(crate) fn target(mut self, target: Target) -> Self {
        self.targets.push(target);
        self
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn figure(ours: &[f64], peer: &[f64], floor: &[f64]) -> Figure {
        let series = |who: &str, role, values: &[f64]| Series {
            who: who.into(),
            role,
            values: values.to_vec(),
        };
        Figure {
            part: "bare".into(),
            group: "start".into(),
            name: "CPU".into(),
            unit: "ms".into(),
            better: Better::Less,
            over: None,
            series: vec![
                series("floor", Role::Floor, floor),
                series(AMPOULE, Role::Ours, ours),
                series("qemu", Role::Peer, peer),
            ],
            targets: vec![
                Target::AtMost(2.0),
                Target::FloorsAtMost(1.3),
                Target::Peers(1.0),
            ],
        }
    }

    #[test]
    fn targets_are_met_or_missed() {
        let mut figure = figure(&[2.6, 2.4], &[5.0, 5.0], &[2.0, 2.0]);
        let verdicts = figure.verdicts();
        let met: Vec<bool> = verdicts.iter().map(|verdict| verdict.met).collect();
        assert_eq!(met, [false, true, true]);
        assert_eq!(verdicts[1].wanted, "at most 1.30 x floor");
        assert_eq!(verdicts[1].found, "1.25 x");
        assert_eq!(verdicts[2].wanted, "at most 1.00 x qemu");
        figure.better = Better::More;
        figure.targets = vec![Target::Peers(1.0)];
        assert!(!figure.verdicts()[0].met);
        // Who was not measured is not judged.
        figure.series.clear();
        assert!(figure.verdicts().is_empty());
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (2_052_345.0, "2,052,345"),
            (-1000.0, "-1,000"),
            (999.4, "999"),
            (12.34, "12.3"),
            (1.234, "1.23"),
            (0.0394, "0.039"),
            (0.0, "0.00"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
