//! docs/operate.md, followed to the letter while databases are written to.

use super::*;
use crate::lab::install::{self, Block};

pub fn operate(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let mut told = String::new();
    for block in install::blocks(install::OPERATION)? {
        if block.step != told {
            step(&format!("docs/operate.md: {}", block.step));
            told.clone_from(&block.step);
        }
        let is = |command: &str| block.commands.contains(command);
        if is("apt-get install") {
            for machine in &block.machines {
                let package = if machine == "controller" { "berth-controller" } else { "berth-agent" };
                hosts::newer(lab, machine, package)?;
                lab.on(machine, &format!("rm /root/{package}_*.deb; mv /root/newer/*.deb /root/"))?;
            }
        }
        let before = Before::look(lab, &block)?;
        lab.follow(&block)?;
        before.has_changed(lab, &block)?;
        for set in ["redis", "postgres"] {
            lab.settled(set, 1)?;
        }
        ledger.goes_on()?;
        if !is("kubectl drain") {
            unharmed(lab, &block.commands, &before.lives)?;
        }
        if is("berth-controller restore") {
            step("a restored controller starts pods as ever, now that each host has told what it runs");
            let uid = lab.uid("redis-0")?;
            lab.kubectl.run("delete pod redis-0")?;
            lab.replaced("redis-0", &uid)?;
        }
        if is("kubectl delete node") {
            step("its certificate is revoked: it is refused");
            lab.on("node2", "systemctl start berth-agent")?;
            wait::until_true("the host to be refused", READY, || {
                let log = lab.on("node2", "journalctl --no-pager -u berth-agent -n 20")?;
                Ok(log.contains("was deleted, and its certificate revoked"))
            })?;
            ensure!(lab.kubectl.run("get node node2").is_err(), "node2 has come back");
        }
    }
    ledger.verdict()?;
    lab.clear()
}

/// What a block of commands is to change.
struct Before {
    lives: String,
    files: Vec<(&'static str, &'static str, String)>,
    versions: Vec<(String, String)>,
}

impl Before {
    fn look(lab: &Lab, block: &Block) -> Result<Before> {
        let mut files = Vec::new();
        for (machine, file, command) in [
            ("controller", "/var/lib/berth-controller/pki/server.pem", "pki/server.pem"),
            ("controller", "/var/lib/berth-controller/admin.kubeconfig", "pki/admin.pem"),
            ("node2", "/var/lib/berth/pki/agent.pem", "pki/agent.key"),
        ] {
            if block.commands.contains(command) {
                files.push((machine, file, lab.on(machine, &format!("cat {file}"))?));
            }
        }
        let mut versions = Vec::new();
        if block.commands.contains("apt-get install") {
            for machine in &block.machines {
                versions.push((machine.clone(), version(lab, machine)?));
            }
        }
        Ok(Before { lives: lab.lives()?, files, versions })
    }

    fn has_changed(&self, lab: &Lab, block: &Block) -> Result<()> {
        for (machine, file, before) in &self.files {
            wait::until_true(&format!("another {file}"), READY, || {
                Ok(lab.on(machine, &format!("cat {file}")).is_ok_and(|now| !now.is_empty() && now != *before))
            })?;
        }
        for (machine, before) in &self.versions {
            ensure!(version(lab, machine)? != *before, "{machine} still has {before}");
        }
        // All hosts that are to be there are Ready, with sessions of now.
        let gone = ["disable --now berth-agent", "kubectl delete node"];
        if gone.iter().any(|command| block.commands.contains(command)) {
            return Ok(());
        }
        for node in lab.kubectl.run("get nodes -o name")?.lines() {
            lab.node_is(node.trim_start_matches("node/"), "True")?;
        }
        if block.commands.contains("enable --now berth-agent") {
            lab.kubectl.run("wait --for=create node/node2 --timeout=120s")?;
            lab.node_is("node2", "True")?;
        }
        Ok(())
    }
}

fn version(lab: &Lab, machine: &str) -> Result<String> {
    lab.on(machine, "dpkg-query -W -f '${Version}' 'berth-*'")
}
