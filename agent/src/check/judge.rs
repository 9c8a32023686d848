//! What the facts of a host mean for an agent on it.

use std::path::PathBuf;

use berth_service::check::{self, Clock, Directory, Finding};

/// Whether the kernel can do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Feature {
    /// Now, or as soon as it is asked for.
    Present,
    Absent,
    /// Nothing here tells.
    #[default]
    Unknown,
}

/// The controllers of the cgroups that are mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupFacts {
    /// Of version 2; None: it is not mounted.
    pub unified: Option<Vec<String>>,
    /// Of version 1.
    pub legacy: Vec<String>,
}

/// Whether this host may talk to its controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Joined {
    /// With a certificate; and what comes of a connection.
    Yes(Result<(), String>),
    /// Not yet, and there is a token; and whether the controller's port answers.
    Token(Result<(), String>),
    /// Not yet, and the reason it cannot.
    No(String),
}

/// Everything that is looked at.
#[derive(Clone, Debug)]
pub struct Facts {
    /// What the settings were read from, or what is wrong with them.
    pub config: Result<String, String>,
    pub root: bool,
    pub kernel: String,
    /// (name, what needs it, whether it must be there).
    pub features: Vec<(&'static str, &'static str, bool, Feature)>,
    pub cgroups: CgroupFacts,
    /// containerd's version, or why it does not answer; and its socket.
    pub containerd: (PathBuf, Result<String, String>),
    /// What `runc --version` says; None: it is not in PATH.
    pub runc: Option<String>,
    /// Where CNI plugins are looked for, and which of those that are needed are not there.
    pub cni: (Vec<PathBuf>, Vec<&'static str>),
    /// A CNI configuration of the operator's.
    pub cni_config: Option<PathBuf>,
    /// What `nft list chains` answers.
    pub nft: Result<String, String>,
    /// What mounts shares, and whether it is there.
    pub nfs_helper: (PathBuf, bool),
    pub log_writer: Result<PathBuf, String>,
    pub data_dir: Directory,
    pub run_dir: Directory,
    /// An agent runs on these directories.
    pub running: bool,
    /// Ports that the agent needs and somebody else has.
    pub taken: Vec<String>,
    pub joined: Joined,
    pub clock: Clock,
}

/// What to know, and what to mend.
pub fn judge(facts: &Facts) -> Vec<Finding> {
    let mut found = Vec::new();
    found.push(match &facts.config {
        Ok(from) => Finding::fine("settings", from.clone()),
        Err(why) => {
            Finding::wrong("settings", why.clone(), "correct them: `berth-agent run --help` lists all")
        }
    });
    if !facts.root {
        let remedy = "run this, and the agent, as root";
        found.push(Finding::wrong("user", "not root: mounts and namespaces need it", remedy));
    }
    kernel(facts, &mut found);
    found.push(cgroups(&facts.cgroups));
    programs(facts, &mut found);
    directories(facts, &mut found);
    found.push(match (facts.running, &facts.taken[..]) {
        (true, _) => Finding::fine("ports", "an agent runs here"),
        (false, []) => Finding::fine("ports", "what the agent needs is free"),
        (false, taken) => {
            let remedy = "stop what has them, or have it listen on addresses of its own: the agent answers pods' \
                          names on 169.254.53.53, port 53, and tunnels to other segments through UDP 4789";
            Finding::wrong("ports", format!("taken: {}", taken.join(", ")), remedy)
        }
    });
    let controller = match &facts.joined {
        Joined::Yes(Ok(())) => Finding::fine("controller", "it answers, and knows this host"),
        Joined::Token(Ok(())) => {
            Finding::fine("controller", "its port answers; this host joins at its start")
        }
        Joined::Yes(Err(why)) | Joined::Token(Err(why)) => Finding::warning(
            "controller",
            why.clone(),
            "start it, and let this host reach it (pods that run go on without it); if it is about a certificate that is \
             not valid yet or not any more, compare the clocks",
        ),
        Joined::No(why) => Finding::wrong(
            "controller",
            why.clone(),
            "`berth-controller token create --node NAME` where the controller runs; give its file as token-file",
        ),
    };
    // Which controller, is one of the settings.
    found.extend(facts.config.is_ok().then_some(controller));
    found.push(check::clock(&facts.clock));
    found
}

fn kernel(facts: &Facts, found: &mut Vec<Finding>) {
    let mut version = facts.kernel.split(['.', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (version.next().unwrap_or(0), version.next().unwrap_or(0));
    // Debian 11's: the oldest with all that is used here, cgroup.kill (5.14) apart.
    if version < (5, 10) {
        let says = format!("Linux {} is older than 5.10", facts.kernel);
        found.push(Finding::wrong("kernel", says, "upgrade the kernel"));
    } else {
        found.push(Finding::fine("kernel", format!("Linux {}", facts.kernel)));
    }
    for (name, needed_for, must, feature) in &facts.features {
        if *feature == Feature::Absent {
            let says = format!("the kernel has no {name}: {needed_for}");
            let remedy = format!("boot a kernel with {name}, or install its modules");
            found.push(match must {
                true => Finding::wrong("kernel", says, remedy),
                false => Finding::warning("kernel", says, remedy),
            });
        }
    }
}

fn cgroups(facts: &CgroupFacts) -> Finding {
    const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
    let missing = |there: &[String]| -> Vec<&str> {
        NEEDED.into_iter().filter(|needed| !there.iter().any(|name| name == needed)).collect()
    };
    let unified = facts.unified.as_deref().unwrap_or_default();
    if facts.unified.is_some() && missing(unified).is_empty() {
        return Finding::fine("cgroups", "version 2");
    }
    if missing(&facts.legacy).is_empty() {
        return Finding::fine("cgroups", "version 1 (version 2 tells sooner that a pod has ended)");
    }
    let remedy = "boot with systemd.unified_cgroup_hierarchy=1 (on boards that leave memory out, also with \
                  cgroup_enable=memory), or mount cgroup2 on /sys/fs/cgroup";
    if facts.unified.is_none() && facts.legacy.is_empty() {
        return Finding::wrong("cgroups", "none are mounted", remedy);
    }
    let there: Vec<String> = unified.iter().chain(&facts.legacy).cloned().collect();
    match missing(&there)[..] {
        [] => Finding::fine("cgroups", "versions 1 and 2, mixed"),
        ref missing => {
            let says = format!("without {}: limits of pods would not hold", missing.join(", "));
            Finding::wrong("cgroups", says, remedy)
        }
    }
}

fn programs(facts: &Facts, found: &mut Vec<Finding>) {
    let (socket, answer) = &facts.containerd;
    found.push(match answer {
        Ok(version) => {
            let digits = version.trim_start_matches('v');
            let mut numbers = digits.split(['.', '~', '+', '-']).map(|part| part.parse::<u32>().unwrap_or(0));
            let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
            if number < (1, 6) {
                let says = format!("{version} is older than 1.6");
                Finding::wrong("containerd", says, "upgrade it: apt-get install containerd")
            } else {
                Finding::fine("containerd", format!("{version}, on {}", socket.display()))
            }
        }
        Err(why) => Finding::wrong(
            "containerd",
            format!("does not answer on {}: {why}", socket.display()),
            "apt-get install containerd; systemctl enable --now containerd (or name its socket: containerd = ...)",
        ),
    });
    found.push(match &facts.runc {
        Some(version) => Finding::fine("runc", version.clone()),
        None => Finding::wrong("runc", "is not in PATH", "apt-get install runc"),
    });
    let (dirs, missing) = &facts.cni;
    let places: Vec<String> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    found.push(match (&facts.cni_config, &missing[..]) {
        (Some(own), _) => {
            Finding::fine("CNI", format!("{} is used instead of the agent's own", own.display()))
        }
        (None, []) => Finding::fine("CNI", "ptp and static are there"),
        (None, missing) => {
            let says = format!("no {} in {}", missing.join(" and no "), places.join(", "));
            let remedy =
                "apt-get install containernetworking-plugins (or name the place: cni-bin-dir = [...])";
            Finding::wrong("CNI", says, remedy)
        }
    });
    match &facts.nft {
        Ok(chains) => {
            found.push(Finding::fine("nftables", "nft works"));
            found.extend(dropping(chains).map(|chain| {
                Finding::warning(
                    "firewall",
                    format!(
                        "{chain} drops what it does not accept: pods may not reach those of other hosts, nor node ports"
                    ),
                    "have it accept what is forwarded from and to the pods' ranges (pod-cidr of the controller); with Docker \
                     that is for its chain DOCKER-USER",
                )
            }));
        }
        Err(why) => found.push(Finding::wrong(
            "nftables",
            format!("{why}: no Service would be reached"),
            "apt-get install nftables, and a kernel with nf_tables",
        )),
    }
    let (helper, there) = &facts.nfs_helper;
    let helper = helper.display();
    found.push(match there {
        true => Finding::fine("NFS client", format!("{helper} is there")),
        false => Finding::warning(
            "NFS client",
            format!("there is no {helper}: pods with volumes on NFS cannot run here"),
            "apt-get install nfs-common (or name what mounts: nfs-mount-helper = ...)",
        ),
    });
    found.push(match &facts.log_writer {
        Ok(path) => Finding::fine("log writer", path.display().to_string()),
        Err(why) => Finding::wrong(
            "log writer",
            why.clone(),
            "put berth-log-writer beside berth-agent, or name it: log-writer = ...",
        ),
    });
}

/// The chains of others that drop forwarded packets unless one of their rules accepts them, of what `nft list chains`
/// shows. An `accept` of the agent's does not overrule them.
fn dropping(chains: &str) -> impl Iterator<Item = String> {
    let (mut table, mut chain) = ("", "");
    chains.lines().filter_map(move |line| {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("table ").and_then(|rest| rest.strip_suffix(" {")) {
            table = name;
        } else if let Some(name) = line.strip_prefix("chain ").and_then(|rest| rest.strip_suffix(" {")) {
            chain = name;
        } else if line.contains(" hook forward ") && line.contains("policy drop") && table != "inet berth" {
            return Some(format!("chain {chain} of table {table}"));
        }
        None
    })
}

fn directories(facts: &Facts, found: &mut Vec<Finding>) {
    for (name, directory) in [("data-dir", &facts.data_dir), ("run-dir", &facts.run_dir)] {
        let path = directory.path.display();
        let Some(there) = &directory.there else {
            found.push(Finding::fine(name, format!("{path} is made at the start")));
            continue;
        };
        if there.owner != 0 || there.mode & 0o022 != 0 {
            let says =
                format!("{path} (owner {}, mode {:03o}): others may write there", there.owner, there.mode);
            let remedy = format!("chown root: {path} && chmod go-w {path}");
            found.push(Finding::wrong(name, says, remedy));
        }
        if there.read_only {
            let says = format!("{path} is on a file system that is mounted read-only");
            found.push(Finding::wrong(name, says, "mount it read-write (look for the cause in dmesg)"));
        }
        let memory = matches!(there.file_system.as_str(), "tmpfs" | "ramfs");
        match (name, memory) {
            ("data-dir", true) => found.push(Finding::wrong(
                name,
                format!("{path} is in memory: volumes and the host's certificate would not outlive a reboot"),
                "put it on a disk",
            )),
            ("run-dir", false) if !there.file_system.is_empty() => found.push(Finding::warning(
                name,
                format!(
                    "{path} is on a disk ({}): namespaces of before a reboot would be found",
                    there.file_system
                ),
                "use a directory below /run",
            )),
            ("data-dir", false) => found.push(check::space(name, &directory.path, there.space)),
            _ => found.push(Finding::fine(name, path.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use berth_service::check::{Level, Space, There};

    use super::*;

    fn well() -> Facts {
        let directory = |path: &str, file_system: &str| Directory {
            path: path.into(),
            there: Some(There {
                owner: 0,
                mode: 0o755,
                file_system: file_system.into(),
                read_only: false,
                space: Space { free: 50 << 30, size: 100 << 30 },
            }),
        };
        Facts {
            config: Ok("/etc/berth/agent.toml".into()),
            root: true,
            kernel: "6.12.41+deb13-amd64".into(),
            features: vec![
                ("overlayfs", "containers' root directories", true, Feature::Present),
                ("NFS", "volumes on NFS", false, Feature::Present),
            ],
            cgroups: CgroupFacts {
                unified: Some(["cpuset", "cpu", "io", "memory", "pids"].map(str::to_owned).into()),
                legacy: Vec::new(),
            },
            containerd: ("/run/containerd/containerd.sock".into(), Ok("1.7.24~ds1".into())),
            runc: Some("runc version 1.1.15".into()),
            cni: (vec!["/usr/lib/cni".into()], Vec::new()),
            cni_config: None,
            nft: Ok(String::new()),
            nfs_helper: ("mount.nfs".into(), true),
            log_writer: Ok("/usr/bin/berth-log-writer".into()),
            data_dir: directory("/var/lib/berth", "ext4"),
            run_dir: directory("/run/berth", "tmpfs"),
            running: false,
            taken: Vec::new(),
            joined: Joined::Yes(Ok(())),
            clock: Clock { now: 1_800_000_000, synchronized: Some(true), ahead_of_controller: Some(0) },
        }
    }

    /// What is not fine, as (level, what).
    fn faults(facts: &Facts) -> Vec<(Level, String)> {
        let all = judge(facts).into_iter().filter(|finding| finding.level > Level::Fine);
        all.inspect(|finding| assert!(!finding.remedy.is_empty(), "{finding:?}"))
            .map(|finding| (finding.level, finding.what))
            .collect()
    }

    fn fault(change: impl FnOnce(&mut Facts)) -> (Level, String) {
        let mut facts = well();
        change(&mut facts);
        let mut faults = faults(&facts);
        assert_eq!(faults.len(), 1, "{faults:?}");
        faults.remove(0)
    }

    #[test]
    fn a_host_with_everything_is_fine() {
        assert_eq!(faults(&well()), []);
    }

    #[test]
    fn each_thing_that_is_missing_is_named_with_its_remedy() {
        let wrong = |what: &str| (Level::Wrong, what.to_owned());
        let warning = |what: &str| (Level::Warning, what.to_owned());
        assert_eq!(fault(|f| f.root = false), wrong("user"));
        assert_eq!(fault(|f| f.config = Err("line 1: no".into())), wrong("settings"));
        let unreadable =
            |f: &mut Facts| (f.config, f.joined) = (Err("no".into()), Joined::No("no token".into()));
        assert_eq!(fault(unreadable), wrong("settings"));
        assert_eq!(fault(|f| f.kernel = "4.19.0-6-amd64".into()), wrong("kernel"));
        assert_eq!(fault(|f| f.features[0].3 = Feature::Absent), wrong("kernel"));
        assert_eq!(fault(|f| f.features[1].3 = Feature::Absent), warning("kernel"));
        assert_eq!(fault(|f| f.containerd.1 = Err("no such file".into())), wrong("containerd"));
        assert_eq!(fault(|f| f.containerd.1 = Ok("1.4.13".into())), wrong("containerd"));
        assert_eq!(fault(|f| f.runc = None), wrong("runc"));
        assert_eq!(fault(|f| f.cni.1 = vec!["static"]), wrong("CNI"));
        assert_eq!(fault(|f| f.nft = Err("nft is not there".into())), wrong("nftables"));
        assert_eq!(fault(|f| f.nfs_helper.1 = false), warning("NFS client"));
        assert_eq!(fault(|f| f.log_writer = Err("/usr/bin/x: not there".into())), wrong("log writer"));
        assert_eq!(fault(|f| f.taken = vec!["UDP 4789".into()]), wrong("ports"));
        assert_eq!(fault(|f| f.joined = Joined::No("no token".into())), wrong("controller"));
        assert_eq!(fault(|f| f.joined = Joined::Yes(Err("refused".into()))), warning("controller"));
        assert_eq!(fault(|f| f.clock.synchronized = Some(false)), warning("clock"));
        assert_eq!(fault(|f| f.clock.ahead_of_controller = Some(-60)), warning("clock"));
    }

    #[test]
    fn a_firewall_that_drops_what_is_forwarded_is_told_whosever_it_is_but_ours() {
        let chains = "table inet berth {
\tchain forward {
\t\ttype filter hook forward priority filter; policy drop;
\t}
}
table ip filter {
\tchain INPUT {
\t\ttype filter hook input priority filter; policy drop;
\t}
\tchain FORWARD {
\t\ttype filter hook forward priority filter; policy drop;
\t}
\tchain DOCKER-USER {
\t}
}
table inet mine {
\tchain f {
\t\ttype filter hook forward priority filter; policy accept;
\t}
}
";
        assert_eq!(dropping(chains).collect::<Vec<_>>(), ["chain FORWARD of table ip filter"]);
        let fault = fault(|f| f.nft = Ok(chains.to_owned()));
        assert_eq!(fault, (Level::Warning, "firewall".to_owned()));
    }

    #[test]
    fn what_does_not_matter_here_is_no_fault() {
        let mut facts = well();
        // The operator's own network, an agent that runs, a kernel that does not tell what it has.
        facts.cni = (Vec::new(), vec!["ptp", "static"]);
        facts.cni_config = Some("/etc/cni/net.d/10-mine.conflist".into());
        (facts.running, facts.taken) = (true, vec!["UDP 4789".into()]);
        facts.features[0].3 = Feature::Unknown;
        facts.data_dir.there = None;
        facts.containerd.1 = Ok("v2.1.9".into());
        assert_eq!(faults(&facts), []);
    }

    #[test]
    fn cgroups_need_their_controllers_whatever_the_version() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let cgroups = |unified: Option<&[&str]>, legacy: &[&str]| {
            let facts = CgroupFacts { unified: unified.map(names), legacy: names(legacy) };
            super::cgroups(&facts).level
        };
        assert_eq!(cgroups(Some(&["cpu", "memory", "pids"]), &[]), Level::Fine);
        assert_eq!(cgroups(Some(&[]), &["cpu", "memory", "pids"]), Level::Fine);
        assert_eq!(cgroups(Some(&["cpu", "pids"]), &[]), Level::Wrong);
        assert_eq!(cgroups(None, &["cpu", "pids"]), Level::Wrong);
        assert_eq!(cgroups(None, &[]), Level::Wrong);
    }

    #[test]
    fn directories_must_be_ours_and_where_they_last_as_long_as_they_must() {
        let there = |f: &mut Facts| f.data_dir.there.clone().unwrap();
        let wrong = (Level::Wrong, "data-dir".to_owned());
        assert_eq!(fault(|f| f.data_dir.there = Some(There { mode: 0o777, ..there(f) })), wrong);
        assert_eq!(fault(|f| f.data_dir.there = Some(There { owner: 1000, ..there(f) })), wrong);
        assert_eq!(fault(|f| f.data_dir.there = Some(There { read_only: true, ..there(f) })), wrong);
        assert_eq!(
            fault(|f| f.data_dir.there = Some(There { file_system: "tmpfs".into(), ..there(f) })),
            wrong
        );
        let warning = |what: &str| (Level::Warning, what.to_owned());
        let full = Space { free: 1 << 20, size: 100 << 30 };
        assert_eq!(
            fault(|f| f.data_dir.there = Some(There { space: full, ..there(f) })),
            warning("data-dir")
        );
        let on_disk = |f: &mut Facts| f.run_dir.there.as_mut().unwrap().file_system = "ext4".into();
        assert_eq!(fault(on_disk), warning("run-dir"));
    }
}
