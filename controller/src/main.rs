//! Flags, settings, and the wiring of the parts: the only file that knows them all.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use axum::Router;
use berth_controller::api::{self, Api};
use berth_controller::backup;
use berth_controller::certificates;
use berth_controller::config::{Given, Settings};
use berth_controller::control::{self, Control};
use berth_controller::eviction;
use berth_controller::nodes::{GRACE, Join, JoinRefused, Joined, Nodes, NodesConfig, Range};
use berth_controller::objects::Objects;
use berth_controller::pki::{AgentRequest, Pki, RenewError, ServerNames};
use berth_controller::reconcile::{self, events::Events, first_start};
use berth_controller::services::{self, Allocations, Services};
use berth_controller::store::Store;
use berth_controller::tokens::{Revoking, TokenError, Tokens};
use berth_controller_core::claims::Provisioners;
use berth_controller_core::services::allocate::AddressRange;
use berth_controller_schema::Schema;
use berth_service::{self as service, Signals, Wish};
use clap::{Parser, Subcommand};
use futures_util::FutureExt as _;
use jiff::SignedDuration;
use tokio::net::TcpListener;
use tokio::runtime::{Handle, Runtime};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

#[derive(Parser)]
#[command(version, about = "Runs StatefulSets on plain Linux hosts: the controller")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller
    Serve {
        /// A TOML file with the same settings; a flag wins over it
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Given,
    },
    /// Let hosts join
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Copy all that the controller is (database, authority, certificates, configuration) into one file, also while
    /// it serves
    Backup {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The configuration file [default: /etc/berth/controller.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The controller's [default: /var/lib/berth-controller]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Make a data directory of a backup; start the controller on it then
    Restore {
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// Where to; absent or empty [default: /var/lib/berth-controller]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
    /// Say what is missing or wrong on this host, and how to mend it. Exit code 1: something is wrong
    Check {
        /// The configuration file [default: /etc/berth/controller.toml, if it is there]
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        #[command(flatten)]
        given: Given,
    },
}

/// Where a packaged controller has its settings.
const CONFIG: &str = "/etc/berth/controller.toml";

#[derive(Subcommand)]
enum TokenCommand {
    /// Print a token with which a host's agent joins; the controller must be running
    Create {
        /// Only for the host of this name, once (otherwise once for each host)
        #[arg(long, value_name = "NAME")]
        node: Option<String>,
        /// How long it can be used
        #[arg(long, value_name = "DURATION", default_value = "1h")]
        ttl: SignedDuration,
        /// The running controller's configuration file
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// The running controller's [default: /var/lib/berth-controller]
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Command::Serve { config, given } => {
            service::init_logging();
            settings(config.as_deref(), given.clone())
                .and_then(|settings| serve(settings, Source { config, flags: given }))
        }
        Command::Token { command: TokenCommand::Create { node, ttl, config, data_dir } } => {
            let given = Given { data_dir, ..Given::default() };
            settings(config.as_deref(), given)
                .and_then(|settings| create_token(&settings.data_dir, node.as_deref(), ttl))
        }
        Command::Backup { file, config, data_dir } => backup(&file, usual(config), data_dir),
        Command::Restore { file, data_dir } => restore(&file, data_dir),
        Command::Check { config, given } => match check(config, given) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => Err(error),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("berth-controller: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// The file that is named, or a packaged controller's if there is one.
fn usual(config: Option<PathBuf>) -> Option<PathBuf> {
    config.or_else(|| Some(PathBuf::from(CONFIG)).filter(|path| path.exists()))
}

fn check(config: Option<PathBuf>, given: Given) -> Result<bool> {
    let config = usual(config);
    let from = config.as_ref().map_or("flags and defaults".to_owned(), |path| path.display().to_string());
    let (settings, from) = match settings(config.as_deref(), given) {
        Ok(settings) => (settings, Ok(from)),
        // The rest can be looked at all the same.
        Err(error) => (Given::default().over(Given::default())?, Err(format!("{error:#}"))),
    };
    let findings = berth_controller::check::findings(&settings, from);
    Ok(service::check::tell(findings, &mut std::io::stdout().lock())?)
}

fn backup(file: &Path, config: Option<PathBuf>, data_dir: Option<PathBuf>) -> Result<()> {
    let data_dir = settings(config.as_deref(), Given { data_dir, ..Given::default() })?.data_dir;
    let name = if control::answers(&data_dir) {
        control::backup(&data_dir)?
    } else {
        let database = data_dir.join("berth.db");
        if !database.exists() {
            bail!("{}: there is no controller here (--data-dir)", data_dir.display());
        }
        let store = Store::open(&database)?;
        let source = backup::Source { store: store.clone(), data_dir: data_dir.clone(), config };
        light_runtime()?.block_on(async {
            let made = source.make().await;
            store.close().await;
            made
        })?
    };
    backup::take_away(&data_dir, &name, file)?;
    println!("{} holds all of {}: keep it as safe as that", file.display(), data_dir.display());
    Ok(())
}

fn restore(file: &Path, data_dir: Option<PathBuf>) -> Result<()> {
    let data_dir = Given { data_dir, ..Given::default() }.over(Given::default())?.data_dir;
    let restored = light_runtime()?.block_on(backup::restore(file, &data_dir))?;
    println!("{} is restored; start the controller on it.", data_dir.display());
    if let Some(config) = restored.config {
        println!("The configuration that was in force is in {}.", config.display());
    }
    if !restored.awaited.is_empty() {
        println!(
            "New pods start once these hosts have said what runs there: {}. One that will not come back is declared \
             down: kubectl taint node NAME node.kubernetes.io/out-of-service=:NoExecute",
            restored.awaited.join(", ")
        );
    }
    Ok(())
}

fn light_runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")
}

fn create_token(data_dir: &Path, node: Option<&str>, ttl: SignedDuration) -> Result<()> {
    let life = Duration::try_from(ttl).context("--ttl must not be negative")?;
    println!("{}", control::create_token(data_dir, node, life)?);
    Ok(())
}

fn settings(config: Option<&Path>, flags: Given) -> Result<Settings> {
    let file = config.map(service::config::read::<Given>).transpose()?.unwrap_or_default();
    Ok(flags.over(file)?)
}

/// Where the settings are from, to read them again.
struct Source {
    config: Option<PathBuf>,
    flags: Given,
}

fn serve(settings: Settings, source: Source) -> Result<()> {
    // Requests have threads of their own. In one runtime each would wait its turn behind whatever hundreds of
    // sessions and loops have to do; so the kernel gives it its share of the processor at once.
    let requests = runtime("requests")?;
    let done = runtime("main")?.block_on(run(settings, source, requests.handle()));
    requests.shutdown_background();
    done
}

/// Two threads are plenty for what mostly waits, and each one more costs memory.
fn runtime(name: &str) -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .thread_name(name)
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_all()
        .build()
        .context("no runtime")
}

/// `requests` serves the API, all else is here.
async fn run(settings: Settings, source: Source, requests: &Handle) -> Result<()> {
    let pod_cidr = Range::cluster(&settings.pod_cidr).context("pod-cidr")?;
    let service_cidr =
        AddressRange::beside(&settings.service_cidr, &settings.pod_cidr).context("service-cidr")?;
    let cluster_domain = settings.cluster_domain.clone();
    let mut signals = Signals::new().context("no signals")?;
    let data_dir = &settings.data_dir;
    let unusable = || format!("the data directory {} cannot be used (--data-dir)", data_dir.display());
    berth_controller::make_private_directory(data_dir).with_context(unusable)?;
    // First of all: whoever has the database has the directory.
    let store = Store::open(&data_dir.join("berth.db"))?;
    let api = requests.spawn(listen(settings.listen, "listen")).await??;
    let agents = listen(settings.agent_listen, "agent-listen").await?;
    let names = server_names(&settings, service_cidr);
    let pki = Arc::new(Pki::open_with(data_dir, &names, api.local_addr()?, settings.certificate_life)?);
    let tls = pki.server_config(&["h2", "http/1.1"])?;
    let agents_tls = pki.server_config(&["h2"])?;
    let tokens = Tokens::new(store.clone(), pki.authority_pin());
    let control = Control::bind(data_dir).with_context(unusable)?;
    backup::sweep(data_dir);
    let backups =
        backup::Source { store: store.clone(), data_dir: data_dir.clone(), config: source.config.clone() };

    let allocations = Allocations::new(store.clone(), service_cidr);
    let objects = Objects::new(store.clone(), Schema::get()).with(Arc::new(Revoking(allocations)));
    first_start(&objects).await.context("what a new controller begins with could not be stored")?;
    services::repair(&objects).await.context("the Services' addresses could not be looked through")?;
    let reached_at = services::kubernetes::reached_at(settings.listen, &settings.advertise);
    services::kubernetes::publish(&objects, service_cidr, reached_at, api.local_addr()?.port())
        .await
        .context("the Service kubernetes could not be written")?;
    let services = Services::new(objects.clone());
    let (events, recorded) = Events::new();
    let (mapping, provisioners) = watch::channel(Provisioners::new(settings.provisioners.clone()));
    let config = NodesConfig {
        pod_cidr,
        service_cidr,
        cluster_domain,
        provisioners: provisioners.clone(),
        grace: GRACE,
    };
    let nodes = Nodes::new(objects.clone(), services.clone(), events.clone(), config);
    let hosts = Arc::new(nodes.clone());
    let loops = reconcile::Context {
        objects: objects.clone(),
        events,
        provisioners,
        hosts,
        images: Arc::new(nodes.clone()),
    };
    let join = Arc::new(Joining { pki: pki.clone(), tokens: tokens.clone() });
    let mut connects = nodes.connects();
    connects.push(eviction::connect(objects.clone()));
    let api_routes = Api::new(objects.clone(), connects, Router::new());

    let stop = CancellationToken::new();
    let (api_at, agents_at) = (api.local_addr()?, agents.local_addr()?);
    let mut parts = JoinSet::new();
    parts.spawn(
        stop.clone().run_until_cancelled_owned(control.serve(tokens, backups)).map(|_| "the control socket"),
    );
    parts.spawn(stop.clone().run_until_cancelled_owned(reconcile::run(loops, recorded)).map(|_| "the loops"));
    parts.spawn(stop.clone().run_until_cancelled_owned(services.run()).map(|_| "the services' side"));
    parts.spawn({
        let (nodes, stop) = (nodes.clone(), stop.clone());
        async move {
            nodes.schedule(stop).await;
            "the scheduler"
        }
    });
    parts.spawn({
        let stop = stop.clone();
        async move {
            nodes.serve(agents, agents_tls, join, stop).await;
            "the agents' side"
        }
    });
    let certificates = certificates::keep(pki.clone());
    parts.spawn(stop.clone().run_until_cancelled_owned(certificates).map(|_| "the certificates' renewal"));
    parts.spawn_on(api::serve(api_routes, api, tls, stop.clone()).map(|()| "the API"), requests);

    info!(
        version = env!("CARGO_PKG_VERSION"),
        api = %api_at, agents = %agents_at, data_dir = %data_dir.display(), revision = store.revision(),
        "ready; export KUBECONFIG={}", data_dir.join("admin.kubeconfig").display()
    );
    service::ready();

    let mut live = Live { settings: settings.clone(), mapping, pki, objects, service_cidr, api: api_at };
    let ended = async {
        loop {
            match signals.next().await {
                Wish::End(signal) => return signal,
                Wish::Reload => {
                    service::reloading();
                    if let Err(error) = live.reload(&source).await {
                        error!("nothing was taken over: {error:#}");
                    }
                    service::ready();
                }
            }
        }
    };
    let failed = tokio::select! {
        signal = ended => {
            info!(signal, "ending");
            None
        }
        never = service::watchdog(async || drop(requests.spawn(async {}).await)) => match never {},
        // No part ends by itself: without one of them the rest would only seem to work.
        Some(ended) = parts.join_next() => Some(match ended {
            Ok(part) => format!("{part} ended by itself"),
            Err(panic) => panic.to_string(),
        }),
    };
    service::stopping();
    stop.cancel();
    let all = async { while parts.join_next().await.is_some() {} };
    if tokio::time::timeout(FAREWELL, all).await.is_err() {
        warn!("some requests did not end in time and are cut off");
    }
    store.close().await;
    failed.map_or(Ok(()), |reason| Err(anyhow!(reason)))
}

/// What the configuration changes while the controller runs.
struct Live {
    /// In force.
    settings: Settings,
    mapping: watch::Sender<Provisioners>,
    pki: Arc<Pki>,
    objects: Objects,
    service_cidr: AddressRange,
    api: SocketAddr,
}

impl Live {
    /// The settings and certificates are read again; what can be is taken over, the rest is named.
    async fn reload(&mut self, source: &Source) -> Result<()> {
        let new = settings(source.config.as_deref(), source.flags.clone())?;
        for setting in self.settings.take_over(new) {
            warn!(
                setting,
                "has changed, and counts from the next start on: systemctl restart berth-controller"
            );
        }
        let settings = &self.settings;
        let new_provisioners = self.mapping.send_if_modified(|in_force| {
            let new = Provisioners::new(settings.provisioners.clone());
            let changed = *in_force != new;
            *in_force = new;
            changed
        });
        self.pki.set(server_names(settings, self.service_cidr), settings.certificate_life);
        let renewed = certificates::renew(self.pki.clone()).await?;
        let reached_at = services::kubernetes::reached_at(settings.listen, &settings.advertise);
        services::kubernetes::publish(&self.objects, self.service_cidr, reached_at, self.api.port())
            .await
            .context("the Service kubernetes could not be written")?;
        info!(
            new_certificate = renewed.server,
            new_provisioners, "configuration and certificates were read again"
        );
        Ok(())
    }
}

fn server_names(settings: &Settings, service_cidr: AddressRange) -> ServerNames {
    // Pods reach the API at a Service's address.
    let advertised = settings.advertise.iter().cloned().chain([service_cidr.first().to_string()]);
    ServerNames::of_this_host(&settings.cluster_domain, &advertised.collect::<Vec<_>>())
}

/// Exchanges a join token and a signing request for an agent's certificate.
struct Joining {
    pki: Arc<Pki>,
    tokens: Tokens,
}

impl Join for Joining {
    fn join<'a>(
        &'a self,
        token: &'a str,
        node: &'a str,
        request_pem: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Joined, JoinRefused>> + Send + 'a>> {
        Box::pin(async move {
            let request =
                AgentRequest::from_pem(request_pem).map_err(|e| JoinRefused::Request(e.to_string()))?;
            self.tokens.redeem(token, node, &request.key_hash()).await.map_err(|e| match e {
                TokenError::Store(e) => JoinRefused::Unavailable(e.to_string()),
                TokenError::Invalid(reason) => JoinRefused::Request(reason),
                refused => JoinRefused::Token(refused.to_string()),
            })?;
            let certificate = self
                .pki
                .sign_agent(&request, node)
                .map_err(|e| JoinRefused::Unavailable(format!("no certificate could be made: {e}")))?;
            info!(node, "a host has joined");
            Ok(Joined { certificate, authority: self.pki.authority_pem().to_owned() })
        })
    }

    fn renew(&self, node: &str, key: &str, request_pem: &str) -> Result<Joined, JoinRefused> {
        self.pki
            .renew_agent(node, key, request_pem)
            .map_err(|error| match error {
                RenewError::Request(error) => JoinRefused::Request(error.to_string()),
                RenewError::Pki(error) => JoinRefused::Unavailable(error.to_string()),
            })
            .map(|certificate| Joined { certificate, authority: self.pki.authority_pem().to_owned() })
    }
}

/// How long parts may take to end.
const FAREWELL: Duration = Duration::from_secs(10);

/// Takes a port, and says which setting to change if it cannot.
async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} (--{flag})"))
}
