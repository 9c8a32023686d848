//! Flags, settings, and the wiring of the parts: the only file that knows them all.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use berth_agent::cgroup::Cgroups;
use berth_agent::config::{Given, Settings};
use berth_agent::join;
use berth_agent::network::dns::{self, Resolvers};
use berth_agent::network::{HostPorts, Known, Network, NetworkConfig, Routes, Services};
use berth_agent::node_status::{self, Host};
use berth_agent::pods::{Pods, PodsConfig};
use berth_agent::renewal;
use berth_agent::runtime::{Runtime, RuntimeConfig};
use berth_agent::session::Session;
use berth_agent::volumes::{NfsConfig, worker};
use berth_agent::waiting::{self, Answering};
use berth_agent_core::network::zone::SERVER;
use berth_service::{self as service, Signals, Wish};
use clap::{Parser, Subcommand};
use jiff::SignedDuration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Between attempts to join while the controller does not answer.
const JOIN_PAUSE: Duration = Duration::from_secs(2);
/// What ending takes apart from the pods.
const SLACK: Duration = Duration::from_secs(30);

#[derive(Parser)]
#[command(version, about = "Runs StatefulSets on plain Linux hosts: the agent of a host")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of this host
    Run {
        /// A TOML file with the same settings; a flag wins over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Box<Given>,
    },
    /// Wait until a pod is Ready. Exit code 0: it is; 1: not within the time
    WaitReady {
        #[arg(value_name = "NAMESPACE/POD")]
        pod: String,
        /// How long to wait
        #[arg(long, value_name = "DURATION", default_value = "60s")]
        timeout: SignedDuration,
        /// The running agent's configuration file [default: /etc/berth/agent.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The running agent's [default: /run/berth]
        #[arg(long, value_name = "DIR")]
        run_dir: Option<PathBuf>,
    },
    /// Say what is missing or wrong on this host, and how to mend it. Exit code 1: something is wrong
    Check {
        /// The configuration file [default: /etc/berth/agent.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Box<Given>,
    },
    /// What the agent has done by a process of its own: a request on standard input
    #[command(hide = true)]
    VolumeWorker,
}

/// Where a packaged agent has its settings.
const CONFIG: &str = "/etc/berth/agent.toml";

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { config, given } => {
            service::init_logging();
            let flags = *given;
            settings(config.as_deref(), flags.clone())
                .and_then(|settings| start(settings, Source { config, flags }))
        }
        Command::VolumeWorker => {
            worker::main();
            return ExitCode::SUCCESS;
        }
        Command::WaitReady { pod, timeout, config, run_dir } => wait_ready(&pod, timeout, config, run_dir),
        Command::Check { config, given } => match check(config, *given) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("berth-agent: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The file that is named, or a packaged agent's if there is one.
fn usual(config: Option<PathBuf>) -> Option<PathBuf> {
    config.or_else(|| Some(PathBuf::from(CONFIG)).filter(|path| path.exists()))
}

fn wait_ready(
    pod: &str,
    timeout: SignedDuration,
    config: Option<PathBuf>,
    run_dir: Option<PathBuf>,
) -> Result<()> {
    let Some((namespace, name)) = pod.split_once('/').filter(|(n, p)| !n.is_empty() && !p.is_empty()) else {
        bail!("{pod:?} is not NAMESPACE/POD");
    };
    let limit = Duration::try_from(timeout).context("--timeout must not be negative")?;
    let file =
        usual(config).map(|path| service::config::read::<Given>(&path)).transpose()?.unwrap_or_default();
    let run_dir = Given { run_dir, ..Given::default() }.run_dir_over(file);
    let told = |says: &str| eprintln!("{pod}: {says}");
    light_runtime()?
        .block_on(waiting::wait_ready(&run_dir, namespace, name, limit, told))
        .map_err(|why| anyhow!("{pod}: {why}"))
}

fn check(config: Option<PathBuf>, given: Given) -> Result<bool> {
    let config = usual(config);
    let from = config.as_ref().map_or("flags and defaults".to_owned(), |path| path.display().to_string());
    let (settings, from) = match settings(config.as_deref(), given.clone()) {
        Ok(settings) => (settings, Ok(from)),
        Err(error) => {
            // The rest can be looked at all the same.
            let controller = given.controller.or(Some("127.0.0.1:6444".to_owned()));
            let defaults = Given { controller, node_name: Some("unknown".to_owned()), ..Given::default() };
            (defaults.over(Given::default(), "")?, Err(format!("{error:#}")))
        }
    };
    let findings = light_runtime()?.block_on(berth_agent::check::findings(&settings, from));
    Ok(service::check::tell(findings, &mut std::io::stdout().lock())?)
}

fn light_runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}

