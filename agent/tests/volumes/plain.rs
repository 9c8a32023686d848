//! On a directory that stands for the export.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::time::Instant;

use berth_proto::volume_operation::Verb;

use super::*;

/// Servers are directories below `exports`; `<server>.down` beside one makes it hang.
const HELPER: &str = r#"#!/bin/sh
server=${1%%:*}
while test -e EXPORTS/$server.down; do sleep 0.05; done
test -d "EXPORTS/$1" || { echo "mount.nfs: mounting $1 failed, reason given by server: No such file or directory" >&2; exit 32; }
exec mount --bind "EXPORTS/$1" "$2"
"#;

/// The real worker, once the servers are up. A mount is detached without them, as it really is.
const WORKER: &str = r#"#!/bin/sh
request=$(cat)
case $request in
*Detach*) ;;
*) while test -e EXPORTS/worker.down; do sleep 0.05; done ;;
esac
printf %s "$request" | "$@"
"#;

fn script(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    path.to_owned()
}

fn lab() -> Lab {
    Lab::new(|dir, config| {
        // A file system of its own, as an export is.
        let exports = dir.join("exports");
        std::fs::create_dir(&exports).unwrap();
        nix::mount::mount(Some("tmpfs"), &exports, Some("tmpfs"), nix::mount::MsFlags::empty(), None::<&str>)
            .unwrap();
        // The helper's `server:/share` is the directory of that very name.
        for share in ["nas:/data", "other:/data"] {
            std::fs::create_dir_all(exports.join(share)).unwrap();
        }
        let exports = exports.display().to_string();
        config.helper = script(&dir.join("helper"), &HELPER.replace("EXPORTS", &exports));
        let worker = script(&dir.join("worker"), &WORKER.replace("EXPORTS", &exports));
        config.worker.insert(0, worker);
    })
}

impl Lab {
    fn export(&self, share: &str) -> PathBuf {
        self.dir.path().join("exports").join(share)
    }

