//! The command: a process of the right user, in the right place, with its streams.

use alloc::ffi::CString;
use alloc::format;
use alloc::vec::Vec;

use crate::account::{self, Account};
use crate::job::Job;
use crate::protocol::Failure;
use crate::sys::{self, Errno, Fd};
use crate::{Context, Problem, files};

/// Where programs are looked for if the environment does not say.
const PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command that runs.
pub(crate) struct Running {
    pub(crate) process: i32,
    /// What it reads.
    pub(crate) input: Option<Fd>,
    /// What it writes: standard output, then standard error. A terminal is the first.
    pub(crate) outputs: [Option<Fd>; 2],
    /// The programs' side of its terminal: while it is held, the other side does not end.
    pub(crate) terminal: Option<Fd>,
}

/// Starts it. A process that is not the machine's first may not be able to become another user: it does so only where it
/// is told to.
pub(crate) fn start(job: &Job, is_machine: bool) -> Result<Running, Problem> {
    let [name, ..] = &job.arguments[..] else {
        return Err(Problem::setup("there is no command to run".into()));
    };
    let users = files::read(c"/etc/passwd").unwrap_or_default();
    let groups = files::read(c"/etc/group").unwrap_or_default();
    let account = account::resolve(&job.user, &job.groups, &users, &groups);
    let account = account.map_err(Problem::setup)?;
    let environment = environment(job, &account);
    let plan = Plan {
        programs: programs(name, &environment)?,
        arguments: texts(&job.arguments)?,
        environment: texts(&environment)?,
        directory: match &job.directory[..] {
            [] => c"/".into(),
            directory => files::text(directory)?,
        },
        account: (is_machine || !job.user.is_empty()).then_some(account),
        is_terminal: job.terminal.is_some(),
    };
    let directory = &plan.directory;
    if !sys::exists(directory) {
        files::make_folders(directory).context(&format!("cannot make {directory:?}"))?;
    }
    let (mut running, streams) = streams(job, &plan).context("cannot make its streams")?;
    let (reader, writer) = sys::pipe().context("cannot make a pipe")?;
    match sys::fork().context("cannot make a process")? {
        0 => {
            let (step, error) = plan.carry_out(&streams);
            // All numbers of errors that these steps have fit into a byte.
            let _ = writer.write(&[step as u8, error.0 as u8]);
            sys::exit(127)
        }
        process => running.process = process,
    }
    drop((writer, streams));
    // The other end is closed, and nothing in it, once the command's program is there.
    let mut error = [0; 2];
    match reader.read(&mut error) {
        Ok(2) => Err(plan.failure(error[0], Errno(error[1].into()), name)),
        _ => Ok(running),
    }
}

/// What the new process was at when it could not go on.
#[derive(Clone, Copy)]
enum Step {
    Streams,
    User,
    Directory,
    Execute,
}

/// What the new process is to do: all that needs memory is done before it is made.
struct Plan {
    /// Where the program may be.
    programs: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    directory: CString,
    /// Whom to become.
    account: Option<Account>,
    is_terminal: bool,
}

impl Plan {
    /// Becomes the command; what went wrong.
    fn carry_out(&self, streams: &[Fd; 3]) -> (Step, Errno) {
        match self.prepare(streams) {
            Ok(()) => (Step::Execute, self.execute()),
            Err(error) => error,
        }
    }

    fn prepare(&self, streams: &[Fd; 3]) -> Result<(), (Step, Errno)> {
        let at = |step| move |error| (step, error);
        sys::new_session().map_err(at(Step::Streams))?;
        if self.is_terminal {
            sys::take_terminal(&streams[0]).map_err(at(Step::Streams))?;
        }
        for (stream, number) in streams.iter().zip(0..) {
            sys::duplicate(stream, number).map_err(at(Step::Streams))?;
        }
        if let Some(it) = &self.account {
            sys::become_user(it.user, it.group, &it.groups).map_err(at(Step::User))?;
        }
        sys::chdir(&self.directory).map_err(at(Step::Directory))?;
        sys::reset_signals();
        sys::block_signals(false).map_err(at(Step::Streams))
    }

    /// As execvp(3): the first that can be executed; of the others, one that may not be is worth more than none.
    fn execute(&self) -> Errno {
        let mut error = Errno::NOENT;
        for program in &self.programs {
            match sys::execute(program, &self.arguments, &self.environment) {
                Errno::NOENT | Errno::NOTDIR => {}
                Errno::ACCES => error = Errno::ACCES,
                other => return other,
            }
        }
        error
    }

