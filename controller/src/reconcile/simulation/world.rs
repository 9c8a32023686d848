//! What hosts and people do.

use berth_controller_core::status::Status;

use super::*;
use crate::objects::{DeleteOptions, Options, Propagation, key, prepare};

const NODE: &str = "a";
const GOOD: [&str; 3] = ["good-1", "good-2", "good-3"];
/// Pods of these never become Ready.
const BROKEN: [&str; 2] = ["broken-1", "broken-2"];

impl Simulation {
    fn now(&self) -> String {
        prepare::time(self.time.now())
    }

    fn a_pod(&mut self) -> Option<Arc<Object>> {
        let pods = self.all(PODS);
        if pods.is_empty() { None } else { Some(self.chance.one_of(&pods).clone()) }
    }

    pub async fn a_host_acts(&mut self) {
        match self.chance.below(8) {
            0 => {
                self.a_claim_is_let_go(false).await;
            }
            1 => self.a_process_ends(),
            _ => {
                if let Some(pod) = self.a_pod() {
                    self.treat(&pod, false).await;
                }
            }
        }
    }

    /// Everything that can be done; whether there was anything.
    pub async fn hosts_do_their_work(&mut self) -> bool {
        self.a_process_ends();
        let mut moved = self.a_claim_is_let_go(true).await;
        for pod in self.all(PODS) {
            moved |= self.treat(&pod, true).await;
        }
        moved
    }

    /// Processes whose pods were removed by force end too.
    fn a_process_ends(&mut self) {
        let pods = self.all(PODS);
        self.at_large.retain(|_, uid| pods.iter().any(|p| *p.meta.uid == **uid));
    }

    /// Whether a process on the host has it.
    pub fn is_used(&self, claim: &Object) -> bool {
        let runs = |pod: &Object| self.at_large.get(&pod.key.name).is_some_and(|uid| *pod.meta.uid == **uid);
        let uses = |pod: &Object| claims_of(&pod.value()).any(|c| c == claim.key.name);
        self.all(PODS).iter().any(|pod| runs(pod) && uses(pod))
    }

    /// A claim that goes and is not used goes.
    async fn a_claim_is_let_go(&mut self, all: bool) -> bool {
        let store = self.world.store().clone();
        let mut moved = false;
        for claim in self.all(CLAIMS).into_iter().filter(|c| c.meta.deleting) {
            if !self.is_used(&claim) && (all || self.chance.percent(50)) {
                let gone =
                    Transaction::new().unchanged(claim.key.clone(), claim.revision).delete(claim.key.clone());
                self.at_once(store.commit(gone)).await.unwrap();
                moved = true;
            }
        }
        moved
    }

    /// Brings a pod one step further; if all is well (`willing`), towards what it is to be.
    async fn treat(&mut self, stored: &Arc<Object>, willing: bool) -> bool {
        let (name, uid) = (stored.key.name.as_str(), stored.meta.uid.to_string());
        let mut pod = stored.value();
        let objects = self.world.clone();
        if stored.meta.deleting {
            // One that has stopped may wait for its finalizers.
            let runs = self.at_large.get(name) == Some(&uid);
            if !runs && !pod["spec"]["nodeName"].is_null() {
                return false;
            }
            self.at_large.retain(|_, running| *running != uid);
            self.at_once(objects.remove(PODS, "default", name, &uid)).await.unwrap();
            return true;
        }
        let now = self.now();
        let broken = BROKEN.iter().any(|image| pod["spec"]["containers"][0]["image"] == **image);
        let ready = rules::is_ready(&pod);
        let phase = pod["status"]["phase"].as_str().unwrap_or_default().to_owned();
        if pod["spec"]["nodeName"].is_null() {
            let there = |claim: &Key| objects.store().get(claim).is_some_and(|c| !c.meta.deleting);
            let has_claims = claims_of(&pod).all(|c| there(&key(CLAIMS, "default", &c)));
            // Never two: it waits until the last process of its name has ended.
            if !has_claims || self.at_large.get(name).is_some_and(|running| *running != uid) {
                return false;
            }
            self.at_large.insert(name.to_owned(), uid);
            pod["spec"]["nodeName"] = NODE.into();
        } else if phase == "Pending" {
            let state = if broken {
                json!({"waiting": {"reason": "CrashLoopBackOff"}})
            } else {
                json!({"running": {}})
            };
            pod["status"] = json!({
                "phase": "Running",
                "conditions": [
                    {"type": "Initialized", "status": "True", "lastTransitionTime": now},
                    {"type": "Ready", "status": "False", "lastTransitionTime": now},
                ],
                "containerStatuses": [{"name": "c", "state": state}],
            });
        } else if phase == "Running" && !ready && !broken && (willing || self.chance.percent(80)) {
            pod["status"]["conditions"][1] =
                json!({"type": "Ready", "status": "True", "lastTransitionTime": now});
        } else if phase == "Running" && !willing && self.chance.percent(12) {
            pod["status"] = json!({"phase": "Failed"});
        } else if ready && !willing && self.chance.percent(20) {
            pod["status"]["conditions"][1] =
                json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
        } else {
            return false;
        }
        let mut tx = Transaction::new().unchanged(stored.key.clone(), stored.revision);
        if phase == "Pending" {
            // With its pod a claim gets its volume.
            for claim in claims_of(&pod) {
                let Some(claim) = objects.store().get(&key(CLAIMS, "default", &claim)) else { continue };
                let mut value = claim.value();
                if value["status"]["phase"] != "Bound" {
                    value["status"]["phase"] = "Bound".into();
                    tx = tx.unchanged(claim.key.clone(), claim.revision).put(claim.key.clone(), value);
                }
            }
        }
        let tx = tx.put(stored.key.clone(), pod);
        // (Somebody may have written since this was listed.)
        let _ = self.at_once(objects.store().commit(tx)).await;
        true
    }