fn settings(config: Option<&Path>, flags: Given) -> Result<Settings> {
    let file = config.map(service::config::read::<Given>).transpose()?.unwrap_or_default();
    let host = nix::unistd::gethostname().context("the host's name")?;
    Ok(flags.over(file, &host.to_string_lossy())?)
}

/// Where the settings are from, to read them again.
struct Source {
    config: Option<PathBuf>,
    flags: Given,
}

fn start(settings: Settings, source: Source) -> Result<()> {
    // Two threads are plenty for a process that mostly waits, and each one more costs memory.
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(16)
        .enable_all()
        .build()
        .context("no runtime")?
        .block_on(run(settings, source))
}

async fn run(settings: Settings, source: Source) -> Result<()> {
    for (what, path) in [("data-dir", &settings.data_dir), ("run-dir", &settings.run_dir)] {
        std::fs::create_dir_all(path)
            .with_context(|| format!("the directory {} cannot be used (--{what})", path.display()))?;
    }
    let mut signals = Signals::new().context("no signals")?;
    let joined: Arc<OnceLock<join::Credentials>> = Arc::default();
    let (in_force, mut live) = watch::channel(settings.clone());
    let ended = {
        let joined = joined.clone();
        async move {
            loop {
                match signals.next().await {
                    Wish::End(signal) => return signal,
                    Wish::Reload => {
                        service::reloading();
                        if let Err(error) = reload(&in_force, &source, joined.get()) {
                            error!("nothing was taken over: {error:#}");
                        }
                        service::ready();
                    }
                }
            }
        }
    };
    tokio::pin!(ended);
    let credentials = tokio::select! {
        signal = &mut ended => { info!(signal, "ending"); return Ok(()) }
        credentials = credentials(&live) => credentials?,
    };
    let _ = joined.set(credentials.clone());

    let writer = settings.log_writer()?;
    let exec_dir = settings.run_dir.join("exec");
    let mut runtime = RuntimeConfig::new(&settings.containerd, writer, exec_dir);
    runtime.sources = settings.image_sources();
    if let Some(snapshotter) = &settings.snapshotter {
        runtime.snapshotter.clone_from(snapshotter);
    }
    let cgroups = Cgroups::open(&settings.cgroup_parent).await.context("cgroups (--cgroup-parent)")?;
    runtime.systemd_cgroups = cgroups.through_systemd();
    let runtime = Runtime::connect(runtime).await.context("containerd")?;
    let mut network = NetworkConfig::new(&settings.run_dir);
    if !settings.cni_bin_dirs.is_empty() {
        network.cni_bin_dirs.clone_from(&settings.cni_bin_dirs);
    }
    if let Some(dir) = &settings.cni_conf_dir {
        network.cni_conf_dir.clone_from(dir);
    }
    let cni_conf_dir = network.cni_conf_dir.clone();
    let network = Network::open(network).await.context("the network")?;
    let addresses = node_status::addresses(&settings.node_ips, &settings.controller);
    let host_ports = HostPorts::default();
    let (host_ips, mtu) = (addresses.clone(), network.mtu_sender());
    let mut nfs = NfsConfig::new(settings.run_dir.join("nfs"));
    if let Some(helper) = &settings.nfs_mount_helper {
        nfs.helper.clone_from(helper);
    }
    let config = PodsConfig {
        data_dir: settings.data_dir.clone(),
        run_dir: settings.run_dir.clone(),
        host_ips: addresses.clone(),
        host_ports: host_ports.clone(),
        nfs,
    };
    info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %settings.node_name, controller = %settings.controller,
        data_dir = %settings.data_dir.display(), containerd = %settings.containerd.display(),
        "starting"
    );
    let pods = tokio::select! {
        signal = &mut ended => { info!(signal, "ending"); return Ok(()) }
        pods = Pods::open(config, runtime.clone(), network.clone(), cgroups) => pods?,
    };

    let mut host =
        Host::new(addresses, &settings.data_dir, &cni_conf_dir, live.clone(), runtime.clone(), network)
            .context("this host cannot be looked at")?;
    let (status, watched) = watch::channel(host.look().await);
    let shutdown = CancellationToken::new();
    let picture = settings.data_dir.join("network");
    let known = Known::load(&picture);
    let keeping = tokio::spawn(known.clone().keep(picture, shutdown.clone()));
    let routes =
        Routes { known: known.clone(), node: settings.node_name.clone(), host_ips: host_ips.clone(), mtu };
    tokio::spawn(routes.run(shutdown.clone()));
    let services = Services {
        known: known.clone(),
        node: settings.node_name.clone(),
        host_ports,
        nft: Services::find_nft(),
    };
    tokio::spawn(services.run(shutdown.clone()));
    let names = dns::Server::new(known.clone(), Resolvers::of_host());
    tokio::spawn(names.run((SERVER, dns::PORT).into(), shutdown.clone()));
    let watching = tokio::spawn(host.watch(status, shutdown.clone()));
    let answering = Answering { pods: pods.clone(), network: known.clone() };
    tokio::spawn(answering.run(settings.run_dir.clone(), shutdown.clone()));
    tokio::spawn(renewal::keep(credentials.clone(), settings.controller.clone(), shutdown.clone()));
    let images = runtime.clone();
    let session = Session {
        controller: settings.controller,
        credentials,
        settings: live.clone(),
        node: settings.node_name,
        pods: pods.clone(),
        runtime,
        network: known,
        status: watched,
    };
    tokio::spawn(async move {
        while live.changed().await.is_ok() {
            let sources = live.borrow_and_update().image_sources();
            images.set_sources(sources);
        }
    });
    let talk = shutdown.child_token();
    let session = tokio::spawn(session.run(talk.clone()));
    service::ready();

    let signal = tokio::select! {
        signal = ended => signal,
        never = service::watchdog(async || ()) => match never {},
    };
    service::stopping();
    talk.cancel();
    if service::host_stops().await {
        // Names and Services are there until the last pod has ended.
        let farewell = pods.farewell();
        info!(signal, pods = farewell.pods(), at_most = ?farewell.limit(), "the host is shut down: its pods end first");
        service::takes(farewell.limit() + SLACK);
        farewell.run().await;
    } else {
        info!(signal, "ending; the pods run on");
    }
    shutdown.cancel();
    let _ = tokio::time::timeout(Duration::from_secs(5), async { tokio::join!(watching, session, keeping) })
        .await;
    Ok(())
}

