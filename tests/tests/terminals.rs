//! Containers with a terminal: `kubectl run -it`, `kubectl attach`.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use berth_tests::cluster::Cluster;
use berth_tests::scenario::pod;
use berth_tests::wait;
use nix::sys::signal::Signal;

const LIMIT: Duration = Duration::from_secs(60);

/// A person at a terminal: what they type, and what they see.
struct Terminal {
    child: Child,
    screen: std::path::PathBuf,
}

impl Terminal {
    fn start(cluster: &Cluster, name: &str, args: &str) -> Result<Terminal> {
        let kubectl = cluster.kubectl.command();
        let line = format!("stty rows 41 cols 133; exec {} {args}", kubectl.get_program().display());
        let screen = cluster.dir.join(format!("{name}.screen"));
        let mut script = Command::new("script");
        script.args(["-qefc", &line]).arg(&screen);
        script.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child = script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        Ok(Terminal { child, screen })
    }

    fn types(&mut self, line: &str) -> Result<()> {
        let keys = self.child.stdin.as_mut().context("the terminal is closed")?;
        Ok(keys.write_all(format!("{line}\n").as_bytes())?)
    }

    fn sees(&self, text: &str) -> Result<()> {
        let screen = || std::fs::read_to_string(&self.screen).unwrap_or_default();
        wait::until_true(text, LIMIT, || Ok(screen().contains(text)))
            .with_context(|| format!("the screen: {:?}", screen()))
    }

    /// The exit code of what ran.
    fn ends(mut self) -> Result<Option<i32>> {
        // `script` types an end of file when its input ends: not before what runs has ended.
        let typing = self.child.stdin.take();
        let status = wait::until("the end of the terminal", LIMIT, || Ok(self.child.try_wait()?))?;
        drop(typing);
        Ok(status.code())
    }

    /// The window is closed.
    fn hangs_up(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

#[test]
fn a_shell_can_be_had_with_run_and_is_gone_after_it() {
    let cluster = Cluster::for_test().unwrap();
    let run = "run -it --rm --restart=Never --image=busybox --image-pull-policy=IfNotPresent shell -- sh";
    let mut terminal = Terminal::start(&cluster, "run", run).unwrap();
    terminal.sees("# ").unwrap();
    terminal.types("stty size; echo I am $HOSTNAME on $TERM").unwrap();
    terminal.sees("41 133").unwrap();
    terminal.sees("I am shell on xterm").unwrap();
    terminal.types("exit 3").unwrap();
    assert_eq!(terminal.ends().unwrap(), Some(3));
    cluster.gone("pod/shell").unwrap();
}

#[test]
fn a_terminal_can_be_left_and_attached_to_again_whatever_became_of_the_agent() {
    let cluster = Cluster::for_test().unwrap();
    let console = pod("console", "sh; exit 4", "    stdin: true\n    tty: true", "  restartPolicy: Never");
    cluster.kubectl.apply(&console).unwrap();
    cluster.ready("console").unwrap();
    let mut first = Terminal::start(&cluster, "first", "attach -it console").unwrap();
    first.types("secret=$((6 * 7))").unwrap();
    first.types("echo the first has $secret").unwrap();
    first.sees("the first has 42").unwrap();
    first.hangs_up().unwrap();

    let host = cluster.host().unwrap();
    host.signal("agent", Signal::SIGKILL).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.prints("console", "hostname", "console").unwrap();

    let mut second = Terminal::start(&cluster, "second", "attach -it console").unwrap();
    second.types("echo the second has $secret").unwrap();
    second.sees("the second has 42").unwrap();
    second.types("exit").unwrap();
    second.ends().unwrap();
    cluster.becomes("pod console", ".status.containerStatuses[0].state.terminated.exitCode", "4").unwrap();
    let log = cluster.kubectl.run("logs console").unwrap();
    assert!(log.contains("the first has 42") && log.contains("the second has 42"), "{log:?}");
}
