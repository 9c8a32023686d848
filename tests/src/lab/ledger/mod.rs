//! Clients that keep a ledger of what was acknowledged, and compare it with what is there in the end.
//!
//! A Redis that syncs every append and a PostgreSQL, each a set of one with a claim on the NFS server, are written to
//! through their node ports, from outside the machines. Beside each database its pod notes its life on the volume: a
//! line at its start, one every second, one at its end. No clock is needed to read that: once a life has begun, no
//! other may write a line.

mod store;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use serde_json::json;

pub use self::store::{KINDS, Kind};
use super::{Lab, step};
use crate::wait;

/// After whatever happened to it, a database serves again within this time: it may have to be started on an emulated
/// machine, and containers that ended often wait long for their next start.
const SERVES: Duration = Duration::from_secs(600);
/// Between two writes: the machines have more to do.
const PACE: Duration = Duration::from_millis(50);

/// Databases that are written to all the time.
pub struct Ledger<'a> {
    lab: &'a Lab,
    stop: Arc<AtomicBool>,
    clerks: Vec<Clerk>,
}

/// Who writes to one of them.
struct Clerk {
    kind: &'static Kind,
    book: Arc<Mutex<Book>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Book {
    acknowledged: BTreeSet<u64>,
    last: Option<Instant>,
    longest: Duration,
    refused: u64,
    trouble: String,
}

impl<'a> Ledger<'a> {
    /// Starts the databases and those who write to them.
    pub fn start(lab: &'a Lab) -> Result<Ledger<'a>> {
        Ledger::start_on(lab, "/srv/berth")
    }

    /// As [`Ledger::start`], on a certain share of the NFS server.
    pub fn start_on(lab: &'a Lab, share: &str) -> Result<Ledger<'a>> {
        step("Redis and PostgreSQL are started, and written to from here on");
        let image = lab.publish_databases()?;
        let class = json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "ledger"},
            "provisioner": "nfs.csi.k8s.io", "parameters": {"server": "nfs", "share": share},
        });
        lab.kubectl.apply(&class.to_string())?;
        for kind in KINDS {
            lab.kubectl.apply(&kind.manifest(&image))?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let clerks = KINDS.iter().map(|kind| Clerk::hire(lab, kind, &stop)).collect::<Result<_>>()?;
        let ledger = Ledger { lab, stop, clerks };
        ledger.goes_on()?;
        Ok(ledger)
    }

    /// Waits until each database has acknowledged more than so far.
    pub fn goes_on(&self) -> Result<()> {
        for clerk in &self.clerks {
            clerk.goes_on()?;
        }
        Ok(())
    }

    /// As [`Ledger::goes_on`], for one of them.
    pub fn one_goes_on(&self, name: &str) -> Result<()> {
        self.clerks.iter().filter(|clerk| clerk.kind.name == name).try_for_each(Clerk::goes_on)
    }

    /// Waits until one of them has refused a write, or ended over it.
    pub fn is_refused(&self, name: &str) -> Result<()> {
        for clerk in self.clerks.iter().filter(|clerk| clerk.kind.name == name) {
            let before = clerk.book().refused;
            wait::until_true(&format!("{name} to refuse"), SERVES, || Ok(clerk.book().refused > before))?;
            println!("{name}: {}", clerk.book().trouble);
        }
        Ok(())
    }

