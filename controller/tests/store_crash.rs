//! The store under violence: killed in a loop under concurrent writers, and with a disk that fills up.
//!
//! This test binary starts itself again as the process to kill: the test `child` is that process, and does
//! nothing unless told to by the environment.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use berth_controller::store::{CommitError, EventKind, Key, Scope, Store, Transaction};
use serde_json::{Value, json};

const ROLE: &str = "BERTH_STORE_TEST_ROLE";
const DATABASE: &str = "BERTH_STORE_TEST_DATABASE";

const KILLS: u64 = 25;
const WRITERS: u64 = 8;
const NAMES: u64 = 12;

fn key(name: impl Into<String>) -> Key {
    Key::new("pods", "default", name)
}

fn body(n: u64) -> Value {
    json!({"kind": "Pod", "metadata": {"name": "x"}, "n": n, "padding": "p".repeat((n % 97 * 31) as usize)})
}

#[test]
fn child() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let path = PathBuf::from(std::env::var(DATABASE).unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    match role.as_str() {
        "writers" => runtime.block_on(write_until_killed(&path)),
        "full" => runtime.block_on(write_until_full(&path)),
        other => panic!("no role {other}"),
    }
}

/// One line in one write: what was printed before the kill is whole, but for the last.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn write_until_killed(path: &Path) {
    let store = Store::open(path).unwrap();
    let start = store.revision();
    say(&format!("@start {start}"));
    let mut watch = store.watch(&Scope::all("pods"), start).unwrap();
    for writer in 0..WRITERS {
        let store = store.clone();
        tokio::spawn(async move {
            for n in start.. {
                write_once(&store, writer, n).await;
            }
        });
    }
    loop {
        for event in watch.next().await.unwrap().events {
            let gone = event.kind == EventKind::Deleted;
            say(&format!("@event {} {} {}", event.revision, event.object.key.name, u8::from(gone)));
        }
    }
}

