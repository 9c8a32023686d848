//! What the operator chooses: flags over the configuration file over defaults.
//!
//! A key that is not known is refused with its name: a setting that is misspelt must not be ignored.

use std::net::IpAddr;
use std::path::PathBuf;

use berth_service::config::ConfigError;
use serde::Deserialize;

use crate::cgroup;
use crate::runtime::ImageSources;

const DATA_DIR: &str = "/var/lib/berth";
const RUN_DIR: &str = "/run/berth";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
/// As the kubelet's.
const MAX_PODS: u32 = 110;

/// The settings of `berth-agent run`. Each is a flag and, under the same name, a key of the file.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// The controller: its address and the port of its --agent-listen
    #[arg(long, value_name = "HOST:PORT")]
    pub controller: Option<String>,
    /// The join token (from `berth-controller token create`); read once, for this host's certificate
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// This host's name in the cluster [default: its host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// What outlives a reboot: volumes, logs, certificates [default: /var/lib/berth]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// What does not: namespaces; on a tmpfs [default: /run/berth]
    #[arg(long, value_name = "DIR")]
    pub run_dir: Option<PathBuf>,
    /// containerd's socket [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET")]
    pub containerd: Option<PathBuf>,
    /// An address of this host, as pods and people see it (repeatable) [default: the one that leads to the controller]
    #[arg(long = "node-ip", value_name = "ADDRESS")]
    pub node_ip: Vec<IpAddr>,
    /// How many pods this host takes [default: 110]
    #[arg(long, value_name = "NUMBER")]
    pub max_pods: Option<u32>,
    /// A further containerd namespace whose images may be used (repeatable) [default: default, k8s.io]
    #[arg(long = "image-namespace", value_name = "NAMESPACE")]
    pub image_namespace: Vec<String>,
    /// A registry that is spoken to by plain HTTP (repeatable)
    #[arg(long = "insecure-registry", value_name = "HOST:PORT")]
    pub insecure_registry: Vec<String>,
    /// Where to ask first for a registry's images (repeatable)
    #[arg(long = "registry-mirror", value_name = "REGISTRY=HOST:PORT")]
    pub registry_mirror: Vec<String>,
    /// containerd's snapshotter [default: overlayfs]
    #[arg(long, value_name = "NAME")]
    pub snapshotter: Option<String>,
    /// Where pods' cgroups are, this agent's alone: a slice of systemd or a path below the cgroup root [default:
    /// berth.slice where systemd is the init and cgroups are of version 2, else /berth]
    #[arg(long, value_name = "SLICE|PATH")]
    pub cgroup_parent: Option<String>,
    /// Where CNI plugins are (repeatable) [default: /opt/cni/bin, /usr/lib/cni]
    #[arg(long = "cni-bin-dir", value_name = "DIR")]
    pub cni_bin_dir: Vec<PathBuf>,
    /// Where the operator's own CNI configuration is, if there is one [default: /etc/cni/net.d]
    #[arg(long, value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,
    /// What mounts a share of an NFS server, called as PROGRAM SERVER:SHARE DIRECTORY -o OPTIONS [default: mount.nfs]
    #[arg(long, value_name = "PROGRAM")]
    pub nfs_mount_helper: Option<PathBuf>,
    /// The log writer's program [default: berth-log-writer beside this program]
    #[arg(long, value_name = "FILE")]
    pub log_writer: Option<PathBuf>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Settings {
    /// `host:port`
    pub controller: String,
    pub token_file: Option<PathBuf>,
    pub node_name: String,
    pub data_dir: PathBuf,
    pub run_dir: PathBuf,
    pub containerd: PathBuf,
    pub node_ips: Vec<IpAddr>,
    pub max_pods: u32,
    pub image_namespaces: Vec<String>,
    pub insecure_registries: Vec<String>,
    /// (registry, mirror).
    pub registry_mirrors: Vec<(String, String)>,
    /// `berth.slice`, or a path below the cgroup root, e.g. `/berth`.
    pub cgroup_parent: String,
    pub snapshotter: Option<String>,
    pub cni_bin_dirs: Vec<PathBuf>,
    pub cni_conf_dir: Option<PathBuf>,
    pub log_writer: Option<PathBuf>,
    pub nfs_mount_helper: Option<PathBuf>,
}

impl Given {
    /// The run directory alone: what a command needs that talks to the running agent.
    pub fn run_dir_over(self, file: Given) -> PathBuf {
        self.run_dir.or(file.run_dir).unwrap_or_else(|| RUN_DIR.into())
    }

