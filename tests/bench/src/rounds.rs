//! Measuring several in turns: one after the other in each round, so that a machine that is slow for a while is slow for all of
//! them, and never the same one first.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::results::{Kind, Results, Role, Series};

/// One of those that a measurement compares.
pub(crate) struct Entrant<'a> {
    who: String,
    role: Role,
    /// A value for each figure; not a number where there is none.
    measure: Box<dyn FnMut() -> Result<Vec<f64>> + 'a>,
}

impl<'a> Entrant<'a> {
    pub(crate) fn new(
        who: impl Into<String>,
        role: Role,
        measure: impl FnMut() -> Result<Vec<f64>> + 'a,
    ) -> Self {
        Self {
            who: who.into(),
            role,
            measure: Box::new(measure),
        }
    }
}

/// How often each is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rounds {
    pub(crate) count: usize,
    /// Rounds before those that count: they read the files into the page cache.
    pub(crate) warm_up: usize,
    /// No round begins after so long, once three have been: what is left of the count is not missed much.
    pub(crate) time: Duration,
}

impl Results {
    /// Measures all of them, each figure of each in each round. Who fails twice in a row is left out, with a note.
    pub(crate) fn measure(
        &mut self,
        part: &str,
        group: &str,
        rounds: Rounds,
        kinds: Vec<Kind>,
        mut entrants: Vec<Entrant<'_>>,
    ) {
        let began = Instant::now();
        let mut values = vec![vec![Vec::new(); kinds.len()]; entrants.len()];
        let mut out = vec![false; entrants.len()];
        for round in 0..rounds.warm_up + rounds.count {
            if round >= rounds.warm_up + 3 && began.elapsed() > rounds.time {
                break;
            }
            for turn in 0..entrants.len() {
                let one = (round + turn) % entrants.len();
                if out[one] {
                    continue;
                }
                let entrant = &mut entrants[one];
                match (entrant.measure)().or_else(|_| (entrant.measure)()) {
                    Ok(measured) if round >= rounds.warm_up => {
                        for (values, value) in values[one].iter_mut().zip(measured) {
                            values.push(value);
                        }
                    }
                    Ok(_) => {}
                    Err(err) => {
                        out[one] = true;
                        self.note(format!("{}, {group}: {err:#}", entrant.who));
                    }
                }
            }
        }
        for (at, kind) in kinds.into_iter().enumerate() {
            let series = entrants.iter().zip(&values).zip(&out);
            let series: Vec<Series> = series
                .filter(|((_, values), out)| !**out && values[at].iter().any(|v| v.is_finite()))
                .map(|((entrant, values), _)| Series {
                    who: entrant.who.clone(),
                    role: entrant.role,
                    values: values[at]
                        .iter()
                        .copied()
                        .filter(|value| value.is_finite())
                        .collect(),
                })
                .collect();
            if !series.is_empty() {
                self.push(part, group, kind, series);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use anyhow::bail;

    use super::*;
    use crate::results::{less, tests::figure};

    const ROUNDS: Rounds = Rounds {
        count: 4,
        warm_up: 1,
        time: Duration::MAX,
    };

    fn nothing() -> Results {
        Results {
            figures: vec![figure(&[], &[], &[])],
            ..Results::new("")
        }
    }

    #[test]
    fn all_take_turns_and_nobody_is_always_first() {
        let order = RefCell::new(String::new());
        let entrant = |who: &'static str| {
            let order = &order;
            Entrant::new(who, Role::Peer, move || {
                order.borrow_mut().push_str(who);
                Ok(vec![1.0, f64::NAN])
            })
        };
        let mut results = nothing();
        let kinds = vec![less("one", "ms"), less("none", "ms")];
        results.measure(
            "bare",
            "group",
            ROUNDS,
            kinds,
            vec![entrant("a"), entrant("b")],
        );
        assert_eq!(*order.borrow(), "abbaabbaab");
        assert_eq!(results.figures.len(), 2, "a figure that nobody has is none");
        assert_eq!(results.figures[1].of("b").unwrap().values, [1.0; 4]);
    }

    #[test]
    fn who_fails_once_tries_again_and_who_fails_twice_is_out() {
        let tries = Cell::new(0);
        let shaky = Entrant::new("shaky", Role::Ours, || {
            tries.set(tries.get() + 1);
            if tries.get() % 2 == 1 {
                bail!("once")
            } else {
                Ok(vec![1.0])
            }
        });
        let broken = Entrant::new("broken", Role::Peer, || bail!("always"));
        let mut results = nothing();
        results.measure(
            "bare",
            "group",
            ROUNDS,
            vec![less("one", "ms")],
            vec![shaky, broken],
        );
        let figure = results.figures.last().unwrap();
        assert_eq!(figure.of("shaky").unwrap().values.len(), 4);
        assert!(figure.of("broken").is_none());
        assert_eq!(results.notes, ["broken, group: always"]);
    }

    #[test]
    fn rounds_end_in_time() {
        let times = Cell::new(0);
        let entrant = Entrant::new("a", Role::Ours, || {
            times.set(times.get() + 1);
            Ok(vec![1.0])
        });
        let rounds = Rounds {
            count: 100,
            warm_up: 2,
            time: Duration::ZERO,
        };
        nothing().measure(
            "bare",
            "group",
            rounds,
            vec![less("one", "ms")],
            vec![entrant],
        );
        assert_eq!(times.get(), 5);
    }
}
