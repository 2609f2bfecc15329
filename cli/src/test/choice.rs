//! Which of the scenarios are run, and in which order.

use crate::config_file::suggestion;
use crate::report::Failure;
use crate::test::scenario::Scenario;

/// Those whose name contains one of `filters` and that have one of `tags`, where there are any.
///
/// # Errors
/// None is left: that is no run that passes.
pub(crate) fn choose(
    scenarios: Vec<Scenario>,
    filters: &[String],
    tags: &[String],
) -> Result<Vec<Scenario>, Failure> {
    for tag in tags {
        if !scenarios.iter().any(|it| it.tags.contains(tag)) {
            let known = scenarios.iter().flat_map(|it| &it.tags);
            let mut known: Vec<&str> = known.map(String::as_str).collect();
            known.sort_unstable();
            known.dedup();
            let failure = Failure::new(format!("no scenario has the tag \"{tag}\""));
            return Err(match known.is_empty() {
                true => failure.with_help("they have no tags: tags = [\"…\"]"),
                false => failure.with_help(suggestion(tag, &known)),
            });
        }
    }
    let is_chosen = |it: &Scenario| {
        let named = filters.is_empty() || filters.iter().any(|text| it.name.contains(text));
        let tagged = tags.is_empty() || tags.iter().any(|tag| it.tags.contains(tag));
        named && tagged
    };
    let count = scenarios.len();
    let chosen: Vec<Scenario> = scenarios.into_iter().filter(is_chosen).collect();
    if chosen.is_empty() {
        let failure = match count {
            0 => Failure::new("there is no scenario to run").with_help("all files are templates"),
            _ => Failure::new(format!("none of {count} scenarios is chosen"))
                .with_help("see their names with --list, without --filter and --tag"),
        };
        return Err(failure);
    }
    Ok(chosen)
}

/// Puts them in a random order, if that was asked for; the seed, by which the order comes again.
pub(crate) fn shuffle(scenarios: &mut [Scenario], asked: Option<Option<u64>>) -> Option<u64> {
    // Short enough to be typed.
    let seed = asked?.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    fastrand::Rng::with_seed(seed).shuffle(scenarios);
    Some(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_vmm::config::VmConfig;
    use std::time::Duration;

    fn scenario(name: &str, tags: &[&str]) -> Scenario {
        Scenario {
            name: name.into(),
            file: "x.toml".into(),
            description: None,
            tags: tags.iter().map(ToString::to_string).collect(),
            cell: Vec::new(),
            vm: VmConfig::default(),
            run: None,
            timeout: Duration::from_secs(1).into(),
            step_timeout: Duration::from_secs(1).into(),
            forbid: Vec::new(),
            allow: Vec::new(),
            steps: Vec::new(),
        }
    }

    fn chosen(filters: &[&str], tags: &[&str]) -> Result<String, String> {
        let scenarios = vec![
            scenario("boot[cpus=1]", &["fast"]),
            scenario("boot[cpus=2]", &["slow", "smp"]),
            scenario("disk", &["slow"]),
        ];
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        match choose(scenarios, &texts(filters), &texts(tags)) {
            Ok(chosen) => {
                let names: Vec<String> = chosen.into_iter().map(|it| it.name).collect();
                Ok(names.join(" "))
            }
            Err(failure) => Err(format!("{}; {}", failure.message, failure.help.unwrap())),
        }
    }

    #[test]
    fn names_and_tags_choose() {
        assert_eq!(chosen(&[], &[]).unwrap(), "boot[cpus=1] boot[cpus=2] disk");
        assert_eq!(chosen(&["cpus=2", "di"], &[]).unwrap(), "boot[cpus=2] disk");
        assert_eq!(chosen(&[], &["slow"]).unwrap(), "boot[cpus=2] disk");
        assert_eq!(
            chosen(&["boot"], &["slow", "fast"]).unwrap(),
            "boot[cpus=1] boot[cpus=2]"
        );
        assert_eq!(chosen(&["disk"], &["smp", "slow"]).unwrap(), "disk");
    }

    #[test]
    fn none_is_an_error() {
        let text = chosen(&["nothing"], &[]).unwrap_err();
        assert!(
            text.starts_with("none of 3 scenarios is chosen; see"),
            "{text}"
        );
        let text = chosen(&[], &["slwo"]).unwrap_err();
        assert_eq!(
            text,
            "no scenario has the tag \"slwo\"; did you mean \"slow\"?"
        );
        let text = chosen(&["disk"], &["fast"]).unwrap_err();
        assert!(text.starts_with("none of 3"), "{text}");
        assert!(choose(Vec::new(), &[], &[]).is_err());
    }

    #[test]
    fn a_seed_gives_its_order_again() {
        let order = |seed| {
            let mut all: Vec<Scenario> =
                (0..50).map(|it| scenario(&format!("s{it}"), &[])).collect();
            let used = shuffle(&mut all, seed);
            let names: Vec<String> = all.into_iter().map(|it| it.name).collect();
            (names, used)
        };
        let (unshuffled, none) = order(None);
        assert_eq!(
            (none, &*unshuffled[0], &*unshuffled[49]),
            (None, "s0", "s49")
        );
        let (first, seed) = order(Some(Some(7)));
        assert_eq!(seed, Some(7));
        assert_ne!(first, unshuffled);
        assert_eq!(order(Some(Some(7))).0, first);
        assert_ne!(order(Some(Some(8))).0, first);
        let (random, seed) = order(Some(None));
        assert_eq!(order(Some(seed)).0, random);
        let mut sorted = random.clone();
        sorted.sort();
        let mut all = unshuffled;
        all.sort();
        assert_eq!(sorted, all);
    }
}
