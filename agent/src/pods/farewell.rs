//! The host is shut down: its pods end first, those of a set one after the other with the highest ordinal first, each
//! within its grace period.
//!
//! What must never happen here: a pod reported as stopped. It is still this host's, and the agent starts it again when
//! the host is back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use berth_agent_core::Step;
use berth_agent_core::observed::find;
use berth_proto::{Assignment, PodRef};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::host::{Host, Subjects};
use super::{Pods, grace};

/// From KILL to the end of a container that is not stuck in the kernel.
const KILLED: Duration = Duration::from_secs(10);

/// Pods that are to end, of one set each, in their order.
type Row = Vec<Leaving>;

struct Leaving {
    assignment: Arc<Assignment>,
    ips: Vec<String>,
    /// Container and attempt.
    running: Vec<(String, u32)>,
}

impl Leaving {
    fn grace(&self) -> Duration {
        grace(self.assignment.termination_grace_seconds)
    }
}

/// The pods of a host that is shut down. Nothing restarts them any more.
pub struct Farewell {
    host: Arc<dyn Host>,
    rows: Vec<Row>,
}

impl Pods {
    /// Takes the pods away from their drivers, in order to end them. Nothing else is to be asked of these pods then.
    pub fn farewell(&self) -> Farewell {
        let mut held = self.inner.held();
        held.behind.clear();
        let lives = std::mem::take(&mut held.pods);
        let leaving = lives.values().filter_map(|life| {
            let view = life.shared.view();
            let running = view.instances.iter().filter(|(_, instance)| !*instance.ended.borrow());
            let running: Vec<_> = running.map(|(name, instance)| (name.clone(), instance.attempt)).collect();
            let leaving =
                Leaving { assignment: view.assignment.clone()?, ips: view.status.pod_ips.clone(), running };
            (!leaving.running.is_empty()).then(|| (life.shared.pod.clone(), leaving))
        });
        let rows = rows(leaving.collect());
        Farewell { host: self.inner.around.host.clone(), rows }
    }
}

impl Farewell {
    /// How many pods there are to end.
    pub fn pods(&self) -> usize {
        self.rows.iter().map(Vec::len).sum()
    }

    /// The most it may take.
    pub fn limit(&self) -> Duration {
        let row = |row: &Row| row.iter().map(|pod| pod.grace() + KILLED).sum();
        self.rows.iter().map(row).max().unwrap_or_default()
    }

    /// Ends them all.
    pub async fn run(self) {
        let mut rows = JoinSet::new();
        for row in self.rows {
            let host = self.host.clone();
            rows.spawn(async move {
                for pod in row {
                    end(&host, pod).await;
                }
            });
        }
        while rows.join_next().await.is_some() {}
    }
}

/// By set, as far as names tell: `web-10` before `web-9`.
fn rows(leaving: Vec<(PodRef, Leaving)>) -> Vec<Row> {
    let mut sets: BTreeMap<(String, String), Vec<(u64, Leaving)>> = BTreeMap::new();
    for (pod, leaving) in leaving {
        let parts = pod.name.rsplit_once('-').and_then(|(set, ordinal)| Some((set, ordinal.parse().ok()?)));
        let (set, ordinal) = parts.unwrap_or((&pod.name, 0));
        sets.entry((pod.namespace.clone(), set.to_owned())).or_default().push((ordinal, leaving));
    }
    let in_order = |mut pods: Vec<(u64, Leaving)>| {
        pods.sort_by_key(|(ordinal, _)| std::cmp::Reverse(*ordinal));
        pods.into_iter().map(|(_, pod)| pod).collect()
    };
    sets.into_values().map(in_order).collect()
}

async fn end(host: &Arc<dyn Host>, pod: Leaving) {
    let begun = Instant::now();
    let deadline = begun + pod.grace();
    let name = pod.assignment.pod.as_ref().map_or("", |pod| &pod.name).to_owned();
    let subjects = Subjects { assignment: pod.assignment.clone(), complete: true, ips: pod.ips };
    let mut containers = JoinSet::new();
    for (container, attempt) in pod.running {
        let (host, subjects) = (host.clone(), subjects.clone());
        containers.spawn(async move {
            let perform = |step| host.clone().perform(step, subjects.clone());
            let wait = || perform(Step::Wait { container: container.clone(), attempt });
            let signal = |kill| Step::Signal { container: container.clone(), attempt, kill };
            let gently = async {
                if find(&subjects.assignment, &container).is_some_and(|spec| spec.pre_stop.is_some()) {
                    let within = deadline.saturating_duration_since(Instant::now());
                    perform(Step::PreStop { container: container.clone(), attempt, within }).await;
                }
                perform(signal(false)).await;
                wait().await
            };
            if timeout_at(deadline, gently).await.is_err() {
                let killed = async {
                    perform(signal(true)).await;
                    wait().await
                };
                let _ = timeout(KILLED, killed).await;
            }
        });
    }
    while containers.join_next().await.is_some() {}
    tracing::info!(pod = %name, took = ?begun.elapsed(), "ended, since the host is shut down");
}
