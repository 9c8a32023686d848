use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use berth_proto::{DirectorySource, EmptyDir, File, Files};

use super::*;

fn volume(name: &str, source: Source) -> Volume {
    Volume { name: name.into(), source: Some(source), ..Volume::default() }
}

fn files(list: &[(&str, &str, u32)], secret: bool) -> Source {
    let files = list
        .iter()
        .map(|(path, content, mode)| File {
            path: (*path).into(),
            content: content.as_bytes().into(),
            mode: *mode,
        })
        .collect();
    Source::Files(Files { files, secret })
}

fn directory(name: &str) -> DirectorySource {
    DirectorySource { name: name.into(), ..DirectorySource::default() }
}

fn group(group: i64, policy: &str) -> PodSecurity {
    PodSecurity { fs_group: Some(group), fs_group_change_policy: policy.into(), ..PodSecurity::default() }
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn mounts_below(path: &Path) -> Vec<PathBuf> {
    mounts::Mounted::read().unwrap().below(path).map(|mount| mount.point.clone()).collect()
}

struct Place {
    dir: tempfile::TempDir,
    volumes: Volumes,
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let volumes = Volumes::new(dir.path(), NfsConfig::new(dir.path().join("nfs")));
    Place { dir, volumes }
}

const NOBODY: PodSecurity = PodSecurity {
    run_as_user: None,
    run_as_group: None,
    run_as_non_root: None,
    fs_group: None,
    supplemental_groups: Vec::new(),
    fs_group_change_policy: String::new(),
};

#[test]
fn an_empty_dir_is_open_to_all_and_gone_after() {
    let place = place();
    let empty = volume("scratch", Source::EmptyDir(EmptyDir::default()));
    place.volumes.mount("u", &empty, &NOBODY, true).unwrap();
    let path = place.volumes.source("u", &empty);
    assert_eq!(mode(&path), 0o777);
    std::fs::write(path.join("x"), "x").unwrap();
    place.volumes.mount("u", &empty, &NOBODY, true).unwrap();
    assert!(path.join("x").exists(), "mounted again it is as it was");
    place.volumes.unmount("u", "scratch").unwrap();
    place.volumes.unmount("u", "scratch").unwrap();
    assert!(!path.exists());
}

#[test]
fn an_empty_dir_in_memory_is_a_bounded_tmpfs() {
    let place = place();
    let empty = EmptyDir { medium: "Memory".into(), size_limit: 1 << 20 };
    let empty = volume("shm", Source::EmptyDir(empty));
    place.volumes.mount("u", &empty, &NOBODY, true).unwrap();
    place.volumes.mount("u", &empty, &NOBODY, true).unwrap();
    let path = place.volumes.source("u", &empty);
    assert_eq!(mounts_below(place.dir.path()), vec![path.clone()], "once");
    assert!(std::fs::write(path.join("big"), vec![0; 2 << 20]).is_err());
    assert!(remove_tree(place.dir.path()).is_err(), "nothing is removed below a mount");
    assert!(path.join("big").exists());
    place.volumes.unmount("u", "shm").unwrap();
    assert!(mounts_below(place.dir.path()).is_empty());
}

#[test]
fn files_change_all_at_once_and_what_is_gone_goes() {
    let place = place();
    let first = volume("conf", files(&[("a", "1", 0o644), ("dir/b", "2", 0o600), ("old", "", 0o644)], false));
    place.volumes.mount("u", &first, &NOBODY, true).unwrap();
    let path = place.volumes.source("u", &first);
    assert_eq!(std::fs::read_to_string(path.join("dir/b")).unwrap(), "2");
    assert_eq!(path.join("dir/b").metadata().unwrap().mode() & 0o777, 0o600);
    let before = std::fs::read_link(path.join("..data")).unwrap();
    place.volumes.mount("u", &first, &NOBODY, true).unwrap();
    assert_eq!(std::fs::read_link(path.join("..data")).unwrap(), before, "the same content changes nothing");
    let second = volume("conf", files(&[("a", "one", 0o644), ("dir/b", "2", 0o600)], false));
    place.volumes.mount("u", &second, &NOBODY, true).unwrap();
    assert_eq!(std::fs::read_to_string(path.join("a")).unwrap(), "one");
    assert!(path.join("old").symlink_metadata().is_err());
    let versions = std::fs::read_dir(&path).unwrap().flatten();
    let versions = versions.filter(|e| e.file_name().to_string_lossy().starts_with("..2")).count();
    assert_eq!(versions, 1);
}

#[test]
fn secrets_are_kept_in_memory_and_need_their_content() {
    let place = place();
    let secret = volume("secret", files(&[("password", "hunter2", 0o400)], true));
    assert!(place.volumes.mount("u", &secret, &NOBODY, false).is_err(), "nothing is made without content");
    place.volumes.mount("u", &secret, &group(1234, ""), true).unwrap();
    let path = place.volumes.source("u", &secret);
    assert_eq!(mounts_below(&path), vec![path.clone()]);
    let data = path.join("password").metadata().unwrap();
    assert_eq!((data.gid(), data.mode() & 0o777), (1234, 0o440), "fsGroup may read it");
    place.volumes.mount("u", &secret, &NOBODY, false).unwrap();
    place.volumes.unmount("u", "secret").unwrap();
    assert!(!path.exists());
}

#[test]
fn files_cannot_be_put_elsewhere() {
    let place = place();
    for path in ["../x", "/etc/x", "a/../../x", "", "..data/x"] {
        let bad = volume("conf", files(&[(path, "", 0o644)], false));
        assert!(place.volumes.mount("u", &bad, &NOBODY, true).is_err(), "{path}");
    }
}

#[test]
fn a_directory_outlives_the_pod_and_keeps_its_mode() {
    let place = place();
    let claim = volume("data", Source::Directory(directory("pvc-1")));
    place.volumes.mount("u", &claim, &NOBODY, true).unwrap();
    let path = place.dir.path().join("volumes/pvc-1");
    assert_eq!(place.volumes.source("u", &claim), path);
    assert_eq!(mode(&path), 0o777);
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o750)).unwrap();
    place.volumes.mount("u", &claim, &NOBODY, true).unwrap();
    assert_eq!(mode(&path), 0o750);
    std::fs::write(path.join("kept"), "").unwrap();
    place.volumes.unmount("u", "data").unwrap();
    assert!(path.join("kept").exists());
}