    /// That nothing acknowledged is lost, and that never two instances of a pod wrote.
    pub fn verdict(mut self) -> Result<()> {
        self.goes_on()?;
        self.stop.store(true, Ordering::Relaxed);
        for clerk in &mut self.clerks {
            if let Some(thread) = clerk.thread.take() {
                thread.join().map_err(|_| anyhow!("who writes to {} panicked", clerk.kind.name))?;
            }
        }
        let mut faults = Vec::new();
        for clerk in &self.clerks {
            let name = clerk.kind.name;
            let book = clerk.book();
            let there = clerk.read(self.lab)?;
            let lost: Vec<&u64> = book.acknowledged.difference(&there).collect();
            let notes = self.lab.exec(&format!("{name}-0"), "cat /data/lives")?;
            let lives = lives(&notes);
            println!(
                "{name}: {} acknowledged, {} lost; longest silence {:.0?}; {} lives, {} overlaps",
                book.acknowledged.len(),
                lost.len(),
                book.longest,
                lives.count,
                lives.overlaps.len()
            );
            if !lost.is_empty() {
                faults.push(format!("{name} lost {lost:?}"));
            }
            if !lives.overlaps.is_empty() {
                faults.push(format!("{name}: two at a time: {:?}\n{notes}", lives.overlaps));
            }
        }
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(())
    }
}

impl Drop for Ledger<'_> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Clerk {
    fn hire(lab: &Lab, kind: &'static Kind, stop: &Arc<AtomicBool>) -> Result<Clerk> {
        let doors = doors(lab, kind)?;
        let book = Arc::new(Mutex::new(Book::default()));
        let (stop, notes) = (stop.clone(), book.clone());
        let thread = std::thread::spawn(move || {
            let mut session = None;
            for number in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let open = session.take().map_or_else(|| kind.open(&doors), Ok);
                let written = open.and_then(|mut open| open.write(number).map(|()| open));
                let mut book = notes.lock().unwrap_or_else(PoisonError::into_inner);
                match written {
                    Ok(open) => {
                        session = Some(open);
                        book.acknowledged.insert(number);
                        let silence =
                            book.last.replace(Instant::now()).map_or(Duration::ZERO, |t| t.elapsed());
                        book.longest = book.longest.max(silence);
                    }
                    Err(error) => {
                        book.refused += 1;
                        book.trouble = format!("{error:#}");
                    }
                }
                drop(book);
                std::thread::sleep(PACE);
            }
        });
        Ok(Clerk { kind, book, thread: Some(thread) })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn goes_on(&self) -> Result<()> {
        let before = self.book().acknowledged.len();
        wait::until_true(&format!("{} to acknowledge more", self.kind.name), SERVES, || {
            Ok(self.book().acknowledged.len() >= before + 5)
        })
        .map_err(|error| anyhow!("{error}; it says: {}", self.book().trouble))
    }

    /// All numbers that are in the database.
    fn read(&self, lab: &Lab) -> Result<BTreeSet<u64>> {
        let doors = doors(lab, self.kind)?;
        wait::until(&format!("the numbers in {}", self.kind.name), SERVES, || {
            Ok(self.kind.open(&doors).and_then(|mut open| open.read()).ok())
        })
    }
}

/// Where a database is reached: at any host.
fn doors(lab: &Lab, kind: &Kind) -> Result<Vec<SocketAddr>> {
    lab.nodes().iter().map(|node| Ok(format!("{}:{}", node.address(), kind.node_port).parse()?)).collect()
}

/// What a pod's lives have noted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Lives {
    count: usize,
    /// Lines of a life that came after the next had begun.
    overlaps: Vec<String>,
}

/// Lines `start LIFE`, `beat LIFE`, `end LIFE`; of a line that a full disk has cut short, the last word counts.
fn lives(notes: &str) -> Lives {
    let mut lives = Lives::default();
    let mut now = "";
    for line in notes.lines() {
        let Some((what, life)) = line.rsplit_once(' ') else { continue };
        if what.ends_with("start") {
            lives.count += 1;
            now = life;
        } else if life != now && life.len() == now.len() {
            lives.overlaps.push(line.to_owned());
        }
    }
    lives
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_life_that_writes_after_the_next_has_begun_overlaps() {
        let killed = "start a\nbeat a\nstart b\nbeat b\nend b\nstart c\n";
        assert_eq!(lives(killed), Lives { count: 3, overlaps: vec![] });
        let two = "start a\nbeat a\nstart b\nbeat a\nbeat b\n";
        assert_eq!(lives(two), Lives { count: 2, overlaps: vec!["beat a".into()] });
        let cut_short = "start aa\nbebeat aa\nbeat astart bb\nbeat bb\n";
        assert_eq!(lives(cut_short), Lives { count: 2, overlaps: vec![] });
    }
}
