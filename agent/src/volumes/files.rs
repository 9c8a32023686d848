//! ConfigMap and Secret volumes: a change shows to containers all at once.
//!
//! As Kubernetes does it: the content is in `..<time>/`, the link `..data` points at it, and every file at the
//! top is a link into `..data`. A change makes a new directory and renames a new `..data` over the old one.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use berth_proto::{Files, PodSecurity};

use super::{VolumeError, ownership};

const DATA: &str = "..data";
const NEW: &str = "..data_tmp";

/// Whether the volume has been written before.
pub fn present(directory: &Path) -> bool {
    directory.join(DATA).is_dir()
}

/// Brings the volume to exactly these files. Nothing is touched if it is so already.
pub fn write(directory: &Path, files: &Files, security: &PodSecurity) -> Result<(), VolumeError> {
    for file in &files.files {
        check(&file.path)?;
    }
    let old = std::fs::read_link(directory.join(DATA)).ok();
    let io = |what: &Path| {
        let what = what.display().to_string();
        move |cause: std::io::Error| VolumeError::io(what, cause)
    };
    let same = old.as_ref().is_some_and(|old| same(&directory.join(old), files));
    if !same {
        let version = PathBuf::from(format!("..{}", version()));
        let place = directory.join(&version);
        std::fs::create_dir(&place).map_err(io(&place))?;
        ownership::set_mode(&place, 0o755)?;
        for file in &files.files {
            let path = place.join(&file.path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).map_err(io(parent))?;
            }
            let mut out = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&path)
                .map_err(io(&path))?;
            out.write_all(&file.content).map_err(io(&path))?;
            let mode = std::os::unix::fs::PermissionsExt::from_mode(file.mode & 0o777);
            out.set_permissions(mode).map_err(io(&path))?;
        }
        ownership::apply(&place, security, true)?;
        let new = directory.join(NEW);
        let _ = std::fs::remove_file(&new);
        symlink(&version, &new).map_err(io(&new))?;
        std::fs::rename(&new, directory.join(DATA)).map_err(io(&directory.join(DATA)))?;
    }
    let tops: BTreeSet<&str> = files.files.iter().filter_map(|file| file.path.split('/').next()).collect();
    for top in &tops {
        match symlink(Path::new(DATA).join(top), directory.join(top)) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            other => other.map_err(io(&directory.join(top)))?,
        }
    }
    // What is left of former versions.
    let current = std::fs::read_link(directory.join(DATA)).map_err(io(&directory.join(DATA)))?;
    for entry in std::fs::read_dir(directory).map_err(io(directory))? {
        let entry = entry.map_err(io(directory))?;
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let kept = text == DATA || Path::new(&name) == current || tops.contains(text.as_ref());
        if kept {
            continue;
        }
        let path = entry.path();
        let removed = match entry.file_type().map(|kind| kind.is_dir()) {
            Ok(true) => std::fs::remove_dir_all(&path),
            _ => std::fs::remove_file(&path),
        };
        removed.map_err(io(&path))?;
    }
    ownership::set_mode(directory, 0o777)
}

fn check(path: &str) -> Result<(), VolumeError> {
    let mut components = Path::new(path).components();
    let plain = components.clone().next().is_some()
        && components.all(|component| matches!(component, Component::Normal(_)))
        && !path.starts_with("..")
        && !path.contains('\0');
    if plain { Ok(()) } else { Err(VolumeError::Refused(format!("{path:?} is not a path for a file"))) }
}

fn same(place: &Path, files: &Files) -> bool {
    let mut there = 0;
    let mut pending = vec![place.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { return false };
        for entry in entries.flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => pending.push(entry.path()),
                _ => there += 1,
            }
        }
    }
    there == files.files.len()
        && files.files.iter().all(|file| {
            let path = place.join(&file.path);
            let mode = |data: std::fs::Metadata| {
                std::os::unix::fs::PermissionsExt::mode(&data.permissions()) & 0o777 & !0o440
            };
            path.metadata().map(mode).is_ok_and(|mode| mode == file.mode & 0o777 & !0o440)
                && std::fs::read(&path).is_ok_and(|content| content == file.content)
        })
}

/// Unique and readable: `2026_11_21_08_45_09.123456789`.
fn version() -> String {
    jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S.%9f").to_string()
}
