//! What a daemon's `check` says of its host: a line for each finding, and how to mend what is wrong.

use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Fine,
    /// Something that may be wanted will not work.
    Warning,
    /// The daemon cannot do its work.
    Wrong,
}

/// Something that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub level: Level,
    /// What it is about, in a word or two.
    pub what: String,
    /// How it is.
    pub says: String,
    /// What to do about it; empty where there is nothing to do.
    pub remedy: String,
}

impl Finding {
    pub fn fine(what: impl Into<String>, says: impl Into<String>) -> Finding {
        Finding { level: Level::Fine, what: what.into(), says: says.into(), remedy: String::new() }
    }

    pub fn warning(what: impl Into<String>, says: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Warning, what: what.into(), says: says.into(), remedy: remedy.into() }
    }

    pub fn wrong(what: impl Into<String>, says: impl Into<String>, remedy: impl Into<String>) -> Finding {
        Finding { level: Level::Wrong, what: what.into(), says: says.into(), remedy: remedy.into() }
    }
}

/// Prints them, the worst last; whether nothing is wrong.
pub fn tell(mut findings: Vec<Finding>, out: &mut impl Write) -> io::Result<bool> {
    findings.sort_by_key(|finding| finding.level);
    let count = |level: Level| findings.iter().filter(|finding| finding.level == level).count();
    for finding in &findings {
        let mark = match finding.level {
            Level::Fine => "ok     ",
            Level::Warning => "warning",
            Level::Wrong => "WRONG  ",
        };
        writeln!(out, "{mark}  {}: {}", finding.what, finding.says)?;
        if !finding.remedy.is_empty() {
            writeln!(out, "         -> {}", finding.remedy)?;
        }
    }
    let (wrong, warnings) = (count(Level::Wrong), count(Level::Warning));
    match (wrong, warnings) {
        (0, 0) => writeln!(out, "all is well")?,
        _ => writeln!(out, "{wrong} wrong, {warnings} to know of")?,
    }
    Ok(wrong == 0)
}

/// What is known of the clock.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// Unix time, seconds.
    pub now: i64,
    /// Whether it follows a time server; None: nobody can tell.
    pub synchronized: Option<bool>,
    /// By so many seconds, the controller's clock is behind this one; None: this is the controller, or it cannot be asked.
    pub ahead_of_controller: Option<i64>,
}

/// Seconds that clocks of two machines may be apart: what is written with both cannot be told apart any more.
const APART: u64 = 5;
/// Seconds. The authority's certificates count from a day before they were made.
const FAR_APART: u64 = 24 * 3600;

/// Certificates, and the order of things that happened on two machines, rest on the clock.
pub fn clock(clock: &Clock) -> Finding {
    /// A clock before this has never been set: it is when this was written.
    const WRITTEN: i64 = 1_790_000_000;
    let remedy = "have it follow a time server: apt-get install systemd-timesyncd (or chrony)";
    if clock.now < WRITTEN {
        return Finding::wrong("clock", "it is years behind", remedy);
    }
    if let Some(ahead) = clock.ahead_of_controller.filter(|ahead| ahead.unsigned_abs() > APART) {
        let way = if ahead > 0 { "ahead of" } else { "behind" };
        let seconds = ahead.unsigned_abs();
        let says = format!("it is {seconds} seconds {way} the controller's");
        let remedy = "have both follow a time server: apt-get install systemd-timesyncd (or chrony)";
        return match seconds > FAR_APART {
            true => Finding::wrong("clock", says, remedy),
            false => Finding::warning("clock", says, remedy),
        };
    }
    let agrees = if clock.ahead_of_controller.is_some() { ", and agrees with the controller's" } else { "" };
    match clock.synchronized {
        Some(false) => Finding::warning("clock", format!("it follows no time server{agrees}"), remedy),
        Some(true) => Finding::fine("clock", format!("follows a time server{agrees}")),
        None => {
            let says = format!("is set{agrees} (nothing here tells whether it follows a time server)");
            Finding::fine("clock", says)
        }
    }
}

/// Looks at the clock. Blocks for a moment.
pub fn look_at_clock() -> Clock {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let told = std::process::Command::new("timedatectl")
        .args(["show", "--property=NTPSynchronized", "--value"])
        .stderr(std::process::Stdio::null())
        .output();
    let synchronized = match told.map(|out| String::from_utf8_lossy(&out.stdout).trim().to_owned()) {
        Ok(text) if text == "yes" => Some(true),
        Ok(text) if text == "no" => Some(false),
        _ => None,
    };
    let now = now.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
    Clock { now, synchronized, ahead_of_controller: None }
}

