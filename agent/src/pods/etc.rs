//! The files in /etc that name a pod to itself: hosts, hostname, resolv.conf. They are bind-mounted, so they
//! are rewritten in place and never renamed over.

use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use berth_agent_core::network::zone;
use berth_proto::Assignment;

/// More are ignored by the C library.
const SERVERS: usize = 3;
/// As Kubernetes.
const SEARCHES: usize = 32;
/// How many of an assignment's search domains are the cluster's: the namespace's, `svc`, the domain's.
const CLUSTERS: usize = 3;

/// Where they are.
#[derive(Clone, Debug)]
pub struct Etc {
    pub hosts: PathBuf,
    pub hostname: PathBuf,
    pub resolv: PathBuf,
}

/// The host's own files, as far as a pod's are made of them.
#[derive(Clone, Debug, Default)]
struct OfHost {
    hosts: String,
    resolv: String,
}

impl OfHost {
    fn read() -> OfHost {
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let resolv = text("/etc/resolv.conf");
        // A pod cannot ask the stub on the host's loopback: it gets what stands behind it.
        let behind = if resolv.contains("127.0.0.53") {
            text("/run/systemd/resolve/resolv.conf")
        } else {
            String::new()
        };
        OfHost { hosts: text("/etc/hosts"), resolv: if behind.is_empty() { resolv } else { behind } }
    }
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

    /// Writes all three. `ips`: the pod's addresses; `hostname`: what it is called inside. Blocks.
    pub fn write(&self, assignment: &Assignment, hostname: &str, ips: &[String]) -> std::io::Result<()> {
        let host = OfHost::read();
        write(&self.hosts, &hosts(assignment, hostname, ips, &host))?;
        write(&self.hostname, &format!("{hostname}\n"))?;
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

fn host_network(assignment: &Assignment) -> bool {
    assignment.network.as_ref().is_some_and(|network| network.host_network)
}

fn hosts(assignment: &Assignment, hostname: &str, ips: &[String], host: &OfHost) -> String {
    let mut text = String::from("# Managed by Berth.\n");
    if host_network(assignment) {
        text.push_str(&host.hosts);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    } else {
        text.push_str(
            "127.0.0.1\tlocalhost\n\
             ::1\tlocalhost ip6-localhost ip6-loopback\n\
             fe00::0\tip6-localnet\n\
             fe00::0\tip6-mcastprefix\n\
             fe00::1\tip6-allnodes\n\
             fe00::2\tip6-allrouters\n",
        );
        // Where the whole name is the host name, the short one is its first part.
        let short = match hostname.split_once('.') {
            Some((short, _)) if hostname == assignment.fqdn => short,
            _ => hostname,
        };
        let mut names = vec![assignment.fqdn.as_str(), short];
        names.retain(|name| !name.is_empty());
        names.dedup();
        for ip in ips {
            text.push_str(&format!("{ip}\t{}\n", names.join("\t")));
        }
    }
    if !assignment.host_aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in &assignment.host_aliases {
            text.push_str(&format!("{}\t{}\n", alias.ip, alias.hostnames.join("\t")));
        }
    }
    text
}

/// Kubernetes' rules: ClusterFirst asks the agent and searches the cluster, then where the host does; Default is
/// as the host; None is only what the pod itself says.
fn resolv(assignment: &Assignment, host: &OfHost) -> String {
    let dns = assignment.dns.clone().unwrap_or_default();
    let of_host = |keyword: &str| -> Vec<String> {
        let lines = host.resolv.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(keyword)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        });
        lines.flatten().filter(|word| word != ".").collect()
    };
    let agent = zone::SERVER.to_string();
    let (mut servers, mut searches, mut options) = (Vec::new(), Vec::new(), Vec::new());
    let mut own = dns.searches;
    if dns.policy.starts_with("ClusterFirst") || dns.policy.is_empty() {
        servers.push(agent);
        let rest = own.split_off(own.len().min(CLUSTERS));
        searches.append(&mut own);
        searches.extend(of_host("search"));
        own = rest;
    } else if dns.policy == "Default" {
        servers = of_host("nameserver");
        if !host_network(assignment) {
            // The host's loopback is not the pod's; the agent asks there for it.
            let here = |server: &String| server.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
            let before = servers.len();
            servers.retain(|server| !here(server));
            if servers.len() < before && servers.is_empty() {
                servers.push(agent);
            }
        }
        searches = of_host("search");
        options = of_host("options");
    }
    let name = |option: &str| option.split(':').next().unwrap_or(option).to_owned();
    for option in dns.options {
        options.retain(|there| name(there) != name(&option));
        options.push(option);
    }
    let mut text = String::new();
    let searches = unique(searches.into_iter().chain(own), SEARCHES);
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in unique(servers.into_iter().chain(dns.nameservers), SERVERS) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