    fn failure(&self, step: u8, error: Errno, name: &[u8]) -> Problem {
        let name = name.escape_ascii();
        match step {
            it if it == Step::User as u8 => {
                Problem::setup(format!("cannot become the command's user: {error}"))
            }
            it if it == Step::Directory as u8 => {
                let directory = &self.directory;
                Problem::setup(format!("cannot go to {directory:?}: {error}"))
            }
            it if it == Step::Execute as u8 => match error {
                Errno::NOENT if self.programs.iter().any(|path| sys::exists(path)) => Problem(
                    Failure::NotFound,
                    format!("cannot run {name}: what interprets or loads it is not there"),
                ),
                Errno::NOENT => Problem(
                    Failure::NotFound,
                    format!("cannot run {name}: no such file or directory"),
                ),
                error => Problem(
                    Failure::NotExecutable,
                    format!("cannot run {name}: {error}"),
                ),
            },
            _ => Problem::setup(format!("cannot connect the command's streams: {error}")),
        }
    }
}

fn texts(list: &[Vec<u8>]) -> Result<Vec<CString>, Problem> {
    list.iter().map(|it| files::text(it)).collect()
}

/// Both ends of the command's streams: ours, and its own three.
fn streams(job: &Job, plan: &Plan) -> sys::Result<(Running, [Fd; 3])> {
    let mut running = Running {
        process: 0,
        input: None,
        outputs: [None, None],
        terminal: None,
    };
    let Some(size) = job.terminal else {
        let input = if job.input {
            let (reader, writer) = sys::pipe()?;
            writer.set_nonblocking()?;
            running.input = Some(writer);
            reader
        } else {
            sys::open(c"/dev/null", sys::READ)?
        };
        let (output, error) = (sys::pipe()?, sys::pipe()?);
        running.outputs = [Some(output.0), Some(error.0)];
        let streams = [input, output.1, error.1];
        // As programs expect of theirs, which may open them again by /dev/stdout.
        if let Some(account) = &plan.account {
            for stream in &streams[usize::from(!job.input)..] {
                stream.chown(account.user, account.group)?;
            }
        }
        return Ok((running, streams));
    };
    let (shown, side) = sys::terminal()?;
    sys::resize(&shown, size.rows, size.columns)?;
    if let Some(account) = &plan.account {
        side.chown(account.user, account.group)?;
    }
    shown.set_nonblocking()?;
    if job.input {
        running.input = Some(shown.again()?);
    }
    running.outputs[0] = Some(shown);
    let streams = [side.again()?, side.again()?, side.again()?];
    running.terminal = Some(side);
    Ok((running, streams))
}

/// The job's, with what no program should miss.
fn environment(job: &Job, account: &Account) -> Vec<Vec<u8>> {
    let mut environment = job.environment.clone();
    let mut add = |name: &[u8], value: &[u8]| {
        let is_it = |variable: &Vec<u8>| {
            let rest = variable.strip_prefix(name);
            rest.is_some_and(|rest| rest.first() == Some(&b'='))
        };
        if !value.is_empty() && !environment.iter().any(is_it) {
            environment.push([name, b"=", value].concat());
        }
    };
    add(b"PATH", PATH);
    add(b"HOME", &account.home);
    add(b"HOSTNAME", &job.host_name);
    if job.terminal.is_some() {
        add(b"TERM", b"xterm");
    }
    environment
}

/// Where a command of this name may be.
fn programs(name: &[u8], environment: &[Vec<u8>]) -> Result<Vec<CString>, Problem> {
    if name.is_empty() {
        return Err(Problem::setup("the command's name is empty".into()));
    }
    if name.contains(&b'/') {
        return Ok(Vec::from([files::text(name)?]));
    }
    let mut paths = environment
        .iter()
        .filter_map(|it| it.strip_prefix(b"PATH="));
    let folders = paths
        .next_back()
        .unwrap_or(PATH)
        .split(|byte| *byte == b':');
    let program = |folder: &[u8]| match folder {
        b"" => files::text(&[b"./", name].concat()),
        folder => files::text(&[folder, b"/", name].concat()),
    };
    folders.map(program).collect()
}