/// Free and whole size, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    pub size: u64,
}

/// A disk with less left than this, or than a twentieth, will be full soon.
const SCARCE: u64 = 512 << 20;

/// Whether there is room below a directory.
pub fn space(what: &str, path: &Path, space: Space) -> Finding {
    let mib = |bytes: u64| bytes >> 20;
    let says = format!("{} has {} MiB of {} MiB left", path.display(), mib(space.free), mib(space.size));
    if space.size > 0 && (space.free < SCARCE || space.free < space.size / 20) {
        Finding::warning(what, says, "make room, or put the directory on a bigger disk")
    } else {
        Finding::fine(what, says)
    }
}

/// A directory of the daemon's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    pub path: PathBuf,
    /// None: it is not there yet.
    pub there: Option<There>,
}

/// A directory that is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct There {
    pub owner: u32,
    /// Permission bits.
    pub mode: u32,
    /// tmpfs, nfs4, ext4...; empty: unknown.
    pub file_system: String,
    pub read_only: bool,
    pub space: Space,
}

/// Looks at a directory.
pub fn look_at_directory(path: &Path) -> Directory {
    let there = std::fs::metadata(path).ok().filter(|metadata| metadata.is_dir()).map(|metadata| {
        let (file_system, read_only) = mount_of(path);
        let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
        There { owner, mode, file_system, read_only, space: space_of(path) }
    });
    Directory { path: path.to_owned(), there }
}

fn space_of(path: &Path) -> Space {
    nix::sys::statvfs::statvfs(path).map_or(Space::default(), |stat| {
        let unit = stat.fragment_size();
        Space { free: stat.blocks_available().saturating_mul(unit), size: stat.blocks().saturating_mul(unit) }
    })
}

/// The type of the file system a directory is on, and whether that is read-only.
fn mount_of(path: &Path) -> (String, bool) {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut best = (0, String::new(), false);
    for line in text.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut left = left.split(' ').skip(4);
        let (Some(point), Some(options)) = (left.next(), left.next()) else { continue };
        let kind = right.split(' ').next().unwrap_or_default();
        // The last of several on one place is the one that is seen.
        if path.starts_with(point) && point.len() >= best.0 {
            best = (point.len(), kind.to_owned(), options.split(',').any(|option| option == "ro"));
        }
    }
    (best.1, best.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_comes_last_with_its_remedy_and_decides() {
        let findings = vec![
            Finding::wrong("cgroups", "none are mounted", "mount them"),
            Finding::fine("clock", "follows a time server"),
            Finding::warning("NFS", "no client", "apt-get install nfs-common"),
        ];
        let mut out = Vec::new();
        assert!(!tell(findings.clone(), &mut out).unwrap());
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "ok       clock: follows a time server");
        assert_eq!(lines[3], "WRONG    cgroups: none are mounted");
        assert_eq!(lines[4], "         -> mount them");
        assert_eq!(lines[5], "1 wrong, 1 to know of");
        assert!(tell(findings[1..].to_vec(), &mut Vec::new()).unwrap(), "a warning is no failure");
    }

    #[test]
    fn a_clock_that_nobody_sets_is_told() {
        let level =
            |now, synchronized| clock(&Clock { now, synchronized, ahead_of_controller: Some(1) }).level;
        assert_eq!(level(0, Some(true)), Level::Wrong);
        assert_eq!(level(1_800_000_000, Some(false)), Level::Warning);
        assert_eq!(level(1_800_000_000, Some(true)), Level::Fine);
        assert_eq!(level(1_800_000_000, None), Level::Fine);
    }

    #[test]
    fn clocks_that_do_not_agree_are_told() {
        let found = |ahead| {
            let clock =
                Clock { now: 1_800_000_000, synchronized: Some(true), ahead_of_controller: Some(ahead) };
            super::clock(&clock)
        };
        assert_eq!(found(-2).level, Level::Fine);
        let (ahead, behind) = (found(3600), found(-100_000));
        assert_eq!((ahead.level, behind.level), (Level::Warning, Level::Wrong));
        assert_eq!(ahead.says, "it is 3600 seconds ahead of the controller's");
        assert_eq!(behind.says, "it is 100000 seconds behind the controller's");
        assert!(ahead.remedy.contains("time server"));
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told() {
        let level = |free, size| space("data", "/x".as_ref(), Space { free, size }).level;
        assert_eq!(level(10 << 30, 100 << 30), Level::Fine);
        assert_eq!(level(4 << 30, 100 << 30), Level::Warning);
        assert_eq!(level(400 << 20, 1 << 30), Level::Warning);
    }
}