    /// These flags, over what a file says, over the defaults. `host_name` is this machine's.
    pub fn over(self, file: Given, host_name: &str) -> Result<Settings, ConfigError> {
        let invalid = |what, reason: String| Err(ConfigError::invalid(what, reason));
        let Some(controller) = self.controller.or(file.controller) else {
            return invalid("controller", "the controller's address is needed".to_owned());
        };
        if controller.rsplit_once(':').is_none_or(|(h, p)| h.is_empty() || p.parse::<u16>().is_err()) {
            return invalid("controller", format!("{controller:?} is not HOST:PORT"));
        }
        // As the kubelet: the host's own name, in small letters.
        let own = || host_name.to_lowercase();
        let node_name = self.node_name.or(file.node_name).unwrap_or_else(own);
        if !is_name(&node_name) {
            return invalid(
                "node-name",
                format!(
                    "{node_name:?} is no name for a node: small letters, digits, '-' and '.', beginning and \
                     ending with a letter or digit, are"
                ),
            );
        }
        fn several<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
            if flags.is_empty() { file } else { flags }
        }
        let settings = Settings {
            controller,
            token_file: self.token_file.or(file.token_file),
            node_name,
            data_dir: self.data_dir.or(file.data_dir).unwrap_or_else(|| DATA_DIR.into()),
            run_dir: self.run_dir.or(file.run_dir).unwrap_or_else(|| RUN_DIR.into()),
            containerd: self.containerd.or(file.containerd).unwrap_or_else(|| CONTAINERD.into()),
            node_ips: several(self.node_ip, file.node_ip),
            max_pods: self.max_pods.or(file.max_pods).unwrap_or(MAX_PODS),
            image_namespaces: several(self.image_namespace, file.image_namespace),
            insecure_registries: several(self.insecure_registry, file.insecure_registry),
            registry_mirrors: several(self.registry_mirror, file.registry_mirror)
                .iter()
                .map(|one| mirror(one))
                .collect::<Result<_, _>>()?,
            snapshotter: self.snapshotter.or(file.snapshotter),
            cgroup_parent: self
                .cgroup_parent
                .or(file.cgroup_parent)
                .unwrap_or_else(|| cgroup::usual_parent().to_owned()),
            cni_bin_dirs: several(self.cni_bin_dir, file.cni_bin_dir),
            cni_conf_dir: self.cni_conf_dir.or(file.cni_conf_dir),
            log_writer: self.log_writer.or(file.log_writer),
            nfs_mount_helper: self.nfs_mount_helper.or(file.nfs_mount_helper),
        };
        for (what, path) in [
            ("data-dir", &settings.data_dir),
            ("run-dir", &settings.run_dir),
            ("containerd", &settings.containerd),
        ] {
            if !path.is_absolute() {
                return invalid(what, format!("{} is not an absolute path", path.display()));
            }
        }
        Ok(settings)
    }
}

impl Settings {
    /// Takes over what may change while the agent runs. Answers which of the other settings are others in `new`, and
    /// count only from the next start on, by their names.
    pub fn take_over(&mut self, new: Settings) -> Vec<&'static str> {
        let needing_restart = self.needing_restart(&new);
        self.token_file = new.token_file;
        self.max_pods = new.max_pods;
        self.image_namespaces = new.image_namespaces;
        self.insecure_registries = new.insecure_registries;
        self.registry_mirrors = new.registry_mirrors;
        needing_restart
    }

    fn needing_restart(&self, new: &Settings) -> Vec<&'static str> {
        let Settings {
            controller,
            // See `take_over`.
            token_file: _,
            node_name,
            data_dir,
            run_dir,
            containerd,
            node_ips,
            max_pods: _,
            image_namespaces: _,
            insecure_registries: _,
            registry_mirrors: _,
            cgroup_parent,
            snapshotter,
            cni_bin_dirs,
            cni_conf_dir,
            log_writer,
            nfs_mount_helper,
        } = new;
        let changes = [
            ("controller", self.controller != *controller),
            ("node-name", self.node_name != *node_name),
            ("data-dir", self.data_dir != *data_dir),
            ("run-dir", self.run_dir != *run_dir),
            ("containerd", self.containerd != *containerd),
            ("node-ip", self.node_ips != *node_ips),
            ("cgroup-parent", self.cgroup_parent != *cgroup_parent),
            ("snapshotter", self.snapshotter != *snapshotter),
            ("cni-bin-dir", self.cni_bin_dirs != *cni_bin_dirs),
            ("cni-conf-dir", self.cni_conf_dir != *cni_conf_dir),
            ("log-writer", self.log_writer != *log_writer),
            ("nfs-mount-helper", self.nfs_mount_helper != *nfs_mount_helper),
        ];
        changes.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
    }

    /// Where images come from.
    pub fn image_sources(&self) -> ImageSources {
        let mut sources = ImageSources::default();
        if !self.image_namespaces.is_empty() {
            sources.namespaces.clone_from(&self.image_namespaces);
        }
        sources.insecure_registries.clone_from(&self.insecure_registries);
        sources.registry_mirrors.clone_from(&self.registry_mirrors);
        sources
    }

    /// The log writer's program: as configured, or beside this one.
    pub fn log_writer(&self) -> Result<PathBuf, ConfigError> {
        let beside = || std::env::current_exe().map(|exe| exe.with_file_name("berth-log-writer"));
        let found = self.log_writer.clone().map_or_else(beside, Ok);
        let path = found.as_ref().ok().cloned().unwrap_or_default();
        found
            .and_then(|path| path.canonicalize())
            .map_err(|error| ConfigError::invalid("log-writer", format!("{}: {error}", path.display())))
    }
}

