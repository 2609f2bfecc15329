//! `ampoule bisect`: between a kernel or an image with which a scenario passes and one with which it fails, the first that fails.
//!
//! Which to try next, what the tries say together, the list of candidates where none is given, and the words. Running one is the
//! caller's: [`bisect`] is given a closure.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

use crate::report::{Failure, io_text};
use crate::test::report::text::{duration, plural, visible_line};

/// What a try says of a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Judgement {
    /// The scenario passed.
    Good,
    /// It failed.
    Bad,
    /// It says nothing: host trouble, or a scenario that does not suit the candidate.
    Skip,
}

/// What came of a try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) judgement: Judgement,
    /// Why it is not good, in one line.
    pub(crate) why: Option<String>,
    pub(crate) duration_ms: u64,
    /// The command line that repeats it.
    pub(crate) repeat: String,
}

/// What a bisection ends with: indices of candidates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// This is the first that fails.
    First(usize),
    /// One of these is, the last of which fails; the others could not be judged.
    Among(Vec<usize>),
}

/// Which candidate to try next: a search among candidates in order, the first of them good, the last bad.
#[derive(Debug, Clone)]
pub(crate) struct Bisection {
    judged: Vec<Option<Judgement>>,
    /// The last that is good, and the first that is bad, as far as is known or claimed.
    good: usize,
    bad: usize,
}

/// The ends are not as they should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WrongEnd {
    /// The good one fails.
    GoodFails,
    /// The bad one passes.
    BadPasses,
    /// One of them cannot be judged.
    NotJudged,
}

impl Bisection {
    /// A search among so many candidates, two at least.
    pub(crate) fn new(candidates: usize) -> Option<Self> {
        (candidates >= 2).then(|| Self {
            judged: vec![None; candidates],
            good: 0,
            bad: candidates - 1,
        })
    }

    /// The candidate to try; none once there is nothing more to learn. The ends come first: what they are is claimed, not known.
    pub(crate) fn next(&self) -> Option<usize> {
        for end in [self.good, self.bad] {
            if self.judged[end].is_none() {
                return Some(end);
            }
        }
        let middle = self.good.midpoint(self.bad);
        // Around what could not be judged.
        self.open().min_by_key(|it| it.abs_diff(middle))
    }

    /// Takes what a try of the candidate that [`next`](Self::next) named has shown.
    pub(crate) fn record(&mut self, index: usize, judgement: Judgement) -> Result<(), WrongEnd> {
        let last = self.judged.len() - 1;
        match judgement {
            Judgement::Bad if index == 0 => return Err(WrongEnd::GoodFails),
            Judgement::Good if index == last => return Err(WrongEnd::BadPasses),
            Judgement::Skip if index == 0 || index == last => return Err(WrongEnd::NotJudged),
            Judgement::Good => self.good = self.good.max(index),
            Judgement::Bad => self.bad = self.bad.min(index),
            Judgement::Skip => {}
        }
        self.judged[index] = Some(judgement);
        Ok(())
    }

    /// How many candidates may yet be tried.
    pub(crate) fn left(&self) -> usize {
        self.open().count()
    }

    /// About how many tries that takes.
    pub(crate) fn tries_left(&self) -> u32 {
        (self.left() + 1).next_power_of_two().ilog2()
    }

    /// What is known when there is nothing more to try.
    pub(crate) fn found(&self) -> Found {
        match self.bad - self.good {
            1 => Found::First(self.bad),
            _ => Found::Among((self.good + 1..=self.bad).collect()),
        }
    }

    fn open(&self) -> impl Iterator<Item = usize> + '_ {
        (self.good + 1..self.bad).filter(|it| self.judged[*it].is_none())
    }
}

