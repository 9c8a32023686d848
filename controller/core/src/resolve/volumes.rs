//! A pod's volumes as directories, files and mounts. What cannot be had says why in `Volume::error`.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use berth_proto::{DirectorySource, EmptyDir, File, Files, NfsSource, Volume, volume};
use serde_json::Value;

use super::{Sources, Subject, list, resources, strings, text};
use crate::claims::{self, Directory, Location, Nfs};
use crate::object;

pub(super) fn volumes(subject: &Subject, sources: &Sources) -> Vec<Volume> {
    list(&subject.pod["spec"]["volumes"]).map(|volume| resolve(volume, sources)).collect()
}

fn resolve(spec: &Value, sources: &Sources) -> Volume {
    let name = text(&spec["name"]);
    let mut volume = Volume { name: name.clone(), ..Volume::default() };
    let source = if spec["persistentVolumeClaim"].is_object() {
        let reference = &spec["persistentVolumeClaim"];
        volume.claim = text(&reference["claimName"]);
        claim(&volume.claim, sources).map(|(source, read_only)| {
            volume.read_only = read_only || reference["readOnly"] == true;
            source
        })
    } else if spec["configMap"].is_object() {
        config_map(&spec["configMap"], sources).map_err(|why| set_up_failed(&name, &why))
    } else if spec["secret"].is_object() {
        secret(&spec["secret"], sources).map_err(|why| set_up_failed(&name, &why))
    } else if spec["emptyDir"].is_object() || only_name(spec) {
        let empty = &spec["emptyDir"];
        Ok(volume::Source::EmptyDir(EmptyDir {
            medium: text(&empty["medium"]),
            size_limit: resources::whole(&empty["sizeLimit"]),
        }))
    } else {
        Err(format!("volume {name:?} is of a kind that is not supported by Berth yet"))
    };
    match source {
        Ok(source) => volume.source = Some(source),
        Err(why) => volume.error = why,
    }
    volume
}

/// A volume without a source is an emptyDir, as Kubernetes defaults it.
fn only_name(spec: &Value) -> bool {
    spec.as_object().is_some_and(|fields| fields.keys().all(|key| key == "name"))
}

fn set_up_failed(volume: &str, why: &str) -> String {
    format!("MountVolume.SetUp failed for volume {volume:?} : {why}")
}

/// The source, and whether it may only be read.
fn claim(name: &str, sources: &Sources) -> Result<(volume::Source, bool), String> {
    let claim = sources
        .own("persistentvolumeclaims", name)
        .ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))?;
    let volume_name = claim["spec"]["volumeName"].as_str().unwrap_or_default();
    if volume_name.is_empty() {
        return Err(format!("persistentvolumeclaim {name:?} is not bound to a volume yet"));
    }
    let volume =
        sources.volume(volume_name).ok_or_else(|| format!("persistentvolume {volume_name:?} not found"))?;
    let holder = &volume["spec"]["claimRef"];
    if holder["uid"].as_str().is_some_and(|uid| uid != object::uid(&claim)) {
        return Err(format!("persistentvolume {volume_name:?} is bound to another claim"));
    }
    let (source, read_only) = source_of(&volume)
        .map_err(|why| format!("MountVolume.SetUp failed for volume {volume_name:?} : {why}"))?;
    // Many may read it: that nobody writes is what the claim asks for.
    let mut modes = list(&claim["spec"]["accessModes"]).peekable();
    let to_read = modes.peek().is_some() && modes.all(|mode| mode == "ReadOnlyMany");
    Ok((source, read_only || to_read))
}

fn source_of(volume: &Value) -> Result<(volume::Source, bool), String> {
    Ok(match claims::location(volume)? {
        Location::Directory(Directory { root, name }) => {
            (volume::Source::Directory(DirectorySource { root, name, mode: 0 }), false)
        }
        Location::Nfs(nfs) => {
            let read_only = nfs.read_only;
            (volume::Source::Nfs(nfs_source(*nfs)), read_only)
        }
    })
}

/// As the hosts are told of it.
pub fn nfs_source(nfs: Nfs) -> NfsSource {
    NfsSource {
        server: nfs.server,
        share: nfs.share,
        sub_dir: nfs.sub_dir,
        mount_options: nfs.mount_options,
        mode: nfs.mode,
        make: nfs.make,
        new_mode: nfs.new_mode,
        uid: nfs.uid,
        gid: nfs.gid,
    }
}

fn config_map(source: &Value, sources: &Sources) -> Result<volume::Source, String> {
    let name = source["name"].as_str().unwrap_or_default();
    let optional = source["optional"] == true;
    let data = match sources.own("configmaps", name) {
        Some(map) => {
            let mut data: BTreeMap<String, Vec<u8>> =
                strings(&map["data"]).into_iter().map(|(k, v)| (k, v.into_bytes())).collect();
            data.extend(decoded(&map["binaryData"]));
            data
        }
        None if optional => BTreeMap::new(),
        None => return Err(format!("configmap {name:?} not found")),
    };
    let files = choose(data, source, optional, "config")?;
    Ok(volume::Source::Files(Files { files, secret: false }))
}

fn secret(source: &Value, sources: &Sources) -> Result<volume::Source, String> {
    let name = source["secretName"].as_str().unwrap_or_default();
    let optional = source["optional"] == true;
    let data = match sources.own("secrets", name) {
        Some(secret) => secret_data(&secret),
        None if optional => BTreeMap::new(),
        None => return Err(format!("secret {name:?} not found")),
    };
    let files = choose(data, source, optional, "secret")?;
    Ok(volume::Source::Files(Files { files, secret: true }))
}

/// All keys, or the items named, with their modes.
fn choose(
    mut data: BTreeMap<String, Vec<u8>>,
    source: &Value,
    optional: bool,
    what: &str,
) -> Result<Vec<File>, String> {
    let mode = |value: &Value| value.as_u64().and_then(|m| u32::try_from(m).ok());
    let default = mode(&source["defaultMode"]).unwrap_or(0o644);
    let mut files = Vec::new();
    if source["items"].as_array().is_none_or(Vec::is_empty) {
        files.extend(data.into_iter().map(|(path, content)| File { path, content, mode: default }));
    } else {
        for item in list(&source["items"]) {
            let key = item["key"].as_str().unwrap_or_default();
            let Some(content) = data.get_mut(key) else {
                if optional {
                    continue;
                }
                return Err(format!("references non-existent {what} key: {key}"));
            };
            let mode = mode(&item["mode"]).unwrap_or(default);
            files.push(File { path: text(&item["path"]), content: content.clone(), mode });
        }
    }
    let safe = |path: &str| {
        !path.is_empty()
            && !path.starts_with('/')
            && path.split('/').all(|part| part != ".." && !part.is_empty())
    };
    if let Some(file) = files.iter().find(|file| !safe(&file.path)) {
        return Err(format!("{:?} is not a path below the volume", file.path));
    }
    Ok(files)
}

/// A Secret's `data`, decoded.
pub(super) fn secret_data(secret: &Value) -> BTreeMap<String, Vec<u8>> {
    decoded(&secret["data"])
}

fn decoded(data: &Value) -> BTreeMap<String, Vec<u8>> {
    strings(data).into_iter().filter_map(|(k, v)| Some((k, STANDARD.decode(v.trim()).ok()?))).collect()
}
