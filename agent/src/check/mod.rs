//! `berth-agent check`: what is missing or wrong on this host. Here the facts are gathered, [`judge`] says what
//! they mean. Nothing is changed, and every look is bounded.

mod judge;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use berth_service::check::{self, Clock, Finding};
use tonic::transport::Channel;

use self::judge::{CgroupFacts, Facts, Feature, Joined};
use crate::config::Settings;
use crate::network::{NetworkConfig, Services, operators_file};
use crate::volumes::NfsConfig;
use crate::{cgroup, join, runtime, waiting};

/// For whatever somebody else has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// A feature of the kernel: what it is called, what needs it, whether that is essential, its module, and a symbol
/// that is there when it is built in or loaded.
const FEATURES: [(&str, &str, bool, &str, &str); 6] = [
    ("overlayfs", "containers' root directories", true, "overlay", "ovl_fill_super"),
    ("veth", "pods' network interfaces", true, "veth", "veth_newlink"),
    ("bridge", "the device berth0, where pods ask for names", true, "bridge", "br_dev_setup"),
    ("nf_tables", "Services and what leaves the pods' ranges", true, "nf_tables", "nf_tables_newtable"),
    ("vxlan", "pods on other segments cannot be reached", false, "vxlan", "vxlan_newlink"),
    ("NFS", "volumes on NFS cannot be mounted", false, "nfs", "nfs_fs_type"),
];

/// Looks at this host. `settings`: those in force, and where they are from or what is wrong with them.
pub async fn findings(settings: &Settings, config: Result<String, String>) -> Vec<Finding> {
    judge::judge(&gather(settings, config).await)
}

async fn gather(settings: &Settings, config: Result<String, String>) -> Facts {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned();
    let network = NetworkConfig::new(&settings.run_dir);
    let cni_dirs = match &settings.cni_bin_dirs[..] {
        [] => network.cni_bin_dirs,
        dirs => dirs.to_vec(),
    };
    let cni_conf = settings.cni_conf_dir.clone().unwrap_or(network.cni_conf_dir);
    let running = waiting::answers(&settings.run_dir).await;
    let nft = command(Services::find_nft(), &["list", "chains"]).await;
    let nfs_helper =
        settings.nfs_mount_helper.clone().unwrap_or_else(|| NfsConfig::new(PathBuf::new()).helper);
    let (joined, ahead_of_controller) = joined(settings).await;
    Facts {
        config,
        root: nix::unistd::geteuid().is_root(),
        features: features(&kernel),
        kernel,
        cgroups: cgroups(),
        containerd: (settings.containerd.clone(), containerd(&settings.containerd).await),
        runc: command("runc".into(), &["--version"])
            .await
            .ok()
            .and_then(|text| Some(text.lines().next()?.to_owned())),
        cni: (cni_dirs.clone(), missing_plugins(&cni_dirs)),
        cni_config: operators_file(&cni_conf).ok().flatten(),
        nfs_helper: (nfs_helper.clone(), is_there(&nfs_helper)),
        nft,
        log_writer: settings.log_writer().map_err(|error| error.to_string()).and_then(|path| {
            if is_program(&path) { Ok(path) } else { Err(format!("{} is no program", path.display())) }
        }),
        data_dir: check::look_at_directory(&settings.data_dir),
        run_dir: check::look_at_directory(&settings.run_dir),
        running,
        taken: taken(),
        joined,
        clock: Clock { ahead_of_controller, ..check::look_at_clock() },
    }
}

fn features(kernel: &str) -> Vec<(&'static str, &'static str, bool, Feature)> {
    let modules = Path::new("/lib/modules").join(kernel);
    let list = |name: &str| fs::read_to_string(modules.join(name)).ok();
    let (builtin, loadable) = (list("modules.builtin"), list("modules.dep"));
    let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
    let symbols = String::from_utf8_lossy(&symbols);
    let here = |wanted: &str| {
        symbols.lines().any(|line| line.split_ascii_whitespace().nth(2).is_some_and(|name| name == wanted))
    };
    let among = |list: &Option<String>, module: &str| {
        let (plain, dashed) = (format!("/{module}.ko"), format!("/{}.ko", module.replace('_', "-")));
        list.as_ref().is_some_and(|list| {
            list.lines().any(|line| {
                let path = line.split(':').next().unwrap_or_default();
                path.contains(&plain) || path.contains(&dashed)
            })
        })
    };
    let one = |(name, needed_for, must, module, symbol): (_, _, _, &str, &str)| {
        let feature = if here(symbol) || among(&builtin, module) || among(&loadable, module) {
            Feature::Present
        } else if symbols.is_empty() && loadable.is_none() {
            Feature::Unknown
        } else {
            Feature::Absent
        };
        (name, needed_for, must, feature)
    };
    FEATURES.into_iter().map(one).collect()
}