    pub fn an_image_arrives(&mut self) {
        let images = self.controller.as_ref().unwrap().images.clone();
        let mut asked = images.asked.lock().unwrap();
        if asked.is_empty() {
            return;
        }
        let which = self.chance.below(asked.len());
        let (image, answer) = asked.remove(which);
        drop(asked);
        if self.chance.percent(30) {
            self.say(|| format!("image {image} cannot be had"));
            let _ = answer.send(Err(format!("image {image} on host {NODE}: not found")));
        } else {
            self.arrived(image, answer);
        }
    }

    pub fn all_images_arrive(&mut self) -> bool {
        let images = self.controller.as_ref().unwrap().images.clone();
        let asked = std::mem::take(&mut *images.asked.lock().unwrap());
        let any = !asked.is_empty();
        asked.into_iter().for_each(|(image, answer)| self.arrived(image, answer));
        any
    }

    fn arrived(&mut self, image: String, answer: Answer) {
        self.say(|| format!("image {image} is there"));
        self.images.insert(image);
        // Nobody may want it any more.
        let _ = answer.send(Ok(()));
    }

    /// The image of a revision's template.
    pub fn image_of(&self, revision: &str) -> String {
        let revision = self.world.store().get(&key(REVISIONS, "default", revision)).unwrap().value();
        let image = &revision["data"]["spec"]["template"]["spec"]["containers"][0]["image"];
        image.as_str().unwrap().to_owned()
    }

