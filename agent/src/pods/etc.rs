//! The files in /etc that name a pod to itself: hosts, hostname, resolv.conf. They are bind-mounted, so they
//! are rewritten in place and never renamed over.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berth_proto::Assignment;

/// Where they are.
#[derive(Clone, Debug)]
pub struct Etc {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv: PathBuf,
}

impl Etc {
    /// In a pod's own directory.
    pub fn of(directory: &Path) -> Etc {
        Etc {
            hosts: directory.join("etc-hosts"),
            hostname: directory.join("etc-hostname"),
            resolv: directory.join("resolv.conf"),
        }
    }

    /// Writes all three. `ips`: the pod's addresses. Blocks.
    pub fn write(&self, assignment: &Assignment, ips: &[String]) -> std::io::Result<()> {
        write(&self.hosts, &hosts(assignment, ips))?;
        write(&self.hostname, &format!("{}\n", assignment.hostname))?;
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        write(&self.resolv, &resolv(assignment, &host))
    }
}

/// Replaces the content of the very file.
fn write(path: &Path, content: &str) -> std::io::Result<()> {
    if std::fs::read_to_string(path).is_ok_and(|there| there == content) {
        return Ok(());
    }
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
    // Whatever the umask: containers run as other users.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    file.write_all(content.as_bytes())
}

fn hosts(assignment: &Assignment, ips: &[String]) -> String {
    let mut text = String::from(
        "# Managed by Berth.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    let mut names = vec![assignment.fqdn.as_str(), assignment.hostname.as_str()];
    names.retain(|name| !name.is_empty());
    names.dedup();
    for ip in ips {
        text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
    }
    if !assignment.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &assignment.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}

/// `host`: the host's own resolv.conf, for policy Default and while there is no name server of the cluster's.
fn resolv(assignment: &Assignment, host: &str) -> String {
    let dns = assignment.dns.clone().unwrap_or_default();
    let of_host = |keyword: &str| -> Vec<String> {
        let lines = host.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(keyword)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        });
        lines.flatten().collect()
    };
    let (mut servers, mut searches, mut options) = (dns.nameservers, dns.searches, dns.options);
    let add = |list: &mut Vec<String>, more: Vec<String>| {
        for item in more {
            if !list.contains(&item) {
                list.push(item);
            }
        }
    };
    if dns.policy == "Default" {
        add(&mut servers, of_host("nameserver"));
        add(&mut searches, of_host("search"));
        add(&mut options, of_host("options"));
    } else if dns.policy != "None" {
        if servers.is_empty() {
            add(&mut servers, of_host("nameserver"));
        }
        add(&mut searches, of_host("search"));
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    // More than three are ignored by the C library.
    for server in servers.iter().take(3) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{Dns, HostAlias};
    use std::os::unix::fs::MetadataExt;

    fn pod() -> Assignment {
        Assignment {
            hostname: "web-0".into(),
            fqdn: "web-0.nginx.default.svc.cluster.local".into(),
            host_aliases: vec![HostAlias { ip: "1.2.3.4".into(), hostnames: vec!["a".into(), "b".into()] }],
            ..Assignment::default()
        }
    }

    #[test]
    fn a_pod_knows_its_own_names() {
        let text = hosts(&pod(), &["10.42.0.7".into()]);
        assert!(text.contains("\n10.42.0.7\tweb-0.nginx.default.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("\n1.2.3.4\ta\tb\n"));
    }

    #[test]
    fn the_files_are_rewritten_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let etc = Etc::of(dir.path());
        etc.write(&pod(), &[]).unwrap();
        let inode = etc.hosts.metadata().unwrap().ino();
        etc.write(&pod(), &["10.42.0.7".into()]).unwrap();
        assert_eq!(etc.hosts.metadata().unwrap().ino(), inode);
        assert_eq!(std::fs::read_to_string(&etc.hostname).unwrap(), "web-0\n");
    }

    #[test]
    fn names_are_resolved_as_the_policy_says() {
        let host = "nameserver 192.168.1.1\nsearch lan\noptions edns0\n";
        let with = |policy: &str, servers: &[&str]| {
            let dns = Dns {
                policy: policy.into(),
                nameservers: servers.iter().map(|s| (*s).to_owned()).collect(),
                searches: vec!["default.svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            };
            resolv(&Assignment { dns: Some(dns), ..Assignment::default() }, host)
        };
        assert_eq!(
            with("ClusterFirst", &["10.0.0.10"]),
            "search default.svc.cluster.local lan\nnameserver 10.0.0.10\noptions ndots:5\n"
        );
        assert!(with("ClusterFirst", &[]).contains("nameserver 192.168.1.1"));
        assert!(with("Default", &[]).contains("options ndots:5 edns0"));
        assert!(!with("None", &["9.9.9.9"]).contains("lan"));
    }
}