fn cgroups() -> CgroupFacts {
    let mut facts = CgroupFacts::default();
    for (unified, controllers) in cgroup::mounted().unwrap_or_default() {
        if unified {
            facts.unified = Some(controllers);
        } else {
            facts.legacy.extend(controllers);
        }
    }
    facts
}

async fn containerd(socket: &Path) -> Result<String, String> {
    // Said in its own words: a connection's are long.
    if !socket.exists() {
        return Err("there is no such socket".to_owned());
    }
    match tokio::time::timeout(PATIENCE, runtime::version(socket)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer within {PATIENCE:?}")),
    }
}

/// What a command prints, or why it failed.
async fn command(program: PathBuf, args: &[&str]) -> Result<String, String> {
    let mut command = tokio::process::Command::new(&program);
    command.args(args).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let name = program.display();
    match tokio::time::timeout(PATIENCE, command.output()).await {
        Err(_) => Err(format!("{name} does not end")),
        Ok(Err(error)) => Err(format!("{name}: {error}")),
        Ok(Ok(out)) if out.status.success() => Ok(String::from_utf8_lossy(&out.stdout).into_owned()),
        Ok(Ok(out)) => Err(format!("{name}: {}", String::from_utf8_lossy(&out.stderr).trim())),
    }
}

/// A program, by its path or in PATH.
fn is_there(program: &Path) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    // What is absolute stays as it is.
    places.any(|place| is_program(&place.join(program)))
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

fn missing_plugins(dirs: &[PathBuf]) -> Vec<&'static str> {
    ["ptp", "static"]
        .into_iter()
        .filter(|plugin| !dirs.iter().any(|dir| is_program(&dir.join(plugin))))
        .collect()
}

/// Ports that the agent needs and that have another owner.
fn taken() -> Vec<String> {
    let mut taken = Vec::new();
    // The device is the agent's, and stays when the agent ends: so does its port.
    let ours = Path::new("/sys/class/net/berth.vx").exists();
    let tables = [
        ("UDP", "udp", None),
        ("UDP", "udp6", None),
        ("TCP", "tcp", Some("0A")),
        ("TCP", "tcp6", Some("0A")),
    ];
    for (protocol, table, state) in tables {
        let text = fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let mut columns = line.split_ascii_whitespace().skip(1);
            let (Some(local), Some(_), Some(is)) = (columns.next(), columns.next(), columns.next()) else {
                continue;
            };
            let Some((address, port)) = local.rsplit_once(':') else { continue };
            let everywhere = address.bytes().all(|b| b == b'0');
            let named = match port {
                "0035" if everywhere && state.is_none_or(|state| state == is) => {
                    format!("{protocol} 53 on all addresses")
                }
                "12B5" if protocol == "UDP" && !ours => "UDP 4789".to_owned(),
                _ => continue,
            };
            if !taken.contains(&named) {
                taken.push(named);
            }
        }
    }
    taken
}

/// Whether this host may talk to its controller; and by how many seconds its clock is ahead of the controller's.
async fn joined(settings: &Settings) -> (Joined, Option<i64>) {
    let controller = &settings.controller;
    let named = |why: String| format!("{controller}: {why}");
    match join::joined(&settings.data_dir, &settings.node_name) {
        Err(error) => (Joined::No(error.to_string()), None),
        Ok(Some(credentials)) => {
            let connecting = async {
                let endpoint = credentials.endpoint(controller).map_err(|e| join::words(&e))?;
                endpoint.connect().await.map_err(|error| join::words(&error))
            };
            let (connected, ahead) = look(connecting).await;
            (Joined::Yes(connected.map_err(named)), ahead)
        }
        Ok(None) => match settings.token_file.as_deref() {
            Some(file) => match fs::read_to_string(file) {
                Ok(_) => {
                    let connecting = async {
                        let connected = join::by_token(controller, file).await;
                        connected.map(|(channel, _)| channel).map_err(|error| error.to_string())
                    };
                    let (connected, ahead) = look(connecting).await;
                    (Joined::Token(connected), ahead)
                }
                Err(error) => {
                    let why = format!("this host has not joined, and its token cannot be read: {error}");
                    (Joined::No(why), None)
                }
            },
            None => (Joined::No("this host has not joined, and has no token".to_owned()), None),
        },
    }
}

/// What comes of a connection; and how far the clocks are apart.
async fn look(
    connecting: impl Future<Output = Result<Channel, String>>,
) -> (Result<(), String>, Option<i64>) {
    let channel = match tokio::time::timeout(PATIENCE, connecting).await {
        Ok(Ok(channel)) => channel,
        Ok(Err(why)) => return (Err(why), None),
        Err(_) => return (Err("it does not answer".to_owned()), None),
    };
    let theirs = tokio::time::timeout(PATIENCE, join::time_of(channel)).await.ok().flatten();
    (Ok(()), theirs.map(|theirs| jiff::Timestamp::now().as_second() - theirs))
}
