//! What the operator chooses: flags over the configuration file over defaults.
//!
//! A key that is not known is refused with its name: a setting that is misspelt must not be ignored.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use berth_controller_core::claims::{
    Backend, DIRECTORY_PROVISIONER, Directories, Export, NFS_DRIVER, checked_export,
};
use berth_controller_core::kinds::names;
use berth_service::config::ConfigError;
use jiff::SignedDuration;
use serde::Deserialize;

const DATA_DIR: &str = "/var/lib/berth-controller";

/// The settings of `berth-controller serve`. Each is a flag and, under the same name, a key of the file.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Given {
    /// Where the database, the certificates and admin.kubeconfig are kept [default: /var/lib/berth-controller]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Where the API is served, to kubectl and other clients [default: 0.0.0.0:6443]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where agents connect to [default: 0.0.0.0:6444]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub agent_listen: Option<SocketAddr>,
    /// The range pods get their addresses from, a /24 of it for each host [default: 10.42.0.0/16]
    #[arg(long, value_name = "RANGE")]
    pub pod_cidr: Option<String>,
    /// The range Services get their addresses from [default: 10.43.0.0/16]
    #[arg(long, value_name = "RANGE")]
    pub service_cidr: Option<String>,
    /// The domain of pods' and services' names [default: cluster.local]
    #[arg(long, value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,
    /// A further name or address under which this controller is reached, for its certificate (repeatable)
    #[arg(long, value_name = "NAME")]
    pub advertise: Vec<String>,
    /// How long certificates are good for; each is renewed when a third of that is left [default: 8760h]
    #[arg(long, value_name = "DURATION")]
    pub certificate_life: Option<SignedDuration>,
    /// What stands behind which storage class provisioner; only in the file.
    #[arg(skip)]
    pub provisioner: Vec<Provisioner>,
}

/// `[[provisioner]]`: volumes of the classes that name it are directories below one directory of the hosts, or of
/// an NFS share.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Provisioner {
    pub name: String,
    /// Absolute, on the hosts.
    pub directory: Option<PathBuf>,
    /// It is the same directory on every host (a mounted share): volumes are not pinned to one.
    #[serde(default)]
    pub shared: bool,
    /// The NFS server's name or address, in place of `directory`.
    pub server: Option<String>,
    /// The path it exports.
    pub share: Option<String>,
    /// For classes without `mountOptions`.
    #[serde(default)]
    pub mount_options: Vec<String>,
}

/// What is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub agent_listen: SocketAddr,
    pub pod_cidr: String,
    pub service_cidr: String,
    pub cluster_domain: String,
    pub advertise: Vec<String>,
    pub certificate_life: Duration,
    pub provisioners: BTreeMap<String, Backend>,
}

impl Given {
    /// These flags, over what a file says, over the defaults.
    pub fn over(self, file: Given) -> Result<Settings, ConfigError> {
        let both = |name: &str| name.to_owned();
        let settings = Settings {
            data_dir: self.data_dir.or(file.data_dir).unwrap_or_else(|| DATA_DIR.into()),
            listen: self.listen.or(file.listen).unwrap_or(([0, 0, 0, 0], 6443).into()),
            agent_listen: self.agent_listen.or(file.agent_listen).unwrap_or(([0, 0, 0, 0], 6444).into()),
            pod_cidr: self.pod_cidr.or(file.pod_cidr).unwrap_or_else(|| both("10.42.0.0/16")),
            service_cidr: self.service_cidr.or(file.service_cidr).unwrap_or_else(|| both("10.43.0.0/16")),
            cluster_domain: self
                .cluster_domain
                .or(file.cluster_domain)
                .unwrap_or_else(|| both("cluster.local")),
            advertise: if self.advertise.is_empty() { file.advertise } else { self.advertise },
            certificate_life: certificate_life(self.certificate_life.or(file.certificate_life))?,
            provisioners: provisioners(file.provisioner)?,
        };
        let invalid = |what: &str, reason: String| Err(ConfigError::invalid(what, reason));
        if let Some(fault) = names::subdomain(&settings.cluster_domain).first() {
            return invalid("cluster-domain", format!("{:?}: {fault}", settings.cluster_domain));
        }
        for name in &settings.advertise {
            let address = name.parse::<std::net::IpAddr>().is_ok();
            if let Some(fault) = names::subdomain(name).first().filter(|_| !address) {
                return invalid("advertise", format!("{name:?} is neither an address nor a name: {fault}"));
            }
        }
        if settings.listen.port() != 0 && settings.listen == settings.agent_listen {
            return invalid("agent-listen", format!("{} is where the API listens", settings.listen));
        }
        Ok(settings)
    }
}