/// Searches: tries candidates by `run`, and tells by `say` what came of each, a line at a time, and what is found.
///
/// # Errors
///
/// There are fewer than two candidates, the good one fails, the bad one passes, one of them cannot be judged, or `run` fails.
pub(crate) fn bisect(
    candidates: &[PathBuf],
    say: &mut dyn FnMut(&str),
    mut run: impl FnMut(&Path) -> Result<Judged, Failure>,
) -> Result<Found, Failure> {
    let Some(mut bisection) = Bisection::new(candidates.len()) else {
        return Err(
            Failure::new("there is nothing between one candidate and itself")
                .with_help("name two by --good and --bad"),
        );
    };
    let names: Vec<String> = candidates
        .iter()
        .map(|it| visible_line(&it.to_string_lossy()))
        .collect();
    let width = names.iter().map(|it| it.chars().count()).max().unwrap_or(0);
    let width = width.min(60);
    let mut tries: Vec<Option<Judged>> = vec![None; candidates.len()];
    while let Some(index) = bisection.next() {
        let judged = run(&candidates[index])?;
        bisection
            .record(index, judged.judgement)
            .map_err(|wrong| wrong_end(wrong, &names[index], &judged))?;
        let word = match judged.judgement {
            Judgement::Good => "good",
            Judgement::Bad => "bad",
            Judgement::Skip => "skip",
        };
        let name = &names[index];
        let time = duration(judged.duration_ms);
        let mut line = format!(
            "{word:<4}  {name:<width$}  {time:>10}  {}",
            left(&bisection)
        );
        if let Some(why) = &judged.why {
            line += &format!("; {}", visible_line(why));
        }
        say(&line);
        tries[index] = Some(judged);
    }
    let found = bisection.found();
    for line in verdict(&found, &names, &tries) {
        say(&line);
    }
    Ok(found)
}

fn left(bisection: &Bisection) -> String {
    match (bisection.left(), bisection.tries_left()) {
        (0, _) => "none left".to_owned(),
        (1, _) => "1 left".to_owned(),
        (left, tries) => format!("{left} left, about {tries} tries"),
    }
}

fn wrong_end(wrong: WrongEnd, name: &str, judged: &Judged) -> Failure {
    let why = match &judged.why {
        Some(why) => format!(": {}", visible_line(why)),
        None => String::new(),
    };
    let repeat = &judged.repeat;
    match wrong {
        WrongEnd::GoodFails => Failure::new(format!("the good one, \"{name}\", fails{why}"))
            .with_help(format!(
                "name one with which the scenario passes by --good, or see why it fails: {repeat}"
            )),
        WrongEnd::BadPasses => Failure::new(format!("the bad one, \"{name}\", passes")).with_help(
            format!("name one with which the scenario fails by --bad, or see it pass: {repeat}"),
        ),
        WrongEnd::NotJudged => Failure::new(format!("cannot judge \"{name}\"{why}")).with_help(
            format!("a search needs both ends; see what is wrong: {repeat}"),
        ),
    }
}

fn verdict(found: &Found, names: &[String], tries: &[Option<Judged>]) -> Vec<String> {
    let mut lines = Vec::new();
    let bad = match found {
        Found::First(bad) => {
            lines.push(format!("the first that fails is {}", names[*bad]));
            lines.push(format!("the last that passes is {}", names[bad - 1]));
            *bad
        }
        Found::Among(among) => {
            let skipped = plural(among.len() - 1, "candidate");
            lines.push(format!(
                "the first that fails is one of these, for {skipped} could not be judged:"
            ));
            lines.extend(among.iter().map(|it| format!("  {}", names[*it])));
            among[among.len() - 1]
        }
    };
    if let Some(judged) = &tries[bad] {
        if let Some(why) = &judged.why {
            lines.push(format!("why: {}", visible_line(why)));
        }
        lines.push(format!("repeat: {}", judged.repeat));
    }
    lines
}

/// The candidates from good to bad: those that are given, or those beside the good one that look like it.
///
/// # Errors
///
/// One is not there, good and bad are the same, or the good one's folder cannot be read.
pub(crate) fn candidates(
    good: &Path,
    bad: &Path,
    given: &[PathBuf],
) -> Result<Vec<PathBuf>, Failure> {
    for path in [good, bad]
        .into_iter()
        .chain(given.iter().map(PathBuf::as_path))
    {
        if let Err(err) = fs::metadata(path) {
            let why = io_text(&err);
            return Err(Failure::new(format!(
                "cannot use \"{}\": {why}",
                path.display()
            )));
        }
    }
    if good == bad {
        let message = format!(
            "\"{}\" is both the good one and the bad one",
            good.display()
        );
        return Err(Failure::new(message));
    }
    let between = match given {
        [] => beside(good, bad)?,
        _ => {
            let others = given.iter().filter(|it| *it != good && *it != bad);
            others.cloned().collect()
        }
    };
    let mut all = vec![good.to_owned()];
    all.extend(between);
    all.push(bad.to_owned());
    Ok(all)
}

