//! The step `api`: an agent with a guest is asked everything that its own description says can be asked, with documents made
//! up after that description and against it (schemathesis). No answer may be an error of the agent's, or have another kind,
//! status or shape than described; and afterwards agent, guest and pool are as they were.

use crate::command::{read, run, succeeds};
use crate::outcome::Outcome;
use crate::run::Run;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const VERSION: &str = "4.32.5";
/// How many requests are made up for each thing that can be asked, once after the description and once against it.
const EXAMPLES: &str = "30";
/// How long that may go on.
const SECONDS: &str = "60";
/// What is not asked: streams that go on for ever, and the end of the guest that is needed afterwards.
const NOT_ASKED: [&str; 2] = ["/events$", "stop"];
/// An agent refuses much that has the right shape: a guest that is not there, more memory than there is; and the description
/// takes `1.0` for a whole number, which serde does not.
const NOT_CHECKED: &str = "positive_data_acceptance";
/// How long the agent and its guest may take to come up.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn check(this: &Run) -> Result<Outcome> {
    let Some(schemathesis) = install(this) else {
        return Ok(Outcome::skipped(format!(
            "schemathesis {VERSION} cannot be installed: PyPI cannot be reached, or python3 has no venv (apt-get install \
             python3-venv)"
        )));
    };
    // As the tests were built, so that nothing is built again.
    run(&mut this.cargo("build --locked --workspace --bin nil --tests"))?;
    let stage = Stage::set_up(this)?;
    let [paths, operation] = NOT_ASKED;
    run(this
        .command(&schemathesis)
        .args(["run", &format!("{}/v1/openapi.json", stage.url), "--no-color", "--seed", "1"])
        .args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--max-time", SECONDS])
        .args(["--exclude-path-regex", paths, "--exclude-operation-id", operation, "--exclude-checks", NOT_CHECKED])
        .args(["--continue-on-failure", "--warnings", "off"])
        .current_dir(&stage.dir))?;
    stage.check_unharmed()?;
    let guest = if stage.has_guest { "a guest" } else { "no guest, since there is no /dev/kvm" };
    Ok(Outcome::passed(format!("schemathesis {VERSION}, at most {SECONDS} s; {guest}")))
}

/// The program, which is installed if it is not there; `None` when it cannot be.
fn install(this: &Run) -> Option<PathBuf> {
    let venv = this.tools().join(format!("schemathesis-{VERSION}"));
    let program = venv.join("bin/schemathesis");
    let is_there = || succeeds(this.command(&program).arg("--version"), PATIENCE);
    if is_there() {
        return Some(program);
    }
    println!("schemathesis is not installed; installing it into {}", venv.display());
    let made = run(this.command("python3").args(["-m", "venv"]).arg(&venv));
    let package = format!("schemathesis=={VERSION}");
    let installed = made.and_then(|()| {
        run(this.command(venv.join("bin/pip")).args(["install", "--quiet", "--disable-pip-version-check", &package]))
    });
    (installed.is_ok() && is_there()).then_some(program)
}

/// An agent that answers operators on loopback, with a guest if this machine can run one.
struct Stage<'a> {
    this: &'a Run,
    dir: PathBuf,
    url: String,
    has_guest: bool,
    agent: Child,
}

impl<'a> Stage<'a> {
    fn set_up(this: &'a Run) -> Result<Self> {
        let dir = this.temporary().join("api");
        fs::create_dir_all(&dir)?;
        let (pool, config) = (dir.join("pool"), dir.join("host.toml"));
        read(nil(this).args(["pool", "create", "--size", "256M"]).arg(&pool))?;
        let port = free_port()?;
        fs::write(
            &config,
            format!(
                "name = \"A\"\npools = [\"{}\"]\n[listen.plain]\naddress = \"127.0.0.1:{port}\"\nrole = \"operator\"\n",
                pool.display()
            ),
        )?;
        let log = fs::File::create(dir.join("agent.log"))?;
        let mut agent = nil(this);
        agent.args(["host", "run", "--stop-guests", "--config"]).arg(&config);
        let agent =
            agent.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn().context("nil does not start")?;
        let mut stage = Self { this, dir, url: format!("http://127.0.0.1:{port}"), has_guest: false, agent };
        stage.await_agent()?;
        if Path::new("/dev/kvm").exists() {
            let run = ["vm", "run", "builtin:demo", "--name", "rover", "--memory", "64M", "--host", "A", "--pool"];
            read(nil(this).args(run).arg(&pool))?;
            stage.has_guest = true;
        }
        Ok(stage)
    }

    fn await_agent(&mut self) -> Result<()> {
        let begun = Instant::now();
        while !self.has_answered()? {
            if self.agent.try_wait()?.is_some() || begun.elapsed() > PATIENCE {
                bail!("the agent does not come up:\n{}", fs::read_to_string(self.dir.join("agent.log"))?);
            }
            thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Whether the agent that was started answers.
    fn has_answered(&self) -> Result<bool> {
        let hosts = read(nil(self.this).args(["--json", "host", "list"]))?;
        Ok(is_said(&hosts, &format!("\"agent_pid\":{},", self.agent.id())))
    }

    /// Fails unless the agent is the one that was started, its guest runs, and its pool is sound.
    fn check_unharmed(&self) -> Result<()> {
        ensure!(self.has_answered()?, "the agent that was started answers no more");
        if self.has_guest {
            let guests = read(nil(self.this).args(["--json", "ps"]))?;
            ensure!(is_said(&guests, "\"state\":\"running\""), "the guest does not run any more: {guests}");
        }
        read(nil(self.this).args(["pool", "check"]).arg(self.dir.join("pool"))).map(drop)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        // In order, so that the guest is stopped, too; whatever goes wrong here, the step `tidy` finds it.
        let _ = succeeds(Command::new("kill").args(["-TERM", &self.agent.id().to_string()]), PATIENCE);
        let _ = self.agent.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn is_said(json: &str, what: &str) -> bool {
    json.replace(": ", ":").contains(what)
}

fn nil(this: &Run) -> Command {
    this.command(this.target.join("debug/nil"))
}

/// A port that nobody uses at this moment.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
