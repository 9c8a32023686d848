//! What the documents promise to explain, they explain.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where names in this style are not reasons of events and conditions, but of the API itself or of others'.
const OTHER_NAMES: &[&str] = &[
    "controller/core/src/kinds",
    "controller/core/src/field.rs",
    "controller/core/src/status.rs",
    "controller/src/api",
    "controller/src/nodes/streams",
    "agent/src/cgroup",
    "agent/src/streams.rs",
];
/// Kinds, policies and answers that the rest of the code names.
const NOT_REASONS: &[&str] = &[
    "AlreadyExists",
    "BestEffort",
    "ClusterFirst",
    "ClusterIP",
    "ConfigMap",
    "ControllerRevision",
    "DirectoryOrCreate",
    "DoNotSchedule",
    "DoesNotExist",
    "NotIn",
    "RequestEntityTooLarge",
    "ScheduleAnyway",
    "UnsupportedMediaType",
    "EndpointSlice",
    "ExternalName",
    "FallbackToLogsOnError",
    "IfNotPresent",
    "InternalIP",
    "LoadBalancer",
    "NoExecute",
    "NoSchedule",
    "NodePort",
    "NotFound",
    "NotReady",
    "OnDelete",
    "OnFailure",
    "OnRootMismatch",
    "OrderedReady",
    "PascalCase",
    "PersistentVolume",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "PreferNoSchedule",
    "ReadOnlyMany",
    "ReadWriteMany",
    "ReadWriteOnce",
    "ReadWriteOncePod",
    "ResourceVersion",
    "RollingUpdate",
    "ServiceAccount",
    "ServiceUnavailable",
    "StatefulSet",
    "StorageClass",
    "TooManyRequests",
];
/// Reasons of one word: they cannot be told from other words by their form.
const SHORT: &[&str] =
    &["Scheduled", "Pulling", "Pulled", "Created", "Started", "Killing", "Failed", "Unhealthy"];

fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.contains("tests") || name.contains("simulation") {
            continue;
        }
        if path.is_dir() {
            sources(&path, all);
        } else if name.ends_with(".rs") {
            all.push(path);
        }
    }
}

/// `FailedMount`, `NFSServerAnswering`: several words, each with a capital.
fn is_reason(text: &str) -> bool {
    let capitals = text.bytes().filter(u8::is_ascii_uppercase).count();
    let small = text.bytes().filter(u8::is_ascii_lowercase).count();
    text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.ends_with(|c: char| c.is_ascii_lowercase())
        && capitals >= 2
        && small > capitals
        && capitals + small == text.len()
}

#[test]
fn every_reason_of_an_event_or_condition_is_explained() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let document = std::fs::read_to_string(root.join("docs/troubleshoot.md")).unwrap();
    let explained: BTreeSet<&str> = document
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(" |").next())
        .flat_map(|reasons| reasons.split(", "))
        .collect();
    let mut files = Vec::new();
    for part in ["agent/src", "agent/core/src", "controller/src", "controller/core/src"] {
        sources(&root.join(part), &mut files);
    }
    let mut missing = BTreeSet::new();
    for file in files {
        let path = file.strip_prefix(root).unwrap().to_string_lossy().into_owned();
        if OTHER_NAMES.iter().any(|other| path.starts_with(other)) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        // Between quotes: every second part of a line that is no comment.
        let literals = code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| {
            line.split('"').skip(1).step_by(2).filter(|text| is_reason(text)).collect::<Vec<_>>()
        });
        for reason in literals {
            if !NOT_REASONS.contains(&reason) && !explained.contains(reason) {
                missing.insert(format!("{reason} ({path})"));
            }
        }
    }
    missing.extend(SHORT.iter().filter(|r| !explained.contains(**r)).map(|r| (*r).to_owned()));
    assert!(
        missing.is_empty(),
        "not explained in docs/troubleshoot.md (or to be named in NOT_REASONS here): {missing:#?}"
    );
}