/// What lies beside the good one, and by its version between it and the bad one; in the order from good to bad, which may be that of
/// falling versions.
fn beside(good: &Path, bad: &Path) -> Result<Vec<PathBuf>, Failure> {
    let folder = match good.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let cannot_read = |err: std::io::Error| {
        let why = io_text(&err);
        Failure::new(format!(
            "cannot read the folder \"{}\": {why}",
            folder.display()
        ))
    };
    let name_of = |path: &Path| {
        path.file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let (good_name, bad_name) = (name_of(good), name_of(bad));
    let falls = by_version(&good_name, &bad_name) == Ordering::Greater;
    let (low, high) = match falls {
        true => (&bad_name, &good_name),
        false => (&good_name, &bad_name),
    };
    let mut between = Vec::new();
    for entry in fs::read_dir(folder).map_err(cannot_read)? {
        let entry = entry.map_err(cannot_read)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_between = by_version(low, &name) == Ordering::Less
            && by_version(&name, high) == Ordering::Less
            && name != *low
            && name != *high;
        let path = match good.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => entry.path(),
            _ => PathBuf::from(entry.file_name()),
        };
        if is_between
            && (looks_like(&name, &good_name) || looks_like(&name, &bad_name))
            && path.is_dir() == good.is_dir()
        {
            between.push((name, path));
        }
    }
    between.sort_by(|(one, _), (other, _)| by_version(one, other).then_with(|| one.cmp(other)));
    if falls {
        between.reverse();
    }
    Ok(between.into_iter().map(|(_, path)| path).collect())
}

