//! The one task that drives one life of a pod.
//!
//! ```text
//!   orders (assignment, stop) ─┐
//!   steps that ended ──────────┼─► Observed ─► lifecycle ─► steps begun, each on a task of its own
//!   time ──────────────────────┘        │
//!                                       └─► state file, status, events, what the front shows
//! ```
//! What is about to be acted on is on disk before it is acted on: a step that leaves traces waits for that on
//! its own task, so that the others need not.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use berth_agent_core::container::Phase;
use berth_agent_core::{Event, Fault, Observed, Outcome, Publisher, Remembered, Step, lifecycle, status};
use berth_proto::{Assignment, PodEvent, PodRef, PodStatus};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::clock::Clock;
use super::host::{Host, Subjects};
use super::outbox::Outbox;
use crate::network::HostPorts;
use crate::state::{Record, State, Ticket};

/// What must be on disk before a step is given this long; then the step fails, saying why.
const ON_DISK: Duration = Duration::from_secs(10);

/// What all drivers share.
#[derive(Clone)]
pub struct Surroundings {
    pub host: Arc<dyn Host>,
    pub state: State,
    pub outbox: Arc<Outbox>,
    pub clock: Clock,
    pub host_ips: Arc<[String]>,
    pub host_ports: HostPorts,
    /// Counts whatever changes what the front shows of any pod.
    pub changes: watch::Sender<u64>,
}

impl Surroundings {
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }
}

/// What the front and the driver of a pod share.
pub struct Shared {
    pub pod: PodRef,
    orders: Mutex<Orders>,
    ordered: Notify,
    view: Mutex<View>,
}

/// The latest orders; taken by the driver all at once.
#[derive(Default)]
struct Orders {
    assignment: Option<Assignment>,
    /// The shortest grace asked for.
    stop: Option<Duration>,
    /// Say again that it has stopped, if it has.
    answer: bool,
    /// Volumes that are to be mounted anew, and why.
    lost: Vec<(String, String)>,
}

/// What the front shows of a pod.
#[derive(Default)]
pub struct View {
    pub status: PodStatus,
    pub stopping: bool,
    /// Nothing of it is left.
    pub gone: bool,
    /// By container: the current or last instance.
    pub instances: BTreeMap<String, Instance>,
    /// Containers the assignment names.
    pub names: Vec<String>,
    /// None for what nothing is known of.
    pub assignment: Option<Arc<Assignment>>,
}

/// An instance of a container, as the front needs it.
pub struct Instance {
    pub attempt: u32,
    pub ended: watch::Sender<bool>,
}

impl Shared {
    pub fn new(pod: PodRef) -> Shared {
        Shared { pod, orders: Mutex::default(), ordered: Notify::new(), view: Mutex::default() }
    }

    pub fn apply(&self, assignment: Assignment) {
        self.orders().assignment = Some(assignment);
        self.ordered.notify_one();
    }

    pub fn stop(&self, grace: Duration) {
        let mut orders = self.orders();
        orders.stop = Some(orders.stop.map_or(grace, |before| before.min(grace)));
        orders.answer = true;
        drop(orders);
        self.ordered.notify_one();
    }

    /// What is mounted of this volume is gone.
    pub fn lost(&self, volume: &str, why: String) {
        self.orders().lost.push((volume.to_owned(), why));
        self.ordered.notify_one();
    }

    pub fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See the module.
pub struct Driver {
    shared: Arc<Shared>,
    around: Surroundings,
    assignment: Arc<Assignment>,
    observed: Observed,
    publisher: Publisher,
    under_way: JoinSet<Outcome>,
    steps: HashMap<Id, (Step, AbortHandle)>,
    saved: Saved,
    reported: bool,
    /// Nothing is known of it but that it must go: it is neither kept in the state nor reported.
    unknown: bool,
}

/// What was last given to the state file.
struct Saved {
    assignment: Arc<Assignment>,
    remembered: Remembered,
    urgent: Remembered,
    ticket: Option<Ticket>,
}

impl Driver {
    /// A pod that has just been assigned, or (`status`: as published before) one that is taken up again.
    pub fn new(
        shared: Arc<Shared>,
        around: Surroundings,
        assignment: Assignment,
        observed: Observed,
        status: Option<PodStatus>,
        unknown: bool,
    ) -> Driver {
        let assignment = Arc::new(assignment);
        let remembered = observed.remember();
        let mut driver = Driver {
            saved: Saved {
                assignment: assignment.clone(),
                urgent: remembered.urgent(),
                remembered,
                ticket: None,
            },
            shared,
            around,
            assignment,
            observed,
            publisher: Publisher::restore(status),
            under_way: JoinSet::new(),
            steps: HashMap::new(),
            reported: false,
            unknown,
        };
        driver.write(true);
        driver.publish();
        driver
    }