/// RFC 1123 subdomain.
fn is_name(name: &str) -> bool {
    let label = |l: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !l.is_empty() && l.bytes().all(inner) && !l.starts_with('-') && !l.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(label)
}

/// `docker.io=mirror.lan:5000`.
fn mirror(text: &str) -> Result<(String, String), ConfigError> {
    match text.split_once('=') {
        Some((registry, mirror)) if !registry.is_empty() && !mirror.is_empty() => {
            Ok((registry.to_owned(), mirror.to_owned()))
        }
        _ => Err(ConfigError::invalid(
            "registry-mirror",
            format!("{text:?} is not of the form REGISTRY=HOST:PORT, e.g. docker.io=mirror.lan:5000"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn controller() -> Given {
        Given { controller: Some("c:6444".into()), ..Given::default() }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
        let file: Given = toml::from_str("node-name = \"f\"\nmax-pods = 7\nrun-dir = \"/f\"").unwrap();
        let flags = Given { node_name: Some("a".into()), ..controller() };
        let settings = flags.over(file, "Host").unwrap();
        assert_eq!((settings.node_name.as_str(), settings.max_pods), ("a", 7));
        assert_eq!(settings.run_dir, Path::new("/f"));
        assert_eq!(settings.data_dir, Path::new("/var/lib/berth"));
        assert_eq!(controller().over(Given::default(), "Host").unwrap().node_name, "host");
    }

    #[test]
    fn what_may_change_is_taken_over_and_what_needs_a_restart_is_named() {
        let settings = |text: &str| {
            let file: Given = toml::from_str(text).unwrap();
            controller().over(file, "host").unwrap()
        };
        let live = "token-file = '/t'\nmax-pods = 7\nimage-namespace = ['x']\ninsecure-registry = ['a:1']\n\
                    registry-mirror = ['docker.io=a:1']\n";
        let mut in_force = settings("");
        let changed = settings(&format!("{live}snapshotter = 'native'\nnode-ip = ['192.0.2.1']"));
        assert_eq!(in_force.take_over(changed.clone()), ["node-ip", "snapshotter"]);
        assert_eq!(in_force, settings(live));
        assert_eq!(in_force.image_sources().namespaces, ["x"]);
        assert_eq!(in_force.take_over(changed), ["node-ip", "snapshotter"], "until the restart");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_its_name() {
        let unknown = toml::from_str::<Given>("node-nam = \"x\"").unwrap_err();
        assert!(unknown.to_string().contains("node-nam"));
        for (given, what) in [
            (Given::default(), "controller"),
            (Given { controller: Some("c".into()), ..Given::default() }, "controller"),
            (Given { node_name: Some("A_b".into()), ..controller() }, "node-name"),
            (Given { run_dir: Some("run".into()), ..controller() }, "run-dir"),
        ] {
            let error = given.over(Given::default(), "host").unwrap_err();
            assert!(error.to_string().starts_with(what), "{error}");
        }
    }

    #[test]
    fn the_example_explains_every_setting() {
        let faults =
            berth_service::config::faults_of_example::<Given>(include_str!("../../systemd/agent.toml"), &[]);
        assert!(faults.is_empty(), "systemd/agent.toml: {faults:#?}");
    }
}
