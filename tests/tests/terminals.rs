//! Containers with a terminal: `kubectl run -it`, `kubectl attach`.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use berth_tests::cluster::Cluster;
use berth_tests::kubectl::finish;
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
    fn start(cluster: &Cluster, name: &str, args: &str) -> Terminal {
        let kubectl = cluster.kubectl.command();
        let line = format!("stty rows 41 cols 133; exec {} {args}", kubectl.get_program().display());
        let screen = cluster.dir.join(format!("{name}.screen"));
        let mut script = Command::new("script");
        script.args(["-qefc", &line]).arg(&screen);
        script.envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let child =
            script.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        Terminal { child, screen }
    }

    fn types(&mut self, line: &str) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn sees(&self, text: &str) {
        wait::until(text, LIMIT, || {
            let screen = std::fs::read_to_string(&self.screen).unwrap_or_default();
            Ok(screen.contains(text).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error}; the screen: {:?}", std::fs::read_to_string(&self.screen)));
    }

    /// The exit code of what ran.
    fn ends(self) -> Option<i32> {
        let mut child = self.child;
        // `script` types an end of file when its input ends: not before what runs has ended.
        let typing = child.stdin.take();
        let code = wait::until("the end of the terminal", LIMIT, || Ok(child.try_wait()?)).unwrap().code();
        drop(typing);
        drop(finish(child, "script", LIMIT));
        code
    }

    /// The window is closed.
    fn hangs_up(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn a_shell_can_be_had_with_run_and_is_gone_after_it() {
    let cluster = Cluster::for_test().unwrap();
    let run = "run -it --rm --restart=Never --image=busybox --image-pull-policy=IfNotPresent shell -- sh";
    let mut terminal = Terminal::start(&cluster, "run", run);
    terminal.sees("# ");
    terminal.types("stty size; echo I am $HOSTNAME on $TERM");
    terminal.sees("41 133");
    terminal.sees("I am shell on xterm");
    terminal.types("exit 3");
    assert_eq!(terminal.ends(), Some(3));
    cluster.gone("pod/shell").unwrap();
}

#[test]
fn a_terminal_can_be_left_and_attached_to_again_whatever_became_of_the_agent() {
    let cluster = Cluster::for_test().unwrap();
    let console = pod("console", "sh; exit 4", "    stdin: true\n    tty: true", "  restartPolicy: Never");
    cluster.kubectl.apply(&console).unwrap();
    cluster.ready("console").unwrap();
    let mut first = Terminal::start(&cluster, "first", "attach -it console");
    first.types("secret=$((6 * 7))");
    first.types("echo the first has $secret");
    first.sees("the first has 42");
    first.hangs_up();

    let host = cluster.host().unwrap();
    host.signal("agent", Signal::SIGKILL).unwrap();
    cluster.start_agent(0).unwrap();
    cluster.prints("console", "hostname", "console").unwrap();

    let mut second = Terminal::start(&cluster, "second", "attach -it console");
    second.types("echo the second has $secret");
    second.sees("the second has 42");
    second.types("exit");
    second.ends();
    cluster.becomes("pod console", ".status.containerStatuses[0].state.terminated.exitCode", "4").unwrap();
    let log = cluster.kubectl.run("logs console").unwrap();
    assert!(log.contains("the first has 42") && log.contains("the second has 42"), "{log:?}");
}
