//! One container: command, probes, hooks and limits, with named ports and variables filled in.

use berth_proto::{Container, ContainerPort, ContainerSecurity, Handler, Probe, VolumeMount, handler};
use serde_json::Value;

use super::env::Environment;
use super::{Sources, Subject, list, resources, text, text_or, texts};

pub(super) fn container(container: &Value, subject: &Subject, sources: &Sources) -> Container {
    let mut config_error = String::new();
    let mut command = texts(&container["command"]);
    let mut args = texts(&container["args"]);
    let mut env = Vec::new();
    match Environment::of(container, subject, sources) {
        Ok(environment) => {
            for word in command.iter_mut().chain(&mut args) {
                *word = environment.expand(word);
            }
            env = environment.into_variables();
        }
        Err(why) => config_error = why,
    }
    let lifecycle = &container["lifecycle"];
    Container {
        name: text(&container["name"]),
        image: text(&container["image"]),
        image_pull_policy: text_or(&container["imagePullPolicy"], "IfNotPresent"),
        command,
        args,
        working_dir: text(&container["workingDir"]),
        env,
        mounts: list(&container["volumeMounts"])
            .map(|mount| VolumeMount {
                volume: text(&mount["name"]),
                mount_path: text(&mount["mountPath"]),
                read_only: mount["readOnly"] == true,
                sub_path: text(&mount["subPath"]),
            })
            .collect(),
        resources: Some(resources::resources(container)),
        security: Some(security(&container["securityContext"])),
        readiness: probe(&container["readinessProbe"], container),
        liveness: probe(&container["livenessProbe"], container),
        startup: probe(&container["startupProbe"], container),
        pre_stop: handler(&lifecycle["preStop"], container),
        post_start: handler(&lifecycle["postStart"], container),
        termination_message_path: text_or(&container["terminationMessagePath"], "/dev/termination-log"),
        termination_message_policy: text_or(&container["terminationMessagePolicy"], "File"),
        ports: list(&container["ports"])
            .map(|port| ContainerPort {
                name: text(&port["name"]),
                port: number(&port["containerPort"]),
                protocol: text_or(&port["protocol"], "TCP"),
                host_port: number(&port["hostPort"]),
                host_ip: text(&port["hostIP"]),
            })
            .collect(),
        config_error,
        stdin: container["stdin"] == true,
        tty: container["tty"] == true,
        stdin_once: container["stdinOnce"] == true,
    }
}

fn security(context: &Value) -> ContainerSecurity {
    ContainerSecurity {
        privileged: context["privileged"] == true,
        run_as_user: context["runAsUser"].as_i64(),
        run_as_group: context["runAsGroup"].as_i64(),
        run_as_non_root: context["runAsNonRoot"].as_bool(),
        read_only_root_filesystem: context["readOnlyRootFilesystem"] == true,
        allow_privilege_escalation: context["allowPrivilegeEscalation"].as_bool(),
        add_capabilities: texts(&context["capabilities"]["add"]),
        drop_capabilities: texts(&context["capabilities"]["drop"]),
    }
}

fn probe(probe: &Value, container: &Value) -> Option<Probe> {
    let or = |field: &str, default: u32| match number(&probe[field]) {
        0 => default,
        n => n,
    };
    Some(Probe {
        handler: Some(handler(probe, container)?),
        initial_delay_seconds: number(&probe["initialDelaySeconds"]),
        timeout_seconds: or("timeoutSeconds", 1),
        period_seconds: or("periodSeconds", 10),
        success_threshold: or("successThreshold", 1),
        failure_threshold: or("failureThreshold", 3),
        termination_grace_seconds: probe["terminationGracePeriodSeconds"].as_i64(),
    })
}

fn handler(action: &Value, container: &Value) -> Option<Handler> {
    let handler = if action["exec"].is_object() {
        handler::Handler::Exec(handler::Exec { command: texts(&action["exec"]["command"]) })
    } else if action["httpGet"].is_object() {
        let get = &action["httpGet"];
        handler::Handler::HttpGet(handler::HttpGet {
            host: text(&get["host"]),
            port: port(&get["port"], container),
            path: text_or(&get["path"], "/"),
            scheme: text_or(&get["scheme"], "HTTP"),
            headers: list(&get["httpHeaders"])
                .map(|h| handler::Header { name: text(&h["name"]), value: text(&h["value"]) })
                .collect(),
        })
    } else if action["tcpSocket"].is_object() {
        let socket = &action["tcpSocket"];
        handler::Handler::TcpSocket(handler::TcpSocket {
            host: text(&socket["host"]),
            port: port(&socket["port"], container),
        })
    } else if action["sleep"].is_object() {
        handler::Handler::Sleep(handler::Sleep { seconds: action["sleep"]["seconds"].as_i64().unwrap_or(0) })
    } else {
        return None;
    };
    Some(Handler { handler: Some(handler) })
}

/// A port by number, or by the name of one of the container's own ports. 0 if there is none of that name:
/// the probe then fails, as it does in Kubernetes.
fn port(wanted: &Value, container: &Value) -> u32 {
    match wanted {
        Value::String(name) => list(&container["ports"])
            .find(|port| port["name"] == *name)
            .map(|port| number(&port["containerPort"]))
            .or_else(|| name.parse().ok())
            .unwrap_or(0),
        other => number(other),
    }
}

fn number(value: &Value) -> u32 {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0)
}
