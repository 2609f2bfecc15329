//! What is run, and how: what the image says, and over it what was asked for, as docker(1) joins them.

use std::env;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use ampoule_image::job::Job;
use ampoule_store::ImageConfig;

use super::args::CommandArgs;

/// The guest's name, unless it is given one.
const HOST_NAME: &[u8] = b"ampoule";

/// The job of a command, without its terminal, root and network. None where neither side says what to run.
pub(super) fn of(arguments: &CommandArgs, image: &ImageConfig) -> Option<Job> {
    let given = |text: &Option<OsString>, or: &str| match text {
        Some(text) => text.as_bytes().to_vec(),
        None => or.as_bytes().to_vec(),
    };
    let words = command_line(arguments, image);
    (!words.is_empty()).then(|| Job {
        arguments: words,
        environment: environment(arguments, image, |name| env::var_os(name)),
        user: given(&arguments.user, &image.user),
        directory: given(&arguments.workdir, &image.working_dir),
        host_name: match &arguments.hostname {
            Some(name) => name.as_bytes().to_vec(),
            None => HOST_NAME.to_vec(),
        },
        input: arguments.interactive,
        ..Job::default()
    })
}

/// The entrypoint, then the command. An entrypoint that is given leaves nothing of the image's.
fn command_line(arguments: &CommandArgs, image: &ImageConfig) -> Vec<Vec<u8>> {
    let of_image = |words: &[String]| -> Vec<Vec<u8>> {
        words.iter().map(|word| word.as_bytes().to_vec()).collect()
    };
    let asked = arguments.command.iter();
    let asked: Vec<Vec<u8>> = asked.map(|word| word.as_bytes().to_vec()).collect();
    match &arguments.entrypoint {
        Some(program) => {
            let program = Some(program.as_bytes().to_vec()).filter(|it| !it.is_empty());
            program.into_iter().chain(asked).collect()
        }
        None => {
            let rest = if asked.is_empty() {
                of_image(&image.cmd)
            } else {
                asked
            };
            of_image(&image.entrypoint)
                .into_iter()
                .chain(rest)
                .collect()
        }
    }
}

/// The image's variables, and over them those that were given; one without a value has the one that it has here, if any.
fn environment(
    arguments: &CommandArgs,
    image: &ImageConfig,
    here: impl Fn(&OsString) -> Option<OsString>,
) -> Vec<Vec<u8>> {
    let name_of = |variable: &[u8]| {
        let end = variable.iter().position(|byte| *byte == b'=');
        variable[..end.unwrap_or(variable.len())].to_vec()
    };
    let mut all: Vec<Vec<u8>> = Vec::new();
    let mut set = |variable: Vec<u8>| {
        let name = name_of(&variable);
        all.retain(|it| name_of(it) != name);
        all.push(variable);
    };
    for variable in &image.env {
        set(variable.as_bytes().to_vec());
    }
    for variable in &arguments.env {
        let bytes = variable.as_bytes().to_vec();
        if bytes.contains(&b'=') {
            set(bytes);
        } else if let Some(value) = here(variable) {
            set([bytes, b"=".to_vec(), value.into_vec()].concat());
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ImageConfig {
        let mut image = ImageConfig::default();
        image.entrypoint = vec!["/entry".into()];
        image.cmd = vec!["by".into(), "default".into()];
        image.env = vec!["PATH=/bin".into(), "A=image".into()];
        image.user = "www".into();
        image.working_dir = "/srv".into();
        image
    }

    fn words(arguments: &CommandArgs, image: &ImageConfig) -> Vec<String> {
        let job = of(arguments, image).map(|job| job.arguments);
        let words = job.unwrap_or_default().into_iter();
        words.map(|word| String::from_utf8(word).unwrap()).collect()
    }

    #[test]
    fn entrypoint_and_command_join_as_docker_joins_them() {
        let mut arguments = CommandArgs::default();
        assert_eq!(words(&arguments, &image()), ["/entry", "by", "default"]);
        arguments.command = vec!["mine".into()];
        assert_eq!(words(&arguments, &image()), ["/entry", "mine"]);
        arguments.entrypoint = Some("/bin/sh".into());
        assert_eq!(words(&arguments, &image()), ["/bin/sh", "mine"]);
        arguments.command.clear();
        assert_eq!(words(&arguments, &image()), ["/bin/sh"]);
        arguments.entrypoint = Some("".into());
        assert_eq!(words(&arguments, &image()), Vec::<String>::new());
        assert_eq!(of(&CommandArgs::default(), &ImageConfig::default()), None);
    }

    #[test]
    fn what_is_given_goes_before_what_the_image_says() {
        let mut arguments = CommandArgs::default();
        let job = of(&arguments, &image()).unwrap();
        assert_eq!((job.user, job.directory), (b"www".into(), b"/srv".into()));
        assert_eq!(job.host_name, b"ampoule");
        arguments.user = Some("1:2".into());
        arguments.workdir = Some("/".into());
        arguments.hostname = Some("box".into());
        let job = of(&arguments, &image()).unwrap();
        assert_eq!((job.user, job.directory), (b"1:2".into(), b"/".into()));
        assert_eq!(job.host_name, b"box");
    }

    #[test]
    fn variables_are_set_kept_and_taken_from_here() {
        let arguments = CommandArgs {
            env: ["A=1", "B=", "HERE", "NOWHERE"].map(OsString::from).into(),
            ..CommandArgs::default()
        };
        let here = |name: &OsString| (name == "HERE").then(|| "x=y".into());
        let all = environment(&arguments, &image(), here);
        let texts: Vec<String> = all
            .into_iter()
            .map(|it| String::from_utf8(it).unwrap())
            .collect();
        assert_eq!(texts, ["PATH=/bin", "A=1", "B=", "HERE=x=y"]);
    }
}
