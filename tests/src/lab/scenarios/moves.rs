//! Pods and the hosts they leave, or do not.

use super::*;

pub fn drain(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    for _ in 0..2 {
        let from = lab.host_of("redis-0")?.kind.name;
        let uid = lab.uid("redis-0")?;
        step(&format!("{from} is drained: redis-0 goes on elsewhere"));
        lab.kubectl
            .run(&format!("drain {from} --ignore-daemonsets --delete-emptydir-data --timeout=110s"))?;
        lab.replaced("redis-0", &uid)?;
        let to = lab.host_of("redis-0")?.kind.name;
        ensure!(to != from, "redis-0 is still on {from}");
        ledger.goes_on()?;
        lab.kubectl.run(&format!("uncordon {from}"))?;
    }
    ledger.verdict()?;
    lab.clear()
}

pub fn cut_off(lab: &Lab) -> Result<()> {
    let ledger = Ledger::start(lab)?;
    let lost = lab.host_of("redis-0")?;
    let name = lost.kind.name;
    let uid = lab.uid("redis-0")?;

    step(&format!("{name}'s cable is pulled: it is silent, and its pods stay its own"));
    lost.cable(false)?;
    lab.node_is(name, "Unknown")?;
    ensure!(lab.uid("redis-0")? == uid, "redis-0 was replaced");
    if lab.host_of("postgres-0")?.kind != lost.kind {
        ledger.one_goes_on("postgres")?;
    }

    step("deleted by force, it is still started nowhere else: an event says for whom it waits");
    lab.kubectl.run("delete pod redis-0 --force --grace-period=0")?;
    lab.told("redis-0", "FailedScheduling", &uid)?;
    ensure!(lab.kubectl.field("pod redis-0", ".spec.nodeName")?.is_empty(), "redis-0 was bound");

    step("the cable is back: the former life ends, then the next begins");
    lost.cable(true)?;
    lab.node_is(name, "True")?;
    lab.replaced("redis-0", &uid)?;
    ledger.verdict()?;
    lab.clear()
}