impl Settings {
    /// Takes over what may change while the controller runs. Answers which of the other settings are others in `new`, and
    /// count only from the next start on, by their names.
    pub fn take_over(&mut self, new: Settings) -> Vec<&'static str> {
        let needing_restart = self.needing_restart(&new);
        self.advertise = new.advertise;
        self.certificate_life = new.certificate_life;
        self.provisioners = new.provisioners;
        needing_restart
    }

    fn needing_restart(&self, new: &Settings) -> Vec<&'static str> {
        let Settings {
            data_dir,
            listen,
            agent_listen,
            pod_cidr,
            service_cidr,
            cluster_domain,
            // See `take_over`.
            advertise: _,
            certificate_life: _,
            provisioners: _,
        } = new;
        let changes = [
            ("data-dir", self.data_dir != *data_dir),
            ("listen", self.listen != *listen),
            ("agent-listen", self.agent_listen != *agent_listen),
            ("pod-cidr", self.pod_cidr != *pod_cidr),
            ("service-cidr", self.service_cidr != *service_cidr),
            ("cluster-domain", self.cluster_domain != *cluster_domain),
        ];
        changes.into_iter().filter(|(_, changed)| *changed).map(|(name, _)| name).collect()
    }
}

/// Shorter ones would be renewed all the time.
const SHORTEST_LIFE: Duration = Duration::from_secs(6);
const LONGEST_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn certificate_life(given: Option<SignedDuration>) -> Result<Duration, ConfigError> {
    let Some(given) = given else { return Ok(crate::pki::LIFE) };
    match Duration::try_from(given) {
        Ok(life) if (SHORTEST_LIFE..=LONGEST_LIFE).contains(&life) => Ok(life),
        _ => Err(ConfigError::invalid(
            "certificate-life",
            format!("{given:#} is not between {SHORTEST_LIFE:?} and ten years"),
        )),
    }
}

fn provisioners(given: Vec<Provisioner>) -> Result<BTreeMap<String, Backend>, ConfigError> {
    let mut all = BTreeMap::new();
    for one in given {
        let name = one.name.clone();
        let invalid = |reason: &str| ConfigError::invalid(format!("provisioner {name:?}"), reason);
        if name.is_empty() || name == DIRECTORY_PROVISIONER || name == NFS_DRIVER {
            return Err(invalid("this name is not to be had"));
        }
        let backend = backend(one).map_err(|reason| invalid(&reason))?;
        if all.insert(name.clone(), backend).is_some() {
            return Err(invalid("is given twice"));
        }
    }
    Ok(all)
}

