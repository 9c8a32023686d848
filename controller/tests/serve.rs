//! `berth-controller` as a process: how it starts, what it says when it cannot, and how it ends.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn controller(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_berth-controller"));
    command.args(args).env_remove("NOTIFY_SOCKET").env_remove("JOURNAL_STREAM").env_remove("RUST_LOG");
    command
}

fn serve_on(data_dir: &Path, more: &[&str]) -> Command {
    let mut command = controller(&["serve", "--listen", "127.0.0.1:0", "--agent-listen", "127.0.0.1:0"]);
    command.arg("--data-dir").arg(data_dir).args(more);
    command
}

fn create_token(data_dir: &Path) -> Output {
    controller(&["token", "create", "--node", "one", "--data-dir"]).arg(data_dir).output().unwrap()
}

struct Running(Child, UnixDatagram);

impl Running {
    /// Starts it and waits until it has told the service manager that it is ready.
    fn start(mut command: Command, directory: &Path) -> Running {
        let path = directory.join("notify");
        let _ = std::fs::remove_file(&path);
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        command.env("NOTIFY_SOCKET", &path).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut word = [0; 64];
        let running = Running(child, socket);
        let length = running.1.recv(&mut word).expect("it tells the service manager");
        assert_eq!(&word[..length], b"READY=1\n");
        running
    }

    /// Asks it to end, and returns what it had logged.
    fn end(mut self, signal: Signal) -> String {
        kill(Pid::from_raw(self.0.id() as i32), signal).unwrap();
        let mut log = String::new();
        self.0.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        assert!(self.0.wait().unwrap().success(), "{log}");
        let mut word = [0; 64];
        let length = self.1.recv(&mut word).unwrap();
        assert_eq!(&word[..length], b"STOPPING=1\n");
        log
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn refusal(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn it_starts_makes_tokens_and_ends_on_a_signal_and_again() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let mut pins = Vec::new();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let running = Running::start(serve_on(&data_dir, &[]), directory.path());
        let token = create_token(&data_dir);
        assert!(token.status.success(), "{token:?}");
        let token = String::from_utf8(token.stdout).unwrap();
        pins.push(token.trim_end().split_once('.').unwrap().1.to_owned());
        let log = running.end(signal);
        assert!(log.contains("ready") && log.contains("admin.kubeconfig"), "{log}");
        assert!(!log.contains(token.trim_end()), "secrets are not logged");
        assert!(!data_dir.join("berth.db-wal").exists(), "closed in order");
    }
    assert_eq!(pins[0], pins[1], "the authority stays");
    let refused = create_token(&data_dir);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("no controller runs on"), "{said}");
}

#[test]
fn under_systemd_lines_carry_a_priority_and_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let mut command = serve_on(&directory.path().join("data"), &[]);
    command.env("JOURNAL_STREAM", "8:1");
    let log = Running::start(command, directory.path()).end(Signal::SIGTERM);
    assert!(log.lines().all(|line| line.starts_with("<6> INFO")), "{log}");
}

#[test]
fn what_keeps_it_from_starting_is_said_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let config = directory.path().join("controller.toml");

    std::fs::write(&config, "listn = '0.0.0.0:1'\n").unwrap();
    let said = refusal(serve_on(&data_dir, &["--config", config.to_str().unwrap()]));
    assert!(said.contains("unknown field `listn`") && said.contains("controller.toml"), "{said}");
    assert!(!data_dir.exists(), "nothing was begun");

    let said = refusal(serve_on(Path::new("/proc/none"), &[]));
    assert!(said.contains("/proc/none cannot be used (--data-dir)"), "{said}");

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut command = controller(&["serve", "--listen", &address, "--data-dir"]);
    command.arg(&data_dir);
    let said = refusal(command);
    assert!(said.contains(&format!("cannot listen on {address} (--listen)")), "{said}");

    let running = Running::start(serve_on(&data_dir, &[]), directory.path());
    let said = refusal(serve_on(&data_dir, &[]));
    assert!(said.contains("in use by another process"), "{said}");
    running.end(Signal::SIGTERM);

    std::fs::write(data_dir.join("berth.db"), "x".repeat(5000)).unwrap();
    let said = refusal(serve_on(&data_dir, &[]));
    assert!(said.contains("damaged") && said.contains("left untouched"), "{said}");
}

#[test]
fn a_hundred_kills_during_the_first_start_leave_nothing_that_keeps_it_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..100_u64 {
        let data_dir = directory.path().join(format!("data-{}", round / 4));
        let mut child = serve_on(&data_dir, &[]).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(round * 397 % 20_000));
        child.kill().unwrap();
        let mut log = String::new();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        lines.map_while(Result::ok).for_each(|line| log += &line);
        child.wait().unwrap();
        assert!(!log.contains("berth-controller: "), "round {round}: {log}");
    }
    Running::start(serve_on(&directory.path().join("data-0"), &[]), directory.path()).end(Signal::SIGTERM);
}