/// The settings and the certificate are read again; what can be is taken over, the rest is named.
fn reload(
    in_force: &watch::Sender<Settings>,
    source: &Source,
    credentials: Option<&join::Credentials>,
) -> Result<()> {
    let new = settings(source.config.as_deref(), source.flags.clone())?;
    let mut needing_restart = Vec::new();
    in_force.send_modify(|settings| needing_restart = settings.take_over(new));
    for setting in needing_restart {
        warn!(
            setting,
            "has changed, and counts from the next start on: systemctl restart berth-agent (the pods run on)"
        );
    }
    let new_certificate = credentials.map(join::Credentials::reload).transpose()?.unwrap_or(false);
    info!(new_certificate, "configuration and certificate were read again");
    Ok(())
}

/// This host's credentials; waits for a controller that does not answer yet.
async fn credentials(live: &watch::Receiver<Settings>) -> Result<join::Credentials> {
    let mut told = String::new();
    loop {
        let Settings { data_dir, controller, node_name, token_file, .. } = live.borrow().clone();
        match join::credentials(&data_dir, &controller, &node_name, token_file.as_deref()).await {
            Ok(credentials) => return Ok(credentials),
            Err(error) if error.passing() => {
                let reason = error.to_string();
                if reason != told {
                    warn!(reason, "cannot join yet");
                    told = reason;
                }
                tokio::time::sleep(JOIN_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}