fn unique(all: impl Iterator<Item = String>, most: usize) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for one in all {
        if kept.len() < most && !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::{Dns, HostAlias, Network};
    use std::os::unix::fs::MetadataExt;

    fn pod() -> Assignment {
        Assignment {
            hostname: "web-0".into(),
            fqdn: "web-0.nginx.default.svc.cluster.local".into(),
            host_aliases: vec![HostAlias { ip: "1.2.3.4".into(), hostnames: vec!["a".into(), "b".into()] }],
            ..Assignment::default()
        }
    }

    fn on_host_network(pod: Assignment) -> Assignment {
        Assignment { network: Some(Network { host_network: true, ..Network::default() }), ..pod }
    }

    #[test]
    fn a_pod_knows_its_own_names() {
        let text = hosts(&pod(), "web-0", &["10.42.0.7".into()], &OfHost::default());
        assert!(text.contains("\n10.42.0.7\tweb-0.nginx.default.svc.cluster.local\tweb-0\n"), "{text}");
        assert!(text.ends_with("\n1.2.3.4\ta\tb\n"));
        // setHostnameAsFQDN: the same two names.
        let whole = "web-0.nginx.default.svc.cluster.local";
        assert_eq!(hosts(&pod(), whole, &["10.42.0.7".into()], &OfHost::default()), text);
    }

    #[test]
    fn a_pod_on_the_hosts_network_has_the_hosts_names() {
        let host = OfHost { hosts: "127.0.0.1 localhost\n192.0.2.1 host1".into(), ..OfHost::default() };
        let text = hosts(&on_host_network(pod()), "host1", &["192.0.2.1".into()], &host);
        assert!(
            text.contains("\n192.0.2.1 host1\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"),
            "{text}"
        );
        assert!(!text.contains("web-0"));
    }

    #[test]
    fn the_files_are_rewritten_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let etc = Etc::of(dir.path());
        etc.write(&pod(), "web-0", &[]).unwrap();
        let inode = etc.hosts.metadata().unwrap().ino();
        etc.write(&pod(), "web-0", &["10.42.0.7".into()]).unwrap();
        assert_eq!(etc.hosts.metadata().unwrap().ino(), inode);
        assert_eq!(std::fs::read_to_string(&etc.hostname).unwrap(), "web-0\n");
    }

    #[test]
    fn names_are_resolved_as_the_policy_says() {
        let host = |resolv: &str| OfHost { resolv: resolv.into(), ..OfHost::default() };
        let usual = host("nameserver 192.168.1.1\nsearch lan .\noptions edns0 ndots:2\n");
        let with = |policy: &str, searches: &[&str], options: &[&str]| Assignment {
            dns: Some(Dns {
                policy: policy.into(),
                nameservers: vec!["9.9.9.9".into()],
                searches: searches.iter().map(|s| (*s).to_owned()).collect(),
                options: options.iter().map(|s| (*s).to_owned()).collect(),
            }),
            ..Assignment::default()
        };
        let cluster = ["ns.svc.x", "svc.x", "x", "mine"];
        for policy in ["ClusterFirst", "ClusterFirstWithHostNet"] {
            assert_eq!(
                resolv(&with(policy, &cluster, &["ndots:5"]), &usual),
                "search ns.svc.x svc.x x lan mine\nnameserver 169.254.53.53\nnameserver 9.9.9.9\noptions ndots:5\n"
            );
        }
        assert_eq!(
            resolv(&with("Default", &["mine"], &["ndots:1"]), &usual),
            "search lan mine\nnameserver 192.168.1.1\nnameserver 9.9.9.9\noptions edns0 ndots:1\n"
        );
        assert_eq!(
            resolv(&with("None", &["mine"], &["ndots:1"]), &usual),
            "search mine\nnameserver 9.9.9.9\noptions ndots:1\n"
        );
        // What listens on the host's loopback is out of a pod's reach, unless it is on the host's network.
        let local = host("nameserver 127.0.0.1\n");
        let of = |assignment: &Assignment| resolv(assignment, &local);
        assert!(of(&with("Default", &[], &[])).starts_with("nameserver 169.254.53.53\n"));
        assert!(of(&on_host_network(with("Default", &[], &[]))).starts_with("nameserver 127.0.0.1\n"));
    }
}