/// A part of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part<'a> {
    /// `rc`, `beta`, `~`: what comes before the release. Lower ones come earlier.
    Before(u8),
    Word(&'a str),
    Separator(char),
    /// Without zeros in front.
    Number(&'a str),
}

/// The names of what comes before a release, in their order.
const BEFORE: [&str; 6] = ["dev", "alpha", "beta", "pre", "preview", "rc"];

fn parts(name: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let end = |is_in: fn(char) -> bool| rest.find(|it| !is_in(it)).unwrap_or(rest.len());
        let length = if first.is_ascii_digit() {
            let length = end(|it| it.is_ascii_digit());
            parts.push(Part::Number(rest[..length].trim_start_matches('0')));
            length
        } else if first.is_alphabetic() {
            let length = end(char::is_alphabetic);
            let word = &rest[..length];
            match BEFORE.iter().position(|it| word.eq_ignore_ascii_case(it)) {
                Some(rank) => {
                    // What stands between the release and it says nothing: 6.1-rc1, 6.1~rc1, 6.1rc1.
                    if let Some(Part::Separator(_) | Part::Before(_)) = parts.last() {
                        parts.pop();
                    }
                    parts.push(Part::Before(rank as u8 + 1));
                }
                None => parts.push(Part::Word(word)),
            }
            length
        } else {
            parts.push(match first {
                '~' => Part::Before(0),
                _ => Part::Separator(first),
            });
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    parts
}

/// Compares names as people count: 6.1.9 comes before 6.1.10, and 6.1-rc1 before 6.1.
fn by_version(one: &str, other: &str) -> Ordering {
    // The end of a name comes behind what is before a release, and before all else.
    let rank = |part: Option<&Part<'_>>| match part {
        Some(Part::Before(_)) => 0,
        None => 1,
        Some(Part::Separator(_)) => 2,
        Some(Part::Word(_)) => 3,
        Some(Part::Number(_)) => 4,
    };
    let (one, other) = (parts(one), parts(other));
    for index in 0..=one.len().max(other.len()) {
        let (left, right) = (one.get(index), other.get(index));
        let order = match (left, right) {
            (Some(Part::Number(left)), Some(Part::Number(right))) => {
                left.len().cmp(&right.len()).then_with(|| left.cmp(right))
            }
            (Some(Part::Before(left)), Some(Part::Before(right))) => left.cmp(right),
            (Some(Part::Word(left)), Some(Part::Word(right))) => left.cmp(right),
            (Some(Part::Separator(left)), Some(Part::Separator(right))) => left.cmp(right),
            _ => rank(left).cmp(&rank(right)),
        };
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Whether two names differ in their versions alone: the same text up to the first digit, and the same words after it.
fn looks_like(one: &str, other: &str) -> bool {
    let prefix = |name: &str| name.find(|it: char| it.is_ascii_digit());
    let (Some(one_start), Some(other_start)) = (prefix(one), prefix(other)) else {
        return false;
    };
    let words = |name: &str| -> Vec<String> {
        let words = parts(name).into_iter().filter_map(|it| match it {
            Part::Word(word) => Some(word.to_owned()),
            _ => None,
        });
        words.collect()
    };
    one[..one_start] == other[..other_start] && words(one) == words(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Judgement::{Bad, Good, Skip};

    /// Goes through a search in which `judge` knows; the result, and the tries in their order.
    fn search(candidates: usize, judge: impl Fn(usize) -> Judgement) -> (Found, Vec<usize>) {
        let mut bisection = Bisection::new(candidates).unwrap();
        let mut tries = Vec::new();
        while let Some(index) = bisection.next() {
            assert!(!tries.contains(&index), "{index} twice");
            tries.push(index);
            bisection.record(index, judge(index)).unwrap();
        }
        (bisection.found(), tries)
    }

    #[test]
    fn every_first_bad_one_is_found_in_few_tries() {
        for candidates in 2..70 {
            for first in 1..candidates {
                let judge = |it| if it < first { Good } else { Bad };
                let (found, tries) = search(candidates, judge);
                assert_eq!(found, Found::First(first), "of {candidates}");
                let most = 2 + candidates.next_power_of_two().ilog2() as usize;
                assert!(tries.len() <= most, "{tries:?} of {candidates}");
                assert_eq!(tries[..2], [0, candidates - 1]);
            }
        }
    }

    #[test]
    fn what_cannot_be_judged_is_gone_around() {
        // The middle says nothing, and does not matter.
        let judge = |first: usize, skip: &'static [usize]| {
            move |it: usize| match it {
                _ if skip.contains(&it) => Skip,
                _ if it < first => Good,
                _ => Bad,
            }
        };
        assert_eq!(search(9, judge(7, &[4])).0, Found::First(7));
        assert_eq!(search(9, judge(4, &[3, 4])).0, Found::Among(vec![3, 4, 5]));
        let (found, tries) = search(5, judge(2, &[1, 2, 3]));
        assert_eq!(found, Found::Among(vec![1, 2, 3, 4]));
        assert_eq!(tries.len(), 5);
    }

    #[test]
    fn ends_that_are_not_as_claimed_are_refused() {
        let record = |index, judgement| Bisection::new(4).unwrap().record(index, judgement);
        assert_eq!(record(0, Bad), Err(WrongEnd::GoodFails));
        assert_eq!(record(3, Good), Err(WrongEnd::BadPasses));
        assert_eq!(record(0, Skip), Err(WrongEnd::NotJudged));
        assert_eq!(record(3, Skip), Err(WrongEnd::NotJudged));
        assert_eq!(record(1, Skip), Ok(()));
        assert!(Bisection::new(1).is_none());
    }

    #[test]
    fn versions_are_ordered_as_people_count() {
        let ordered = [
            "vmlinuz-5.10",
            "vmlinuz-6.1-dev",
            "vmlinuz-6.1-rc1",
            "vmlinuz-6.1-rc2",
            "vmlinuz-6.1-rc10",
            "vmlinuz-6.1",
            "vmlinuz-6.1.0-6-amd64",
            "vmlinuz-6.1.0-56-amd64",
            "vmlinuz-6.1.9",
            "vmlinuz-6.1.10",
            "vmlinuz-6.12~rc1",
            "vmlinuz-6.12",
            "vmlinuz-99999999999999999999999999999999999999999",
        ];
        for (index, one) in ordered.iter().enumerate() {
            for (number, other) in ordered.iter().enumerate() {
                assert_eq!(by_version(one, other), index.cmp(&number), "{one} {other}");
            }
        }
        assert_eq!(by_version("d-6.1.tar", "d-6.1.9.tar"), Ordering::Less);
        assert_eq!(by_version("d-6.1-rc1.tar", "d-6.1.tar"), Ordering::Less);
    }

    #[test]
    fn files_beside_the_good_one_are_found_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-10-amd64",
            "vmlinuz-6.1.0-10-cloud-amd64",
            "vmlinuz-6.1.0-11-amd64",
            "vmlinuz-6.1.0-11-amd64.sig",
            "vmlinuz-6.1.0-12-amd64",
            "vmlinuz-6.1.0-8-amd64",
            "System.map-6.1.0-10-amd64",
            "vmlinuz",
        ] {
            fs::write(path(name), "").unwrap();
        }
        fs::create_dir(path("vmlinuz-6.1.0-11.5-amd64")).unwrap();
        let (good, bad) = (
            path("vmlinuz-6.1.0-9-amd64"),
            path("vmlinuz-6.1.0-12-amd64"),
        );
        let names = |paths: Vec<PathBuf>| -> Vec<String> {
            let names = paths
                .iter()
                .map(|it| it.file_name().unwrap().to_str().unwrap().to_owned());
            names.collect()
        };
        let mut expected = [9, 10, 11, 12].map(|it| format!("vmlinuz-6.1.0-{it}-amd64"));
        assert_eq!(names(candidates(&good, &bad, &[]).unwrap()), expected);
        // An older one may be the bad one.
        expected.reverse();
        assert_eq!(names(candidates(&bad, &good, &[]).unwrap()), expected);
        // Those that are given stay in their order, and the ends are named once.
        let given = [good.clone(), path("vmlinuz"), bad.clone()];
        let all = names(candidates(&good, &bad, &given).unwrap());
        assert_eq!(
            all,
            ["vmlinuz-6.1.0-9-amd64", "vmlinuz", "vmlinuz-6.1.0-12-amd64"]
        );
        let failure = candidates(&good, &path("none"), &[]).unwrap_err();
        assert!(
            failure
                .message
                .ends_with("none\": no such file or directory")
        );
        assert!(candidates(&good, &good, &[]).is_err());
    }

    fn judged(judgement: Judgement) -> Judged {
        Judged {
            judgement,
            why: (judgement != Good).then(|| "panic: it\npanicked".to_owned()),
            duration_ms: 3_200,
            repeat: "ampoule test x.toml".into(),
        }
    }

    #[test]
    fn each_try_is_a_line_and_the_end_says_which() {
        let candidates: Vec<PathBuf> = (1..=6).map(|it| format!("k-{it}").into()).collect();
        let mut lines = Vec::new();
        let mut say = |line: &str| lines.push(line.to_owned());
        let found = bisect(&candidates, &mut say, |path| {
            Ok(judged(match path.to_str().unwrap() {
                "k-3" => Skip,
                it if it < "k-4" => Good,
                _ => Bad,
            }))
        });
        assert_eq!(found.unwrap(), Found::Among(vec![2, 3]));
        assert_eq!(
            lines,
            [
                "good  k-1       3.2 s  4 left, about 3 tries",
                "bad   k-6       3.2 s  4 left, about 3 tries; panic: it panicked",
                "skip  k-3       3.2 s  3 left, about 2 tries; panic: it panicked",
                "good  k-2       3.2 s  2 left, about 2 tries",
                "bad   k-4       3.2 s  none left; panic: it panicked",
                "the first that fails is one of these, for 1 candidate could not be judged:",
                "  k-3",
                "  k-4",
                "why: panic: it panicked",
                "repeat: ampoule test x.toml",
            ]
        );
    }

    #[test]
    fn a_wrong_end_is_told_with_what_to_do() {
        let candidates = ["a", "b", "c"].map(PathBuf::from);
        let failure = bisect(&candidates, &mut |_| {}, |_| Ok(judged(Bad))).unwrap_err();
        assert_eq!(
            failure.message,
            "the good one, \"a\", fails: panic: it panicked"
        );
        assert!(failure.help.unwrap().ends_with("ampoule test x.toml"));
        let failure = bisect(&candidates, &mut |_| {}, |_| Ok(judged(Good))).unwrap_err();
        assert_eq!(failure.message, "the bad one, \"c\", passes");
    }
}
