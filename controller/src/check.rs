//! `berth-controller check`: what is missing or wrong on this host, and how to mend it. The facts are gathered
//! first, and [`judge`] says what they mean. Nothing is changed.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use berth_service::check::{self, Clock, Directory, Finding};

use crate::config::Settings;
use crate::nodes::Range;
use crate::{control, pki};

/// A certificate that has less than this left has missed its renewal.
const SOON: i64 = 7 * 24 * 3600;

/// From when to when a certificate is good, in Unix seconds, or what is wrong with it.
type Validity = Result<(i64, i64), String>;

/// Everything that is looked at.
#[derive(Clone, Debug)]
struct Facts {
    /// What the settings were read from, or what is wrong with them.
    config: Result<String, String>,
    data_dir: Directory,
    /// A controller runs on this data directory.
    running: bool,
    user: u32,
    /// (flag, address, why it cannot be listened on).
    ports: Vec<(&'static str, SocketAddr, Option<String>)>,
    /// The pods' and the Services' range, or what is wrong with them; and addresses of this host outside of
    /// Berth's own devices that lie in one of them.
    ranges: Result<Vec<String>, String>,
    /// By file.
    certificates: Vec<(PathBuf, Validity)>,
    clock: Clock,
}

/// Looks at this host. `settings`: those in force, and where they are from or what is wrong with them.
pub fn findings(settings: &Settings, config: Result<String, String>) -> Vec<Finding> {
    judge(&gather(settings, config))
}

fn gather(settings: &Settings, config: Result<String, String>) -> Facts {
    let running = control::answers(&settings.data_dir);
    let port = |flag, address: SocketAddr| {
        let bound = TcpListener::bind(address).map(drop);
        (flag, address, bound.err().map(|error| error.to_string()))
    };
    Facts {
        config,
        data_dir: check::look_at_directory(&settings.data_dir),
        running,
        user: nix::unistd::geteuid().as_raw(),
        ports: match running {
            true => Vec::new(),
            false => vec![port("listen", settings.listen), port("agent-listen", settings.agent_listen)],
        },
        ranges: ranges(settings),
        certificates: certificates(&settings.data_dir),
        clock: check::look_at_clock(),
    }
}

fn ranges(settings: &Settings) -> Result<Vec<String>, String> {
    let pods = Range::cluster(&settings.pod_cidr).map_err(|e| format!("pod-cidr: {e}"))?;
    berth_controller_core::services::allocate::AddressRange::beside(
        &settings.service_cidr,
        &settings.pod_cidr,
    )
    .map_err(|e| format!("service-cidr: {e}"))?;
    // None: of IPv6.
    let services: Option<Range> = settings.service_cidr.parse().ok();
    let mut inside = Vec::new();
    for interface in nix::ifaddrs::getifaddrs().into_iter().flatten() {
        let name = interface.interface_name.as_str();
        // The agent's own, on a host that is both.
        if name.starts_with("berth") || name.starts_with("veth") {
            continue;
        }
        let address = interface.address.as_ref().and_then(|a| a.as_sockaddr_in()).map(|a| a.ip());
        if let Some(address) =
            address.filter(|a| pods.contains(*a) || services.is_some_and(|range| range.contains(*a)))
        {
            inside.push(format!("{address} of {name}"));
        }
    }
    Ok(inside)
}

fn certificates(data_dir: &Path) -> Vec<(PathBuf, Validity)> {
    let files = ["ca.pem", "server.pem", "admin.pem"].map(|name| data_dir.join("pki").join(name));
    let mut all = Vec::new();
    for path in files {
        match fs::read_to_string(&path) {
            Ok(text) => all.push((path, pki::validity_of(&text))),
            // Made at the first start.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => all.push((path, Err(error.to_string()))),
        }
    }
    all
}

/// What to know, and what to mend.
fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match &facts.config {
        Ok(from) => Finding::fine("settings", from.clone()),
        Err(why) => {
            Finding::wrong("settings", why.clone(), "correct them: `berth-controller serve --help` lists all")
        }
    });
    data_dir(facts, &mut found);
    if facts.running {
        found.push(Finding::fine("ports", "a controller runs here"));
    }
    for (flag, address, trouble) in &facts.ports {
        found.push(match trouble {
            None => Finding::fine("ports", format!("{address} is free ({flag})")),
            Some(why) => Finding::wrong(
                "ports",
                format!("{address}: {why}"),
                format!(
                    "stop what has it (`ss -ltnp` shows who), or choose another: {flag} = \"ADDRESS:PORT\""
                ),
            ),
        });
    }
    found.push(match &facts.ranges {
        Ok(inside) if inside.is_empty() => {
            Finding::fine("ranges", "pods and Services have addresses of their own")
        }
        Ok(inside) => Finding::wrong(
            "ranges",
            format!("{} would be mistaken for a pod's or a Service's address", inside.join(", ")),
            "choose ranges that nothing else uses: pod-cidr, service-cidr",
        ),
        Err(why) => Finding::wrong("ranges", why.clone(), "give a range such as 10.42.0.0/16"),
    });
    for (path, validity) in &facts.certificates {
        found.push(certificate(path, validity, facts.clock.now));
    }
    found.push(check::clock(&facts.clock));
    found
}