    /// Drives the pod until nothing of it is left (and on, until it is dropped: it may be asked again).
    /// `gone` is called once when nothing is left.
    pub async fn run(mut self, gone: impl FnOnce() + Send) {
        let mut gone = Some(gone);
        loop {
            self.take_orders();
            let wake = self.begin();
            self.save();
            self.publish();
            if self.observed.gone {
                self.under_way.abort_all();
                self.report();
                if let Some(gone) = gone.take() {
                    gone();
                }
            }
            let clock = self.around.clock;
            let shared = self.shared.clone();
            let sleep = async {
                match wake {
                    Some(at) => tokio::time::sleep_until(clock.instant(at)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = self.under_way.join_next_with_id(), if !self.under_way.is_empty() => {
                    if let Some(ended) = ended {
                        self.ended(ended);
                    }
                    // What else has ended by now shares one round.
                    while let Some(ended) = self.under_way.try_join_next_with_id() {
                        self.ended(ended);
                    }
                }
                () = shared.ordered.notified() => {}
                () = sleep => {}
            }
        }
    }

    fn take_orders(&mut self) {
        let orders = std::mem::take(&mut *self.shared.orders());
        let now = self.around.clock.now();
        if let Some(assignment) = orders.assignment {
            self.observed.assigned(&self.assignment, &assignment, now);
            self.assignment = Arc::new(assignment);
        }
        for (volume, why) in orders.lost {
            self.observed.volume_lost(&self.assignment, &volume, &why, now);
        }
        if let Some(grace) = orders.stop {
            self.observed.stop(&self.assignment, grace, now);
        }
        if orders.answer {
            self.reported = false;
        }
    }

    /// Begins everything that is to be begun; says when to look again.
    fn begin(&mut self) -> Option<berth_agent_core::Time> {
        loop {
            let now = self.around.clock.now();
            let steps = lifecycle(&self.assignment, &self.observed, now);
            if steps.begin.is_empty() {
                // The status may change by time alone: ErrImagePull becomes ImagePullBackOff.
                return steps.wake;
            }
            for step in &steps.begin {
                self.observed.begin(step, &self.assignment, now);
            }
            // Before they are done: what they are done for.
            self.save();
            for step in steps.begin {
                self.perform(step);
            }
        }
    }

    fn perform(&mut self, step: Step) {
        for (other, task) in self.steps.values() {
            if step.supersedes(other) {
                task.abort();
            }
        }
        let subjects = Subjects {
            assignment: self.assignment.clone(),
            complete: self.observed.complete,
            ips: self.observed.ips.clone(),
        };
        tracing::debug!(pod = %self.shared.pod.name, ?step, "begun");
        let ticket = self.saved.ticket.clone().filter(|_| leaves_traces(&step));
        let doing = self.around.host.clone().perform(step.clone(), subjects);
        // What ends a pod goes on even if the disk is full.
        let ends = !matches!(step, Step::Create { .. } | Step::Start { .. } | Step::PostStart { .. });
        let task = self.under_way.spawn(async move {
            if let Some(ticket) = ticket {
                match ticket.durable(ON_DISK).await {
                    Err(error) if !ends => return Outcome::failed(error.to_string()),
                    _ => {}
                }
            }
            doing.await
        });
        self.steps.insert(task.id(), (step, task));
    }

    fn ended(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let id = error.id();
                if error.is_cancelled() {
                    self.steps.remove(&id);
                    return;
                }
                tracing::error!(pod = %self.shared.pod.name, %error, "a step panicked");
                let message = "a bug in the agent; its log has the details".to_owned();
                (id, Outcome::Failed(Fault { reason: None, message }))
            }
        };
        let Some((step, _)) = self.steps.remove(&id) else { return };
        if self.steps.values().any(|(other, _)| other.supersedes(&step)) {
            // It ended just as another took its place.
            return;
        }
        if let Outcome::Failed(fault) = &outcome {
            let pod = &self.shared.pod;
            tracing::info!(namespace = %pod.namespace, pod = %pod.name, ?step, fault = %fault.message, "failed");
        }
        let now = self.around.clock.now();
        self.observed.record(&step, outcome, &self.assignment, now);
    }

