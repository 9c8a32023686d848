//! A container's environment, in the order Kubernetes builds it: `envFrom` first, then `env`, where each
//! variable may refer to those before it, and a later one of the same name replaces the earlier. All may refer to what
//! names Services, which comes last, where there is none of that name.

use std::collections::BTreeMap;

use berth_proto::EnvVar;
use serde_json::Value;

use super::expand::expand;
use super::{Sources, Subject, list, strings, text};
use crate::object;

/// The variables by name, sorted as they are declared; an Err says why the container cannot start.
pub(super) struct Environment {
    order: Vec<String>,
    values: BTreeMap<String, String>,
    links: BTreeMap<String, String>,
}

impl Environment {
    pub fn of(container: &Value, subject: &Subject, sources: &Sources) -> Result<Environment, String> {
        let mut env =
            Environment { order: Vec::new(), values: BTreeMap::new(), links: subject.links.clone() };
        for from in list(&container["envFrom"]) {
            env.add_all(from, sources)?;
        }
        for variable in list(&container["env"]) {
            env.add(variable, subject, sources)?;
        }
        Ok(env)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).or_else(|| self.links.get(name)).map(String::as_str)
    }

    pub fn expand(&self, input: &str) -> String {
        expand(input, |name| self.get(name))
    }

    pub fn into_variables(mut self) -> Vec<EnvVar> {
        for (name, value) in std::mem::take(&mut self.links) {
            if !self.values.contains_key(&name) {
                self.set(name, value);
            }
        }
        let order = std::mem::take(&mut self.order);
        order
            .into_iter()
            .filter_map(|name| Some(EnvVar { value: self.values.remove(&name)?, name }))
            .collect()
    }

    fn set(&mut self, name: String, value: String) {
        if self.values.insert(name.clone(), value).is_none() {
            self.order.push(name);
        }
    }

    fn add_all(&mut self, from: &Value, sources: &Sources) -> Result<(), String> {
        let prefix = text(&from["prefix"]);
        let (reference, found) = if from["configMapRef"].is_object() {
            let reference = &from["configMapRef"];
            (reference, config_map(reference, sources).map(|found| found.map(|m| strings(&m["data"]))))
        } else {
            let reference = &from["secretRef"];
            (reference, secret(reference, sources).map(|found| found.map(|s| secret_texts(&s))))
        };
        let Some(data) = optional(reference, found)? else { return Ok(()) };
        for (key, value) in data {
            let name = format!("{prefix}{key}");
            // As in Kubernetes, keys that cannot be variables are passed over.
            if is_variable_name(&name) {
                self.set(name, value);
            }
        }
        Ok(())
    }

    fn add(&mut self, variable: &Value, subject: &Subject, sources: &Sources) -> Result<(), String> {
        let name = text(&variable["name"]);
        let literal = variable["value"].as_str().unwrap_or_default();
        let from = &variable["valueFrom"];
        let value = if !literal.is_empty() || from.is_null() {
            Some(self.expand(literal))
        } else if from["fieldRef"].is_object() {
            Some(field(from["fieldRef"]["fieldPath"].as_str().unwrap_or_default(), subject)?)
        } else if from["configMapKeyRef"].is_object() {
            let reference = &from["configMapKeyRef"];
            let found = config_map(reference, sources);
            key_of(reference, found, "ConfigMap", sources, |map, key| {
                map["data"][key].as_str().map(str::to_owned)
            })?
        } else if from["secretKeyRef"].is_object() {
            let reference = &from["secretKeyRef"];
            let found = secret(reference, sources);
            key_of(reference, found, "Secret", sources, |secret, key| secret_texts(secret).remove(key))?
        } else {
            return Err(format!(
                "the value of environment variable {name} comes from a source that is not supported"
            ));
        };
        if let Some(value) = value {
            self.set(name, value);
        }
        Ok(())
    }
}

/// A reference that may be absent if it says so.
fn optional<T>(reference: &Value, found: Result<Option<T>, String>) -> Result<Option<T>, String> {
    match found {
        Ok(Some(found)) => Ok(Some(found)),
        Ok(None) => Ok(None),
        Err(_) if reference["optional"] == true => Ok(None),
        Err(why) => Err(why),
    }
}

fn key_of(
    reference: &Value,
    found: Result<Option<Value>, String>,
    kind: &str,
    sources: &Sources,
    read: impl Fn(&Value, &str) -> Option<String>,
) -> Result<Option<String>, String> {
    let Some(object) = optional(reference, found)? else { return Ok(None) };
    let key = reference["key"].as_str().unwrap_or_default();
    match read(&object, key) {
        Some(value) => Ok(Some(value)),
        None if reference["optional"] == true => Ok(None),
        None => {
            let name = reference["name"].as_str().unwrap_or_default();
            Err(format!("couldn't find key {key} in {kind} {}/{name}", sources.namespace))
        }
    }
}

fn config_map(reference: &Value, sources: &Sources) -> Result<Option<Value>, String> {
    let name = reference["name"].as_str().unwrap_or_default();
    sources.own("configmaps", name).map(Some).ok_or_else(|| format!("configmap {name:?} not found"))
}

fn secret(reference: &Value, sources: &Sources) -> Result<Option<Value>, String> {
    let name = reference["name"].as_str().unwrap_or_default();
    sources.own("secrets", name).map(Some).ok_or_else(|| format!("secret {name:?} not found"))
}

/// A Secret's data as text (what is no UTF-8 keeps its readable part, as an environment cannot hold more).
fn secret_texts(secret: &Value) -> BTreeMap<String, String> {
    super::volumes::secret_data(secret)
        .into_iter()
        .map(|(key, bytes)| (key, String::from_utf8_lossy(&bytes).into_owned()))
        .collect()
}

/// Kubernetes' relaxed rule: printable ASCII without `=`.
fn is_variable_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

/// The downward API.
fn field(path: &str, subject: &Subject) -> Result<String, String> {
    let pod = subject.pod;
    let subscript = |prefix: &str| path.strip_prefix(prefix)?.strip_suffix("']");
    if let Some(key) = subscript("metadata.labels['") {
        return Ok(object::label(pod, key).unwrap_or_default().to_owned());
    }
    if let Some(key) = subscript("metadata.annotations['") {
        return Ok(object::annotation(pod, key).unwrap_or_default().to_owned());
    }
    let first = |addresses: &[String]| addresses.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => object::name(pod).to_owned(),
        "metadata.namespace" => object::namespace(pod).to_owned(),
        "metadata.uid" => object::uid(pod).to_owned(),
        "spec.nodeName" => subject.record.node.clone(),
        "spec.serviceAccountName" => text(&pod["spec"]["serviceAccountName"]),
        "status.hostIP" => first(&subject.place.host_ips),
        "status.hostIPs" => subject.place.host_ips.join(","),
        "status.podIP" => subject.pod_ips().0,
        "status.podIPs" => subject.pod_ips().1,
        other => return Err(format!("unsupported fieldPath: {other}")),
    })
}