fn backend(given: Provisioner) -> Result<Backend, String> {
    let Provisioner { name: _, directory, shared, server, share, mount_options } = given;
    match (directory, server, share) {
        (Some(directory), None, None) if mount_options.is_empty() => {
            let root = directory
                .to_str()
                .filter(|_| directory.is_absolute())
                .filter(|_| !directory.components().any(|c| c == std::path::Component::ParentDir))
                .ok_or("its directory must be an absolute path")?;
            Ok(Backend::Directories(Directories { root: root.to_owned(), shared }))
        }
        (None, Some(server), Some(share)) if !shared => {
            checked_export(Export { server, share, mount_options }).map(Backend::Export)
        }
        _ => {
            Err("it needs either a directory (and perhaps shared), or the server and share of an NFS export \
                  (and perhaps mount-options)"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(text: &str) -> Result<Given, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("controller.toml");
        std::fs::write(&path, text).unwrap();
        berth_service::config::read::<Given>(&path).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_given_is_the_defaults() {
        let settings = Given::default().over(parse("").unwrap()).unwrap();
        assert_eq!(settings.data_dir, Path::new("/var/lib/berth-controller"));
        assert_eq!(settings.listen.to_string(), "0.0.0.0:6443");
        assert_eq!(settings.agent_listen.to_string(), "0.0.0.0:6444");
        assert_eq!((&*settings.pod_cidr, &*settings.cluster_domain), ("10.42.0.0/16", "cluster.local"));
        assert_eq!(settings.service_cidr, "10.43.0.0/16");
    }

    #[test]
    fn a_flag_wins_over_the_file() {
        let file =
            parse("listen = '10.0.0.1:1'\ncluster-domain = 'file.example'\nadvertise = ['a']").unwrap();
        let flags = Given { listen: Some("10.0.0.2:2".parse().unwrap()), ..Given::default() };
        let settings = flags.over(file).unwrap();
        assert_eq!(settings.listen.to_string(), "10.0.0.2:2");
        assert_eq!(
            (&*settings.cluster_domain, &*settings.advertise),
            ("file.example", &["a".to_owned()][..])
        );
    }

    #[test]
    fn provisioners_are_names_for_directories() {
        let text = "[[provisioner]]\nname = 'bdqn'\ndirectory = '/srv/bdqn'\n
                    [[provisioner]]\nname = 'x/y'\ndirectory = '/mnt'\nshared = true\n";
        let settings = Given::default().over(parse(text).unwrap()).unwrap();
        let expected = Backend::Directories(Directories { root: "/mnt".to_owned(), shared: true });
        assert_eq!((&settings.provisioners["x/y"], settings.provisioners.len()), (&expected, 2));
    }

    #[test]
    fn a_provisioner_may_stand_for_an_nfs_share() {
        let text = "[[provisioner]]\nname = 'bdqn'\nserver = 'nas'\nshare = '/nfsdata/'\nmount-options = ['nfsvers=4.1,hard']";
        let settings = Given::default().over(parse(text).unwrap()).unwrap();
        let expected = Backend::Export(Export {
            server: "nas".to_owned(),
            share: "/nfsdata".to_owned(),
            mount_options: vec!["nfsvers=4.1".to_owned(), "hard".to_owned()],
        });
        assert_eq!(settings.provisioners["bdqn"], expected);
        let refused = |text: &str| Given::default().over(parse(text).unwrap()).unwrap_err().to_string();
        for (rest, why) in [
            ("server = 'nas'", "either a directory"),
            ("server = 'nas'\nshare = '/x'\ndirectory = '/x'", "either a directory"),
            ("server = 'nas'\nshare = 'x'", "not an absolute path"),
            ("server = 'n s'\nshare = '/x'", "neither a name nor an address"),
            ("server = 'nas'\nshare = '/x/../y'", "has the part \"..\""),
        ] {
            let refused = refused(&format!("[[provisioner]]\nname = 'a'\n{rest}"));
            assert!(refused.starts_with("provisioner \"a\":") && refused.contains(why), "{refused}");
        }
    }

    #[test]
    fn what_may_change_is_taken_over_and_what_needs_a_restart_is_named() {
        let settings = |text: &str| Given::default().over(parse(text).unwrap()).unwrap();
        let live = "advertise = ['berth.example']\ncertificate-life = '24h'\n";
        let mapped = "[[provisioner]]\nname = 'a'\ndirectory = '/a'";
        let mut in_force = settings("");
        let changed = settings(&format!("{live}listen = '10.0.0.1:1'\npod-cidr = '10.9.0.0/16'\n{mapped}"));
        assert_eq!(in_force.take_over(changed.clone()), ["listen", "pod-cidr"]);
        assert_eq!(in_force, settings(&format!("{live}{mapped}")));
        assert_eq!(in_force.take_over(changed), ["listen", "pod-cidr"], "until the restart");
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let refused = parse("data_dir = '/x'").unwrap_err();
        assert!(refused.contains("unknown field `data_dir`") && refused.contains("`data-dir`"), "{refused}");
        assert!(refused.contains("line 1"), "{refused}");
        let refused = parse("[[provisioner]]\nname = 'a'\ndirectory = '/a'\nshares = 1").unwrap_err();
        assert!(refused.contains("unknown field `shares`"), "{refused}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_name() {
        let refused = |text: &str| Given::default().over(parse(text).unwrap()).unwrap_err().to_string();
        assert!(parse("listen = 'nonsense'").unwrap_err().contains("listen"));
        assert!(refused("cluster-domain = 'Not A Domain'").starts_with("cluster-domain:"));
        assert!(refused("certificate-life = '1s'").starts_with("certificate-life: 1s is not between"));
        assert!(refused("advertise = ['a b']").starts_with("advertise:"));
        assert!(refused("agent-listen = '0.0.0.0:6443'").starts_with("agent-listen:"));
        let twice = "[[provisioner]]\nname = 'a'\ndirectory = '/a'\n".repeat(2);
        assert!(refused(&twice).contains("provisioner \"a\": is given twice"));
        let relative = "[[provisioner]]\nname = 'a'\ndirectory = 'a'\n";
        assert!(refused(relative).contains("absolute"));
    }

    #[test]
    fn the_example_explains_every_setting() {
        let example = include_str!("../../systemd/controller.toml");
        let faults = berth_service::config::faults_of_example::<Given>(example, &["provisioner"]);
        assert!(faults.is_empty(), "systemd/controller.toml: {faults:#?}");
    }
}