    fn down(&self, what: &str, down: bool) {
        let flag = self.export(&format!("{what}.down"));
        match down {
            true => std::fs::write(flag, "").unwrap(),
            false => std::fs::remove_file(flag).unwrap(),
        }
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[tokio::test]
async fn a_share_is_mounted_once_and_each_volume_is_its_own_directory() {
    let lab = lab();
    let (a, b) = (source("nas", "/data", "default-a"), source("nas", "/data", "team/b"));
    let (at_a, at_b) = (lab.mount("a", &a).await.unwrap(), lab.mount("b", &b).await.unwrap());
    std::fs::write(at_a.join("page"), "of a").unwrap();
    std::fs::write(at_b.join("page"), "of b").unwrap();
    let export = lab.export("nas:/data");
    assert_eq!(std::fs::read_to_string(export.join("default-a/page")).unwrap(), "of a");
    assert_eq!(std::fs::read_to_string(export.join("team/b/page")).unwrap(), "of b");
    assert_eq!(mode(&export.join("default-a")), 0o777);
    assert_eq!((lab.shares(), lab.mounts().len()), (1, 3));
    lab.mount("a", &a).await.unwrap();
    assert_eq!(lab.mounts().len(), 3, "mounted again it is as it was");
    lab.unmount("a", &a).await.unwrap();
    lab.unmount("a", &a).await.unwrap();
    assert!(!at_a.exists() && at_b.join("page").exists() && lab.shares() == 1);
    lab.unmount("b", &b).await.unwrap();
    lab.until("the share is unmounted, since nobody uses it", |lab| lab.mounts().is_empty()).await;
    assert_eq!(std::fs::read_to_string(export.join("default-a/page")).unwrap(), "of a");
}

#[tokio::test]
async fn a_directory_that_was_there_before_is_never_made_anew() {
    let lab = lab();
    let used = NfsSource { make: false, ..source("nas", "/data", "mine") };
    let error = lab.mount("a", &used).await.unwrap_err().to_string();
    assert!(error.contains("is not on the server any more"), "{error}");
    assert!(!lab.export("nas:/data/mine").exists());
    std::fs::create_dir(lab.export("nas:/data/mine")).unwrap();
    lab.mount("a", &used).await.unwrap();
    let whole = NfsSource { make: false, sub_dir: String::new(), ..used };
    let place = lab.mount("whole", &whole).await.unwrap();
    assert!(place.join("mine").exists(), "a static volume is the share itself");
    let error = lab.mount("b", &source("nas", "/nothing", "x")).await.unwrap_err().to_string();
    assert!(error.contains("mounting nas:/nothing") && error.contains("No such file"), "{error}");
}

#[tokio::test]
async fn owner_mode_and_group_are_as_asked_for() {
    let lab = lab();
    let first = NfsSource { uid: Some(12), gid: Some(34), new_mode: 0o755, ..source("nas", "/data", "a") };
    let place = lab.mount("a", &first).await.unwrap();
    let data = place.metadata().unwrap();
    assert_eq!((data.uid(), data.gid(), mode(&place)), (12, 34, 0o755));
    let again = NfsSource { mode: 0o700, ..first.clone() };
    lab.mount("a", &again).await.unwrap();
    assert_eq!(mode(&place), 0o700, "mountPermissions count each time");
    std::fs::write(place.join("file"), "").unwrap();
    let security = PodSecurity { fs_group: Some(5678), ..PodSecurity::default() };
    lab.mount_as("a", &NfsSource { mode: 0, ..first }, &security).await.unwrap();
    assert_eq!(place.join("file").metadata().unwrap().gid(), 5678);
    assert_eq!(mode(&place) & 0o2770, 0o2770);
    assert!(lab.news.events.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_directory_made_by_hand_gets_its_owner_each_time_and_one_to_read_never() {
    let lab = lab();
    let export = lab.export("nas:/data");
    let theirs = NfsSource { make: false, uid: Some(26), gid: Some(27), ..source("nas", "/data", "") };
    let owner = || export.metadata().map(|data| (data.uid(), data.gid())).unwrap();
    let (place, pod) = (lab.place("reader"), life("reader"));
    let of = Of { pod: &pod, volume: "data", claim: "data", place: &place };
    lab.nfs.mount(&of, &theirs, &PodSecurity::default(), true).await.unwrap();
    assert_eq!(owner(), (0, 0));
    for pod in ["a", "b"] {
        lab.mount(pod, &theirs).await.unwrap();
        assert_eq!(owner(), (26, 27));
        std::os::unix::fs::chown(&export, Some(1), Some(1)).unwrap();
    }
}

#[tokio::test]
async fn a_server_that_goes_by_groups_of_its_own_is_named_and_only_where_they_are_needed() {
    let lab = lab();
    let a = source("nas", "/data", "a");
    let security = PodSecurity { fs_group: Some(5678), ..PodSecurity::default() };
    let place = lab.mount_as("a", &a, &security).await.unwrap();
    let tried = |user, group, groups: &[u32]| {
        let process = Process { user, group, groups: groups.to_vec() };
        lab.nfs.try_group(&life("a"), "data", process);
    };
    // As such a server answers whoever is not the owner.
    let answers = |mode| std::fs::set_permissions(&place, PermissionsExt::from_mode(mode)).unwrap();
    answers(0o2750);
    tried(0, 0, &[5678]);
    tried(999, 5678, &[]);
    tried(1000, 0, &[5678]);
    lab.until("user 1000 is told", |lab| lab.news.told("a", "VolumePermissions").is_some()).await;
    let told = lab.news.events.lock().unwrap().drain(..).collect::<Vec<_>>();
    assert_eq!(told.len(), 1, "{told:?}");
    let message = &told[0].2;
    for words in ["fsGroup 5678", "user 1000", "manage-gids=n", "runAsGroup: 5678"] {
        assert!(message.contains(words), "{message}");
    }
    answers(0o2770);
    tried(1001, 0, &[5678]);
    tried(1002, 0, &[]);
    lab.until("user 1002 is told", |lab| lab.news.told("a", "VolumePermissions").is_some()).await;
    let told = lab.news.events.lock().unwrap().clone();
    assert!(told.len() == 1 && told[0].2.contains("user 1002"), "a member may write: {told:?}");
}

#[tokio::test]
async fn nothing_leads_out_of_the_share() {
    let lab = lab();
    let export = lab.export("nas:/data");
    let outside = lab.dir.path().join("outside");
    std::fs::create_dir_all(outside.join("in")).unwrap();
    std::fs::write(outside.join("in/precious"), "").unwrap();
    symlink(&outside, export.join("link")).unwrap();
    symlink("../../outside", export.join("relative")).unwrap();
    for path in ["link", "link/in", "relative/in"] {
        let source = source("nas", "/data", path);
        let error = lab.mount("a", &source).await.unwrap_err().to_string();
        assert!(error.contains("symbolic link"), "{path}: {error}");
        for verb in [Verb::Remove, Verb::Archive, Verb::Make] {
            assert!(lab.nfs.operate(verb, &source).await.is_err(), "{path} {verb:?}");
        }
    }
    for path in ["..", "../outside", "a/../../x", "/etc", "", ".", "a//b", "a/."] {
        let source = source("nas", "/data", path);
        for verb in [Verb::Remove, Verb::Archive] {
            assert!(lab.nfs.operate(verb, &source).await.is_err(), "{path:?} {verb:?}");
        }
    }
    assert!(outside.join("in/precious").exists() && export.exists());
}

#[tokio::test]
async fn directories_are_archived_and_removed_by_whoever_reaches_the_server() {
    let lab = lab();
    let export = lab.export("nas:/data");
    std::fs::create_dir_all(export.join("team/a/deep/er")).unwrap();
    std::fs::write(export.join("team/a/deep/file"), "").unwrap();
    symlink("/etc", export.join("team/a/link")).unwrap();
    let a = source("nas", "/data", "team/a");
    lab.nfs.operate(Verb::Archive, &a).await.unwrap();
    lab.nfs.operate(Verb::Archive, &a).await.unwrap();
    assert!(export.join("team/archived-a/deep/file").exists() && !export.join("team/a").exists());
    std::fs::create_dir(export.join("team/a")).unwrap();
    lab.nfs.operate(Verb::Archive, &a).await.unwrap();
    assert!(export.join("team/archived-a-2").exists(), "an archive is never overwritten");
    let archived = source("nas", "/data", "team/archived-a");
    lab.nfs.operate(Verb::Remove, &archived).await.unwrap();
    lab.nfs.operate(Verb::Remove, &archived).await.unwrap();
    assert!(!export.join("team/archived-a").exists() && Path::new("/etc/passwd").exists());
    lab.until("the share is unmounted again", |lab| lab.mounts().is_empty()).await;
}

#[tokio::test]
async fn a_dead_server_holds_up_nobody_elses_volumes_and_is_named() {
    let lab = lab();
    lab.down("nas", true);
    let begun = Instant::now();
    let many: Vec<_> = (0..6).map(|n| (format!("p{n}"), source("nas", "/data", &format!("d{n}")))).collect();
    let mounting = async {
        let all = many.iter().map(|(pod, source)| lab.mount(pod, source));
        futures_util::future::join_all(all).await
    };
    let other = async {
        let begun = Instant::now();
        lab.mount("lucky", &source("other", "/data", "x")).await.unwrap();
        begun.elapsed()
    };
    let (dead, took) = tokio::join!(mounting, other);
    assert!(took < Duration::from_secs(2), "another server's volume took {took:?}");
    for error in dead.into_iter().map(Result::unwrap_err) {
        assert!(error.to_string().contains("NFS server nas has not answered since 20"), "{error}");
    }
    assert!(begun.elapsed() < Duration::from_secs(10));
    let told = lab.news.told("p0", "NFSServerNotAnswering").unwrap();
    assert!(told.contains("NFS server nas has not answered since"), "{told}");
    assert!(lab.news.told("lucky", "NFSServerNotAnswering").is_none());
    lab.down("nas", false);
    let begun = Instant::now();
    for (pod, source) in &many {
        while let Err(error) = lab.mount(pod, source).await {
            assert!(begun.elapsed() < PATIENCE, "{error}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    assert!(lab.news.told("p0", "NFSServerAnswering").is_some());
    assert_eq!(lab.shares(), 2);
}

#[tokio::test]
async fn a_volume_is_unmounted_only_when_what_was_written_has_arrived() {
    let lab = lab();
    let a = source("nas", "/data", "a");
    let place = lab.mount("a", &a).await.unwrap();
    lab.down("worker", true);
    lab.until("silence is told", |lab| lab.news.told("a", "NFSServerNotAnswering").is_some()).await;
    let error = lab.unmount("a", &a).await.unwrap_err().to_string();
    assert!(error.contains("has not answered since"), "{error}");
    // That its place could be detached says nothing of the server.
    assert_eq!(lab.mounts().len(), 1, "the share");
    assert!(lab.news.told("a", "NFSServerAnswering").is_none());
    lab.down("worker", false);
    // The next agent does not know the place any more once it is detached, and must flush all the same.
    let marker = place.with_file_name(".flush-data");
    assert!(marker.exists());
    let begun = Instant::now();
    while let Err(error) = lab.unmount("a", &a).await {
        assert!(begun.elapsed() < PATIENCE, "{error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(!marker.exists() && !place.exists());
}

#[tokio::test]
async fn a_server_in_use_that_falls_silent_is_told_to_its_pods_and_so_is_its_return() {
    let lab = lab();
    lab.mount("a", &source("nas", "/data", "a")).await.unwrap();
    lab.until("its use is told", |lab| !lab.news.usages.lock().unwrap().is_empty()).await;
    let usage = lab.news.usages.lock().unwrap()[0].clone();
    assert_eq!((usage.claim.as_str(), usage.enforced, usage.used_bytes), ("data", false, 0));
    lab.down("worker", true);
    lab.until("silence", |lab| lab.news.told("a", "NFSServerNotAnswering").is_some()).await;
    lab.down("worker", false);
    lab.until("its return", |lab| lab.news.told("a", "NFSServerAnswering").is_some()).await;
}

#[tokio::test]
async fn what_an_agent_before_has_left_mounted_goes() {
    let lab = lab();
    lab.mount("lost", &source("nas", "/data", "a")).await.unwrap();
    lab.nfs.clear(&lab.dir.path().join("pods/lost")).await.unwrap();
    assert_eq!(lab.mounts().len(), 1, "but for the share");
    let mut config = NfsConfig::new(lab.dir.path().join("run"));
    config.worker = vec![agent(), "volume-worker".into()];
    config.times = quick();
    let next = Nfs::new(config);
    next.listen(Ear(Arc::default()));
    lab.until("the share is unmounted", |lab| lab.mounts().is_empty()).await;
}

#[tokio::test]
async fn a_host_without_an_nfs_client_says_which_package_it_needs() {
    let lab = Lab::new(|dir, config| config.helper = dir.join("none"));
    let error = lab.mount("a", &source("nas", "/data", "a")).await.unwrap_err().to_string();
    assert!(error.contains("nfs-common"), "{error}");
}