async fn write_once(store: &Store, writer: u64, n: u64) {
    let name = format!("w{writer}-{}", n % NAMES);
    if n % 5 == 4 {
        // All writers count on one object: none of the answered counts may be lost.
        let found = store.get(&key("count"));
        let count = found.as_ref().map_or(0, |o| o.value()["n"].as_u64().unwrap());
        let change = Transaction::new().put(key("count"), body(count + 1));
        let change = match found {
            Some(object) => change.unchanged(key("count"), object.revision),
            None => change.absent(key("count")),
        };
        match store.commit(change).await {
            Ok(revision) => say(&format!("@done {revision} count {}", count + 1)),
            Err(CommitError::Conflict { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    } else if n % 7 == 6 && store.get(&key(&name)).is_some() {
        let revision = store.commit(Transaction::new().delete(key(&name))).await.unwrap();
        say(&format!("@done {revision} {name} -"));
    } else {
        let revision = store.commit(Transaction::new().put(key(&name), body(n))).await.unwrap();
        say(&format!("@done {revision} {name} {n}"));
    }
}

/// What a killed child had said.
#[derive(Default)]
struct Said {
    start: u64,
    /// revision -> name, content (None: deleted); each was answered.
    done: BTreeMap<u64, (String, Option<u64>)>,
    /// revision, name, deleted; in the order seen.
    events: Vec<(u64, String, bool)>,
}

fn run_and_kill(path: &Path, after: Duration) -> Said {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(ROLE, "writers")
        .env(DATABASE, path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let (first, started) = std::sync::mpsc::channel();
    let collector = std::thread::spawn(move || {
        let (mut said, mut line) = (Vec::new(), Vec::new());
        loop {
            line.clear();
            match lines.read_until(b'\n', &mut line) {
                Ok(n) if n > 0 && line.ends_with(b"\n") => {
                    let text = String::from_utf8(line.clone()).unwrap();
                    if text.contains("@done") {
                        // Nobody listens after the first.
                        let _ = first.send(());
                    }
                    said.push(text);
                }
                _ => return said,
            }
        }
    });
    started.recv_timeout(Duration::from_secs(60)).expect("the child writes");
    std::thread::sleep(after);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert!(!status.success(), "it was killed, and had not ended by itself");
    let mut said = Said::default();
    for line in collector.join().unwrap() {
        // The test harness's own words may stand before the first.
        let Some(at) = line.find('@') else { continue };
        let words: Vec<&str> = line[at..].split_whitespace().collect();
        let number = |i: usize| words[i].parse::<u64>().unwrap();
        match words[0] {
            "@start" => said.start = number(1),
            "@done" => {
                let content = (words[3] != "-").then(|| number(3));
                let twice = said.done.insert(number(1), (words[2].to_owned(), content));
                assert_eq!(twice, None, "a revision is one transaction's");
            }
            "@event" => said.events.push((number(1), words[2].to_owned(), words[3] == "1")),
            other => panic!("unexpected: {other}"),
        }
    }
    said
}

#[test]
fn killing_it_under_concurrent_writers_loses_nothing_that_was_answered() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("berth.db");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let (mut revision, mut counted, mut answered) = (0, 0, 0);
    // name -> revision and content of the newest answered write.
    let mut newest: HashMap<String, (u64, Option<u64>)> = HashMap::new();
    for round in 0..KILLS {
        let said = run_and_kill(&path, Duration::from_millis(1 + round * 53 % 211));
        answered += said.done.len();
        assert!(said.start >= revision, "the revision never goes back");
        for (n, (done, (name, content))) in said.done.iter().enumerate() {
            assert!(*done > said.start, "answer {n} is of this life");
            newest.insert(name.clone(), (*done, *content));
            if name == "count" {
                counted += 1;
            }
        }
        // Every transaction is one event here: seen in order, none left out, each what was answered.
        for (n, (seen, name, gone)) in said.events.iter().enumerate() {
            assert_eq!(*seen, said.start + 1 + n as u64, "watch order");
            if let Some((done, content)) = said.done.get(seen) {
                assert_eq!((done, content.is_none()), (name, *gone));
            }
        }

        let store = Store::open(&path).unwrap();
        let last = said.done.keys().last().copied().unwrap_or(said.start);
        let shown = said.events.last().map_or(said.start, |e| e.0);
        assert!(store.revision() >= last.max(shown), "nothing answered or shown is gone");
        revision = store.revision();
        let mut in_flight: HashMap<String, u64> = HashMap::new();
        for (name, (at, content)) in &newest {
            let found = store.get(&key(name)).map(|o| (o.revision, o.value()));
            let same = match (&found, content) {
                (Some((r, value)), Some(n)) => r == at && value["n"] == *n && *value == stamped(*n, *at),
                (None, None) => true,
                _ => false,
            };
            // A writer has at most one write that was carried out and whose answer the kill cut off.
            if !same && name != "count" {
                assert!(found.as_ref().is_none_or(|(r, _)| r > at), "{name} went back: {found:?}, {at}");
                *in_flight.entry(name.split('-').next().unwrap().to_owned()).or_default() += 1;
            }
        }
        assert!(in_flight.values().all(|n| *n == 1), "{in_flight:?}");
        let count = store.get(&key("count")).map_or(0, |o| o.value()["n"].as_u64().unwrap());
        assert!((counted..=counted + WRITERS).contains(&count), "{count} counted, {counted} answered");
        counted = count;
        // What was carried out but not answered is what later rounds start from.
        newest.retain(|name, _| name != "count");
        let present = store.list(&Scope::all("pods")).objects;
        for (name, state) in &mut newest {
            let found = present.iter().find(|o| o.key.name == *name);
            *state = found.map_or((revision, None), |o| (o.revision, o.value()["n"].as_u64()));
        }
        runtime.block_on(store.close());
    }
    eprintln!(
        "{KILLS} kills in {:?}, {answered} answers, revision {revision}, {counted} counted",
        begun.elapsed()
    );
    assert!(answered as u64 > KILLS * WRITERS, "it wrote enough to mean something: {answered}");
}

fn stamped(n: u64, revision: u64) -> Value {
    let mut value = body(n);
    value["metadata"]["resourceVersion"] = revision.to_string().into();
    value
}

#[test]
fn a_full_disk_refuses_writes_shows_what_is_on_disk_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    // A file that may not grow is a disk that is full; `ulimit` counts in 512 bytes (1 KiB in bash).
    let output = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -S -f 600; exec \"$0\" --exact child --nocapture"])
        .arg(std::env::current_exe().unwrap())
        .env(ROLE, "full")
        .env(DATABASE, directory.path().join("berth.db"))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("@recovered"), "{said}\n{complained}");
}

async fn write_until_full(path: &Path) {
    let store = Store::open(path).unwrap();
    let mut kept = BTreeMap::new();
    let mut refused = 0;
    for n in 0_u64.. {
        let name = format!("n{n}");
        let value = json!({"metadata": {}, "text": "x".repeat(4000)});
        match store.commit(Transaction::new().put(key(&name), value)).await {
            Ok(revision) => {
                kept.insert(name, revision);
                refused = 0;
            }
            Err(CommitError::Unavailable(_)) => {
                refused += 1;
                assert!(store.get(&key(&name)).is_none(), "what was refused is not shown");
                assert_eq!(Some(&store.revision()), kept.values().max());
            }
            Err(e) => panic!("{e}"),
        }
        assert!(n < 10_000, "it never filled");
        if refused == 5 {
            break;
        }
    }
    assert_eq!(store.list(&Scope::all("pods")).objects.len(), kept.len());
    let me = format!("--pid={}", std::process::id());
    assert!(Command::new("prlimit").args([&me, "--fsize=unlimited:"]).status().unwrap().success());
    let revision = store.commit(Transaction::new().put(key("after"), body(1))).await.unwrap();
    assert_eq!(revision, kept.values().max().unwrap() + 1, "refused writes used up no revision");
    kept.insert("after".to_owned(), revision);
    store.close().await;
    let again = Store::open(path).unwrap();
    let found: BTreeMap<String, u64> =
        again.list(&Scope::all("pods")).objects.iter().map(|o| (o.key.name.clone(), o.revision)).collect();
    assert_eq!(found, kept);
    say("@recovered");
}