fn data_dir(facts: &Facts, found: &mut Vec<Finding>) {
    let path = facts.data_dir.path.display();
    let Some(there) = &facts.data_dir.there else {
        return found.push(Finding::fine("data-dir", format!("{path} is made at the first start")));
    };
    if there.mode & 0o077 != 0 {
        let says = format!("{path} (mode {:03o}): others may read the authority's key", there.mode);
        found.push(Finding::wrong("data-dir", says, format!("chmod 700 {path}")));
    }
    if facts.user != 0 && there.owner != facts.user {
        let says = format!("{path} belongs to user {}, and this is user {}", there.owner, facts.user);
        found.push(Finding::warning(
            "data-dir",
            says,
            "run this as the user the controller runs as, or as root",
        ));
    }
    if there.read_only {
        let says = format!("{path} is on a file system that is mounted read-only");
        found.push(Finding::wrong("data-dir", says, "mount it read-write (look for the cause in dmesg)"));
    }
    match there.file_system.as_str() {
        "tmpfs" | "ramfs" => {
            let says = format!("{path} is in memory: nothing would outlive a reboot");
            found.push(Finding::wrong("data-dir", says, "put it on a disk"));
        }
        remote @ ("nfs" | "nfs4" | "cifs" | "smb3" | "fuse.sshfs") => {
            let says = format!("{path} is on {remote}: a database there is not safe");
            found.push(Finding::wrong("data-dir", says, "put it on a disk of this host's own"));
        }
        _ => found.push(check::space("data-dir", &facts.data_dir.path, there.space)),
    }
}

fn certificate(path: &Path, validity: &Validity, now: i64) -> Finding {
    let what = "certificates";
    let name = path.display();
    match validity {
        Err(why) => Finding::wrong(
            what,
            format!("{name}: {why}"),
            "restore it from a backup: berth-controller restore",
        ),
        Ok((from, _)) if now < *from => {
            let remedy = "set the clock: certificates were made at a later time than it shows";
            Finding::wrong(what, format!("{name} is not good yet"), remedy)
        }
        Ok((_, to)) if now >= *to => {
            let remedy = "start the controller (again): it renews its own; the authority lasts 20 years";
            Finding::wrong(what, format!("{name} has run out"), remedy)
        }
        Ok((_, to)) if now + SOON > *to => {
            let days = (to - now) / (24 * 3600);
            let remedy = "look into the controller's log for why it was not renewed";
            Finding::warning(what, format!("{name} runs out in {days} days"), remedy)
        }
        Ok((_, to)) => Finding::fine(what, format!("{name} is good for {} days", (to - now) / (24 * 3600))),
    }
}

#[cfg(test)]
mod tests {
    use berth_service::check::{Level, Space, There};

    use super::*;

    const NOW: i64 = 1_800_000_000;
    const YEAR: i64 = 365 * 24 * 3600;

    fn well() -> Facts {
        Facts {
            config: Ok("/etc/berth/controller.toml".into()),
            data_dir: Directory {
                path: "/var/lib/berth-controller".into(),
                there: Some(There {
                    owner: 0,
                    mode: 0o700,
                    file_system: "ext4".into(),
                    read_only: false,
                    space: Space { free: 50 << 30, size: 100 << 30 },
                }),
            },
            running: false,
            user: 0,
            ports: vec![("listen", "0.0.0.0:6443".parse().unwrap(), None)],
            ranges: Ok(Vec::new()),
            certificates: vec![("pki/server.pem".into(), Ok((NOW - YEAR, NOW + YEAR)))],
            clock: Clock { now: NOW, synchronized: Some(true), ahead_of_controller: None },
        }
    }

    fn fault(change: impl FnOnce(&mut Facts)) -> (Level, String) {
        let mut facts = well();
        change(&mut facts);
        let mut faults: Vec<Finding> = judge(&facts).into_iter().filter(|f| f.level > Level::Fine).collect();
        assert_eq!(faults.len(), 1, "{faults:?}");
        let fault = faults.remove(0);
        assert!(!fault.remedy.is_empty(), "{fault:?}");
        (fault.level, fault.what)
    }

    #[test]
    fn a_host_with_everything_is_fine() {
        assert_eq!(judge(&well()).iter().map(|f| f.level).max(), Some(Level::Fine));
        let fresh = Facts { data_dir: Directory::default(), certificates: Vec::new(), ..well() };
        assert_eq!(judge(&fresh).iter().map(|f| f.level).max(), Some(Level::Fine));
    }

    #[test]
    fn each_thing_that_is_wrong_is_named_with_its_remedy() {
        let wrong = |what: &str| (Level::Wrong, what.to_owned());
        fn there(f: &mut Facts) -> &mut There {
            f.data_dir.there.as_mut().unwrap()
        }
        assert_eq!(fault(|f| f.config = Err("unknown field".into())), wrong("settings"));
        assert_eq!(fault(|f| there(f).mode = 0o750), wrong("data-dir"));
        assert_eq!(fault(|f| there(f).read_only = true), wrong("data-dir"));
        assert_eq!(fault(|f| there(f).file_system = "tmpfs".into()), wrong("data-dir"));
        assert_eq!(fault(|f| there(f).file_system = "nfs4".into()), wrong("data-dir"));
        assert_eq!(fault(|f| f.ports[0].2 = Some("Address in use".into())), wrong("ports"));
        assert_eq!(fault(|f| f.ranges = Ok(vec!["10.42.0.5 of eth0".into()])), wrong("ranges"));
        assert_eq!(fault(|f| f.ranges = Err("pod-cidr: no".into())), wrong("ranges"));
        assert_eq!(fault(|f| f.user = 1000), (Level::Warning, "data-dir".to_owned()));
    }

    #[test]
    fn certificates_are_told_before_they_run_out() {
        let level = |from, to| fault(|f| f.certificates[0].1 = Ok((from, to))).0;
        assert_eq!(level(NOW + 10, NOW + YEAR), Level::Wrong);
        assert_eq!(level(NOW - YEAR, NOW - 1), Level::Wrong);
        assert_eq!(level(NOW - YEAR, NOW + 24 * 3600), Level::Warning);
        assert_eq!(fault(|f| f.certificates[0].1 = Err("no key".into())).0, Level::Wrong);
    }
}
