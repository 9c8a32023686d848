//! A pod's volumes: claims, empty directories, and files out of ConfigMaps and Secrets.

use std::collections::BTreeSet;

use crate::field::FieldError;
use crate::kinds::check::{self, At, Errors, Unique, label_name, only_supported, unsupported};

const SOURCES: &[&str] = &["emptyDir", "secret", "persistentVolumeClaim", "configMap"];
const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// The names that containers may mount, and what is wrong.
pub fn validate<'a>(volumes: &At<'a>) -> (BTreeSet<&'a str>, Errors) {
    let mut errors = Errors::new();
    let mut names = BTreeSet::new();
    let mut unique = Unique::default();
    for volume in volumes.items() {
        let name = volume.get("name");
        errors.extend(sources(&volume));
        errors.extend(label_name(&name));
        errors.extend(unique.check(&name));
        names.insert(name.str());
    }
    (names, errors)
}

fn sources(volume: &At) -> Errors {
    let known = [&["name"], SOURCES].concat();
    let mut errors = Errors::new();
    // An empty map is a source all the same (`hostPath: {}`), so these are refused by presence.
    let mut given = 0;
    for (field, value) in volume.value.as_object().into_iter().flatten() {
        if !known.contains(&field.as_str()) && !value.is_null() {
            errors.push(unsupported(&volume.get(field)));
            given += 1;
        }
    }
    for source in SOURCES.iter().map(|source| volume.get(source)).filter(At::is_set) {
        given += 1;
        if given > 1 {
            errors.push(source.forbidden("may not specify more than 1 volume type"));
        }
    }
    if given == 0 {
        errors.push(volume.required("must specify a volume type"));
    }
    errors.extend(empty_dir(&volume.get("emptyDir")));
    errors.extend(files(&volume.get("configMap"), "name"));
    errors.extend(files(&volume.get("secret"), "secretName"));
    errors.extend(claim(&volume.get("persistentVolumeClaim")));
    errors
}

fn empty_dir(at: &At) -> Errors {
    if at.is_null() {
        return Vec::new();
    }
    let mut errors = only_supported(at, &["medium", "sizeLimit"]);
    let (medium, limit) = (at.get("medium"), at.get("sizeLimit"));
    if !matches!(medium.str(), "" | "Memory") {
        errors.push(unsupported(&medium));
    }
    if limit.is_set() {
        if check::quantity(&limit).is_some() {
            errors.push(limit.forbidden("SizeLimit field must be a valid resource quantity"));
        } else if medium.str() != "Memory" {
            errors.push(limit.forbidden("not supported by Berth yet unless medium is Memory"));
        }
    }
    errors
}

/// Files of a ConfigMap or Secret; `name` is the field that names it.
fn files(at: &At, name: &str) -> Errors {
    if at.is_null() {
        return Vec::new();
    }
    let mut errors = only_supported(at, &[name, "items", "defaultMode", "optional"]);
    if at.get(name).str().is_empty() {
        errors.push(at.get(name).required(""));
    }
    errors.extend(mode(&at.get("defaultMode")));
    for item in at.get("items").items() {
        let (key, path) = (item.get("key"), item.get("path"));
        if key.str().is_empty() {
            errors.push(key.required(""));
        }
        if path.str().is_empty() {
            errors.push(path.required(""));
        }
        errors.extend(file_path(&path));
        errors.extend(mode(&item.get("mode")));
    }
    errors
}

fn mode(at: &At) -> Option<FieldError> {
    (at.is_set() && !at.int().is_some_and(|n| (0..=0o777).contains(&n))).then(|| at.invalid(MODE))
}

/// A path below the volume that nothing can climb out of.
fn file_path(at: &At) -> Option<FieldError> {
    let path = at.str();
    if path.starts_with('/') {
        Some(at.invalid("must be a relative path"))
    } else if path.split('/').any(|part| part == "..") {
        Some(at.invalid("must not contain '..'"))
    } else if path.starts_with("..") {
        Some(at.invalid("must not start with '..'"))
    } else {
        None
    }
}

fn claim(at: &At) -> Errors {
    if at.is_null() {
        return Vec::new();
    }
    let mut errors = only_supported(at, &["claimName", "readOnly"]);
    if at.get("claimName").str().is_empty() {
        errors.push(at.get("claimName").required(""));
    }
    errors
}