    /// Gives what has changed to the state file.
    fn save(&mut self) {
        let remembered = self.observed.remember();
        let same_assignment = Arc::ptr_eq(&self.assignment, &self.saved.assignment);
        if same_assignment && remembered == self.saved.remembered {
            return;
        }
        let urgent = remembered.urgent();
        let hurry = !same_assignment || urgent != self.saved.urgent;
        self.saved.assignment = self.assignment.clone();
        self.saved.remembered = remembered;
        self.saved.urgent = urgent;
        self.write(hurry);
    }

    fn write(&mut self, urgent: bool) {
        if self.unknown {
            return;
        }
        let record = Record {
            assignment: (*self.assignment).clone(),
            remembered: self.saved.remembered.clone(),
            status: self.publisher.last().cloned(),
        };
        let ticket = self.around.state.put(&self.shared.pod.uid, &record, urgent);
        if urgent {
            self.saved.ticket = Some(ticket);
        }
    }

    /// Sends the status if it says anything new, and the events; refreshes what the front shows.
    fn publish(&mut self) {
        for event in self.observed.take_events() {
            let event = self.event(event);
            self.around.outbox.event(event);
        }
        let mut status = status(&self.assignment, &self.observed, self.around.clock.now());
        status.host_ip = self.around.host_ips.first().cloned().unwrap_or_default();
        let ips: &[String] = if self.observed.gone { &[] } else { &self.observed.ips };
        self.around.host_ports.put(&self.shared.pod.uid, &self.assignment, ips);
        let news = self.publisher.publish(status);
        let mut view = self.shared.view();
        let before = (view.gone, view.stopping);
        view.gone = self.observed.gone;
        view.stopping = self.observed.stop.is_some();
        view.assignment = (!self.unknown).then(|| self.assignment.clone());
        let mut changed = before != (view.gone, view.stopping);
        if view.names.is_empty() || news.is_some() {
            let specs = self.assignment.init_containers.iter().chain(&self.assignment.containers);
            view.names = specs.map(|spec| spec.name.clone()).collect();
        }
        for (name, container) in &self.observed.containers {
            let (attempt, ended) = match &container.phase {
                Phase::Running(_) => (container.attempt, false),
                Phase::Ended(ended) => (ended.attempt, true),
                _ => match &container.last {
                    Some(last) => (last.attempt, true),
                    None => continue,
                },
            };
            match view.instances.get(name) {
                Some(instance) if instance.attempt == attempt => {
                    instance.ended.send_if_modified(|was| std::mem::replace(was, ended) != ended);
                }
                _ => {
                    let ended = watch::Sender::new(ended);
                    view.instances.insert(name.clone(), Instance { attempt, ended });
                }
            }
        }
        // One that was taken up again may have nothing new to say, and yet is shown.
        let shown = news.as_ref().or(self.publisher.last()).filter(|status| view.status != **status);
        if let Some(status) = shown {
            view.status.clone_from(status);
            changed = true;
        }
        drop(view);
        if changed {
            self.around.changed();
        }
        if let Some(status) = news.filter(|_| !self.unknown) {
            self.around.outbox.status(status);
        }
    }

    fn event(&self, event: Event) -> PodEvent {
        let field_path = event.container.map_or(String::new(), |name| {
            let init = self.assignment.init_containers.iter().any(|spec| spec.name == name);
            let field = if init { "initContainers" } else { "containers" };
            format!("spec.{field}{{{name}}}")
        });
        PodEvent {
            pod: Some(self.shared.pod.clone()),
            r#type: if event.warning { "Warning" } else { "Normal" }.to_owned(),
            reason: event.reason.to_owned(),
            message: event.message,
            field_path,
            at_ms: self.around.clock.now().0,
        }
    }

    /// Nothing of the pod is left. One that ended by itself keeps its place until it is told to stop: its logs
    /// can be read until then.
    fn report(&mut self) {
        if self.observed.stop.is_some() && !self.reported && !self.unknown {
            self.reported = true;
            self.around.outbox.stopped(self.shared.pod.clone());
        }
    }
}

/// Whether a step is one that must find what led to it on disk if the agent dies in it.
fn leaves_traces(step: &Step) -> bool {
    matches!(
        step,
        Step::Create { .. }
            | Step::Start { .. }
            | Step::PostStart { .. }
            | Step::PreStop { .. }
            | Step::Signal { .. }
            | Step::Remove { .. }
    )
}