    pub async fn a_set_is_made(&mut self) {
        let chance = &mut self.chance;
        let mut set = json!({
            "metadata": {"name": "web", "annotations": {}},
            "spec": {
                "replicas": chance.below(5),
                "serviceName": "web",
                "minReadySeconds": chance.one_of(&[0, 0, 7]),
                "revisionHistoryLimit": chance.below(3),
                "podManagementPolicy": chance.one_of(&["OrderedReady", "OrderedReady", "Parallel"]),
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": chance.one_of(&GOOD)}]},
                },
            },
        });
        if chance.percent(70) {
            set["spec"]["volumeClaimTemplates"] = json!([a_claim_template("data", "1Gi")]);
        }
        if chance.percent(30) {
            set["metadata"]["annotations"]["berth.dev/progress-deadline-seconds"] = "20".into();
        }
        if chance.percent(30) {
            set["metadata"]["annotations"]["berth.dev/auto-rollback"] = "true".into();
        }
        set["spec"]["persistentVolumeClaimRetentionPolicy"] = self.a_retention_policy();
        self.say(|| format!("a person makes the set {}", set["spec"]));
        let objects = self.world.clone();
        acceptable(self.at_once(objects.create(SETS, "default", set, &Options::default())).await);
    }

    fn a_retention_policy(&mut self) -> Value {
        let mut policy = || *self.chance.one_of(&["Retain", "Delete"]);
        json!({"whenDeleted": policy(), "whenScaled": policy()})
    }

    async fn change_set(&mut self, what: &str, mut change: impl FnMut(&mut Value)) {
        self.say(|| format!("a person: {what}"));
        let objects = self.world.clone();
        let changed = objects.modify(SETS, None, "default", "web", |set| {
            change(set);
            Ok(())
        });
        acceptable(self.at_once(changed).await);
    }

    async fn delete(&mut self, kind: &'static Kind, name: &str, options: DeleteOptions) {
        self.say(|| {
            format!("a person deletes {} {name} {:?} {:?}", kind.kind, options.grace, options.propagation)
        });
        let objects = self.world.clone();
        acceptable(self.at_once(objects.delete(kind, "default", name, &options)).await);
    }

    pub async fn a_person_acts(&mut self) {
        let Some(set) = self.set() else { return self.a_set_is_made().await };
        match self.chance.below(21) {
            0..3 => {
                let replicas = self.chance.below(5);
                self.change_set("scales", |set| set["spec"]["replicas"] = replicas.into()).await;
            }
            3..8 => {
                let broken = self.chance.percent(35);
                let image = *self.chance.one_of(if broken { &BROKEN } else { &GOOD[..2] });
                self.change_set("another template", |set| image_to(set, image)).await;
            }
            8 | 9 => {
                if let Some(pod) = self.a_pod() {
                    let grace = self.chance.percent(30).then_some(0);
                    self.delete(PODS, &pod.key.name, DeleteOptions { grace, ..DeleteOptions::default() })
                        .await;
                }
            }
            10 => self.relabels_a_pod().await,
            11 => {
                let claims = self.all(CLAIMS);
                if !claims.is_empty() {
                    let name = self.chance.one_of(&claims).key.name.clone();
                    self.delete(CLAIMS, &name, DeleteOptions::default()).await;
                }
            }
            12 | 13 => {
                let at_once = self.chance.one_of(&[json!(1), json!(2), json!("50%")]).clone();
                let strategy = match self.chance.below(4) {
                    0 => json!({"type": "OnDelete"}),
                    _ => json!({"type": "RollingUpdate", "rollingUpdate": {
                        "partition": self.chance.below(4), "maxUnavailable": at_once,
                    }}),
                };
                self.change_set("another strategy", |set| set["spec"]["updateStrategy"] = strategy.clone())
                    .await;
            }
            14 => {
                let policy = self.a_retention_policy();
                self.change_set("another retention policy", |set| {
                    set["spec"]["persistentVolumeClaimRetentionPolicy"] = policy.clone();
                })
                .await;
            }
            15 => {
                let reserved = *self.chance.one_of(&["", "0", "1", "0,2"]);
                self.change_set("reserves ordinals", |set| {
                    set["metadata"]["annotations"]["berth.dev/reserve-ordinals"] = reserved.into();
                })
                .await;
            }
            16 => {
                let start = self.chance.below(3);
                self.change_set("another start", |set| set["spec"]["ordinals"] = json!({"start": start}))
                    .await;
            }
            17 => {
                let (rest, limit) = (*self.chance.one_of(&[0, 5]), self.chance.below(3));
                self.change_set("other limits", |set| {
                    set["spec"]["minReadySeconds"] = rest.into();
                    set["spec"]["revisionHistoryLimit"] = limit.into();
                })
                .await;
            }
            18 if !object::deleting(&set) => {
                let all = [Propagation::Background, Propagation::Foreground, Propagation::Orphan];
                let propagation = *self.chance.one_of(&all);
                if propagation == Propagation::Orphan {
                    self.orphaning.insert(object::uid(&set).to_owned());
                }
                let propagation = Some(propagation);
                self.delete(SETS, "web", DeleteOptions { propagation, ..DeleteOptions::default() }).await;
            }
            19 => self.wants_more_storage(&set).await,
            _ => self.makes_a_pod_by_hand().await,
        }
    }

    async fn wants_more_storage(&mut self, set: &Value) {
        let mut templates = set["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        if templates.is_empty() || templates.len() == 1 && self.chance.percent(30) {
            let name = if templates.is_empty() { "data" } else { "more" };
            templates.push(a_claim_template(name, "1Gi"));
        } else {
            let request = &mut templates[0]["spec"]["resources"]["requests"]["storage"];
            *request = if *request == "1Gi" { "2Gi".into() } else { "3Gi".into() };
        }
        self.change_set("more storage", |set| set["spec"]["volumeClaimTemplates"] = templates.clone().into())
            .await;
    }

    async fn relabels_a_pod(&mut self) {
        let Some(pod) = self.a_pod() else { return };
        self.say(|| format!("a person relabels {}", pod.key.name));
        let objects = self.world.clone();
        let changed = objects.modify(PODS, None, "default", &pod.key.name, |pod| {
            let app = if pod["metadata"]["labels"]["app"] == "web" { "other" } else { "web" };
            pod["metadata"]["labels"]["app"] = app.into();
            Ok(())
        });
        acceptable(self.at_once(changed).await);
    }

    /// One that has the name of a pod of the set, and may be adopted.
    async fn makes_a_pod_by_hand(&mut self) {
        let name = format!("web-{}", self.chance.below(4));
        self.say(|| format!("a person makes {name}"));
        let app = *self.chance.one_of(&["web", "other"]);
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": app}},
            "spec": {"containers": [{"name": "c", "image": "good-1"}]},
        });
        let objects = self.world.clone();
        acceptable(self.at_once(objects.create(PODS, "default", pod, &Options::default())).await);
    }

    /// The last thing that people do: what cannot become whole by itself is put right.
    pub async fn people_want_it_whole(&mut self) {
        for pod in self.all(PODS) {
            if object::label(&pod.value(), "app") != Some("web") {
                self.delete(PODS, &pod.key.name, DeleteOptions::default()).await;
            }
        }
        match self.set() {
            None if self.chance.percent(60) => self.a_set_is_made().await,
            None => {}
            Some(_) => {
                let image = *self.chance.one_of(&GOOD);
                self.change_set("a good template", |set| image_to(set, image)).await;
                // What is broken may be where nothing is replaced.
                if self.chance.percent(40) || self.is_broken_for_good() {
                    let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}});
                    self.change_set("all of it", |set| set["spec"]["updateStrategy"] = strategy.clone())
                        .await;
                }
            }
        }
        self.what_waits_for_nothing_goes().await;
    }

    /// Pods that an earlier set left, on claims that this one does not make: where those are gone, nobody but a
    /// person can help.
    async fn what_waits_for_nothing_goes(&mut self) {
        let set = self.set().unwrap_or_default();
        let templates = set["spec"]["volumeClaimTemplates"].as_array().cloned().unwrap_or_default();
        for pod in self.all(PODS) {
            let made = |claim: &str| {
                templates.iter().any(|t| claim == format!("{}-{}", object::name(t), pod.key.name))
            };
            if claims_of(&pod.value()).any(|claim| !made(&claim)) {
                self.delete(PODS, &pod.key.name, DeleteOptions::default()).await;
            }
        }
    }

    fn is_broken_for_good(&self) -> bool {
        let Some(set) = self.set() else { return false };
        let broken = |image: &str| BROKEN.contains(&image);
        let current = set["status"]["currentRevision"].as_str().filter(|r| self.has_revision(r));
        let on_delete = set["spec"]["updateStrategy"]["type"] == "OnDelete";
        let image = |pod: &Value| pod["spec"]["containers"][0]["image"].as_str().is_some_and(broken);
        current.is_some_and(|r| broken(&self.image_of(r)))
            || on_delete && self.all(PODS).iter().any(|p| image(&p.value()))
    }

    fn has_revision(&self, name: &str) -> bool {
        self.world.store().get(&key(REVISIONS, "default", name)).is_some()
    }
}

fn a_claim_template(name: &str, storage: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": storage}}},
    })
}

fn image_to(set: &mut Value, image: &str) {
    set["spec"]["template"]["spec"]["containers"][0]["image"] = image.into();
}

pub fn claims_of(pod: &Value) -> impl Iterator<Item = String> {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.filter_map(|v| Some(v["persistentVolumeClaim"]["claimName"].as_str()?.to_owned()))
}

/// People may come too late, or be told that it is there already; nothing that they do here is invalid.
fn acceptable<T>(done: Result<T, Status>) {
    if let Err(status) = done {
        assert!(matches!(status.code, 404 | 409), "{}", status.message);
    }
}
