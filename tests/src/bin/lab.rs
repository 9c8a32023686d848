//! `make lab`: virtual machines with systemd and kernel NFS, installed as docs/install.md says.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use berth_tests::lab::scenarios::{ALL, Scenario};
use berth_tests::lab::{Lab, Size, step};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(about = "Virtual machines with systemd and kernel NFS, and what is tried on them")]
struct Args {
    #[command(subcommand)]
    command: Sub,
}

#[derive(Subcommand)]
enum Sub {
    /// Boots and installs a lab, and leaves it running.
    Up {
        /// Two machines in place of five: the controller is the NFS server too, and there is one host.
        #[arg(long)]
        small: bool,
    },
    /// Runs scenarios, on the lab that is up or on one made for them.
    Run {
        scenarios: Vec<String>,
        /// Leave the machines running that were made for them.
        #[arg(long)]
        keep: bool,
    },
    /// A shell on a machine.
    Shell { machine: String },
    /// kubectl on the lab's cluster.
    Kubectl {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Which scenarios there are.
    List,
    /// Removes machines and network; image, packages and logs stay.
    Down,
}

fn main() -> Result<()> {
    match Args::parse().command {
        Sub::Up { small } => {
            Lab::up(if small { Size::SMALL } else { Size::FULL })?;
            println!("The lab is up. Go on with:");
            println!("  make lab SCENARIO=smoke            one of: {}", names());
            println!("  make lab-shell HOST=node1          a shell on a machine (controller, nfs, node1...)");
            println!("  target/debug/lab kubectl get pods  kubectl on its cluster");
            println!("  make lab-down                      removes it");
            Ok(())
        }
        Sub::Run { scenarios, keep } => run(&scenarios, keep),
        Sub::Shell { machine } => up()?.shell(&machine),
        Sub::Kubectl { args } => {
            let lab = up()?;
            let status = lab.kubectl.command().args(args).status()?;
            std::process::exit(status.code().unwrap_or(1));
        }
        Sub::List => {
            for Scenario { name, what, size, .. } in ALL {
                println!("{name:20} {} machines  {what}", size.machines());
            }
            Ok(())
        }
        Sub::Down => Lab::down(),
    }
}

fn names() -> String {
    ALL.iter().map(|scenario| scenario.name).collect::<Vec<_>>().join(", ")
}

fn up() -> Result<Lab> {
    Lab::existing()?.context("no lab is up: make lab")
}

fn run(names_given: &[String], keep: bool) -> Result<()> {
    let mut scenarios = Vec::new();
    for name in names_given {
        let found = ALL.iter().find(|scenario| scenario.name == name);
        scenarios.push(found.with_context(|| format!("there is no scenario {name:?}, but: {}", names()))?);
    }
    let size = scenarios.iter().fold(Size::SMALL, |size, scenario| size.and(scenario.size));
    let (lab, made) = match Lab::existing()? {
        Some(lab) => (lab, false),
        None => {
            let up = Lab::up(size);
            if up.is_err() {
                // What there is of it may tell more; it is removed with the next one.
                eprintln!("the lab's machines did not come up; their consoles are in target/lab/run");
            }
            (up?, true)
        }
    };
    if lab.size.and(size) != lab.size {
        bail!("the lab that is up has too few machines: make lab-down, and again");
    }
    let mut failed = Vec::new();
    for scenario in scenarios {
        step(&format!("SCENARIO {}: {}", scenario.name, scenario.what));
        let begun = Instant::now();
        match lab.begin(scenario).and_then(|()| (scenario.run)(&lab)) {
            Ok(()) => {
                let took = begun.elapsed().as_secs();
                step(&format!("{} passed in {}:{:02}", scenario.name, took / 60, took % 60));
            }
            Err(error) => {
                let logs = lab.keep_logs(scenario.name)?;
                eprintln!("{} FAILED: {error:?}\nits logs: {}", scenario.name, logs.display());
                failed.push(scenario.name);
            }
        }
    }
    if made && !keep {
        Lab::down()?;
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}