#[test]
fn fs_group_owns_the_tree_and_never_leaves_it() {
    let place = place();
    let outside = place.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("victim"), "").unwrap();
    std::fs::set_permissions(outside.join("victim"), PermissionsExt::from_mode(0o600)).unwrap();
    let claim = volume("data", Source::Directory(directory("pvc-1")));
    place.volumes.mount("u", &claim, &NOBODY, true).unwrap();
    let path = place.dir.path().join("volumes/pvc-1");
    std::fs::create_dir(path.join("sub")).unwrap();
    std::fs::write(path.join("sub/file"), "").unwrap();
    std::fs::set_permissions(path.join("sub/file"), PermissionsExt::from_mode(0o600)).unwrap();
    symlink(&outside, path.join("way-out")).unwrap();
    symlink(outside.join("victim"), path.join("sub/victim")).unwrap();
    place.volumes.mount("u", &claim, &group(4321, "Always"), true).unwrap();
    for inside in [path.clone(), path.join("sub")] {
        assert_eq!(inside.metadata().unwrap().gid(), 4321);
        assert_eq!(mode(&inside) & 0o2770, 0o2770, "new files inherit the group");
    }
    assert_eq!(path.join("sub/file").metadata().unwrap().gid(), 4321);
    assert_eq!(mode(&path.join("sub/file")), 0o660);
    assert_eq!(outside.join("victim").metadata().unwrap().gid(), 0);
    assert_eq!(mode(&outside.join("victim")), 0o600);
    assert_eq!(outside.metadata().unwrap().gid(), 0);
}

#[test]
fn on_root_mismatch_leaves_a_tree_whose_root_is_right() {
    let place = place();
    let claim = volume("data", Source::Directory(directory("pvc-1")));
    place.volumes.mount("u", &claim, &group(7, "OnRootMismatch"), true).unwrap();
    let path = place.dir.path().join("volumes/pvc-1");
    std::fs::write(path.join("file"), "").unwrap();
    nix::unistd::chown(&path.join("file"), None, Some(nix::unistd::Gid::from_raw(0))).unwrap();
    place.volumes.mount("u", &claim, &group(7, "OnRootMismatch"), true).unwrap();
    assert_eq!(path.join("file").metadata().unwrap().gid(), 0);
    place.volumes.mount("u", &claim, &group(7, "Always"), true).unwrap();
    assert_eq!(path.join("file").metadata().unwrap().gid(), 7);
}

fn operate(volumes: &Volumes, verb: Verb, source: DirectorySource) -> Result<(), VolumeError> {
    volumes.operate(&VolumeOperation {
        operation_id: 1,
        verb: verb.into(),
        source: Some(Operand::Directory(source)),
    })
}

#[test]
fn directories_are_made_archived_and_removed_on_request() {
    let place = place();
    let root = place.dir.path().join("volumes");
    operate(&place.volumes, Verb::Make, directory("one")).unwrap();
    operate(&place.volumes, Verb::Make, directory("one")).unwrap();
    operate(&place.volumes, Verb::Archive, directory("one")).unwrap();
    operate(&place.volumes, Verb::Archive, directory("one")).unwrap();
    assert!(root.join("archived-one").is_dir() && !root.join("one").exists());
    operate(&place.volumes, Verb::Make, directory("one")).unwrap();
    operate(&place.volumes, Verb::Archive, directory("one")).unwrap();
    assert!(root.join("archived-one-2").is_dir(), "an archive is never overwritten");
    operate(&place.volumes, Verb::Make, directory("two")).unwrap();
    std::fs::write(root.join("two/file"), "").unwrap();
    symlink(root.join("archived-one"), root.join("two/link")).unwrap();
    operate(&place.volumes, Verb::Remove, directory("two")).unwrap();
    operate(&place.volumes, Verb::Remove, directory("two")).unwrap();
    assert!(!root.join("two").exists() && root.join("archived-one").is_dir());
}

#[test]
fn nothing_outside_the_root_is_removed() {
    let place = place();
    std::fs::create_dir_all(place.dir.path().join("volumes")).unwrap();
    for name in ["", ".", "..", "a/b", "../x"] {
        assert!(operate(&place.volumes, Verb::Remove, directory(name)).is_err(), "{name:?}");
    }
    let elsewhere = place.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).unwrap();
    symlink(&elsewhere, place.dir.path().join("volumes/link")).unwrap();
    assert!(operate(&place.volumes, Verb::Remove, directory("link")).is_err());
    assert!(elsewhere.exists());
    let root = DirectorySource { root: "/".into(), name: "etc".into(), mode: 0 };
    assert!(operate(&place.volumes, Verb::Remove, root).is_err());
}
