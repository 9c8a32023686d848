//! Against the kernel's NFS server on this very machine, which exports /srv/nfs to it (no_root_squash), /srv/squash
//! (root_squash), and can be cut off by nftables.

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use berth_proto::volume_operation::Verb;

use super::*;

fn lab() -> Lab {
    Lab::new(|_, config| config.times.patience = Duration::from_secs(8))
}

fn sh(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    assert!(out.status.success(), "{line}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Packets to and from the server vanish.
fn cut(off: bool) {
    match off {
        true => {
            sh("nft add table inet cut; nft 'add chain inet cut in { type filter hook input priority 0; }'; \
                    nft add rule inet cut in tcp dport 2049 drop; nft add rule inet cut in tcp sport 2049 drop")
        }
        false => sh("nft delete table inet cut"),
    };
}

fn with(options: &[&str], sub_dir: &str) -> NfsSource {
    let mount_options = options.iter().map(|o| (*o).to_owned()).collect();
    NfsSource { mount_options, ..source("127.0.0.1", "/srv/nfs", sub_dir) }
}

#[tokio::test]
#[ignore = "needs a kernel NFS server and client: run in a virtual machine"]
async fn versions_3_4_1_and_4_2_are_mounted_with_their_options() {
    let lab = lab();
    for version in ["3", "4.1", "4.2"] {
        let source = with(&[&format!("nfsvers={version}"), "noatime"], &format!("v{version}"));
        let pod = format!("p{version}");
        let place = lab.mount(&pod, &source).await.unwrap();
        std::fs::write(place.join("page"), version).unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let line = mounts.lines().find(|line| line.contains(&format!("pods/{pod}/"))).unwrap();
        assert!(line.contains(&format!("vers={version}")) && line.contains("noatime"), "{line}");
        lab.unmount(&pod, &source).await.unwrap();
        assert_eq!(std::fs::read_to_string(format!("/srv/nfs/v{version}/page")).unwrap(), version);
        lab.nfs.operate(Verb::Remove, &source).await.unwrap();
        assert!(!Path::new(&format!("/srv/nfs/v{version}")).exists());
    }
    lab.until("all shares are unmounted", |lab| lab.mounts().is_empty()).await;
}

#[tokio::test]
#[ignore = "needs a kernel NFS server and client: run in a virtual machine"]
async fn root_squash_is_named_where_it_is_the_cause() {
    let lab = lab();
    sh("mkdir -p /srv/squash && chmod 755 /srv/squash && rm -rf /srv/squash/*");
    let closed = source("127.0.0.1", "/srv/squash", "a");
    let error = lab.mount("a", &closed).await.unwrap_err().to_string();
    assert!(error.contains("root_squash"), "{error}");
    sh("chmod 777 /srv/squash");
    let security = PodSecurity { fs_group: Some(4321), ..PodSecurity::default() };
    let place = lab.mount_as("a", &closed, &security).await.unwrap();
    assert_eq!(place.metadata().unwrap().uid(), 65534);
    let told = lab.news.told("a", "VolumePermissions").unwrap();
    assert!(told.contains("fsGroup 4321") && told.contains("root_squash"), "{told}");
    lab.unmount("a", &closed).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel NFS server and client: run in a virtual machine"]
async fn a_server_that_is_cut_off_is_named_and_what_was_written_arrives_before_the_end() {
    let lab = lab();
    let source = with(&["nfsvers=4.2"], "cut");
    let place = lab.mount("a", &source).await.unwrap();
    std::fs::write(place.join("before"), "1").unwrap();
    cut(true);
    // A process of the pod writes, and is killed with its pages unwritten.
    let mut writer = Command::new("sh")
        .args(["-c", "exec 3>\"$0/late\"; dd if=/dev/zero bs=1M count=4 >&3 2>/dev/null"])
        .arg(&place)
        .spawn()
        .unwrap();
    lab.until("silence is told", |lab| lab.news.told("a", "NFSServerNotAnswering").is_some()).await;
    writer.kill().unwrap();
    let begun = Instant::now();
    let error = lab.unmount("a", &source).await.unwrap_err().to_string();
    assert!(error.contains("may still arrive") && error.contains("has not answered since"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20));
    let again = Instant::now();
    for _ in 0..20 {
        assert!(lab.unmount("a", &source).await.is_err(), "not before the server has it");
    }
    println!(
        "asked 20 times again in {:?}; children: {}",
        again.elapsed(),
        sh("pgrep -fc volume-worker || true")
    );
    let children: u32 = sh("pgrep -fc '[v]olume-worker' || true").trim().parse().unwrap();
    assert!(children <= 4, "{children} children wait");
    cut(false);
    let begun = Instant::now();
    loop {
        match lab.unmount("a", &source).await {
            Ok(()) => break,
            Err(error) => assert!(begun.elapsed() < Duration::from_secs(120), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("stopped {:?} after the server was back", begun.elapsed());
    let _ = writer.wait();
    assert_eq!(std::fs::read_to_string("/srv/nfs/cut/before").unwrap(), "1");
}

#[tokio::test]
#[ignore = "needs a kernel NFS server and client: run in a virtual machine"]
async fn a_directory_that_was_replaced_on_the_server_is_found_stale_and_mounted_anew() {
    let lab = lab();
    let source = with(&["nfsvers=4.2", "acregmax=1", "acdirmax=1"], "stale");
    let place = lab.mount("a", &source).await.unwrap();
    std::fs::write(place.join("page"), "old").unwrap();
    sh("rm -r /srv/nfs/stale && mkdir -m 777 /srv/nfs/stale && echo new > /srv/nfs/stale/page");
    lab.until("it is found", |lab| !lab.news.lost.lock().unwrap().is_empty()).await;
    assert_eq!(lab.news.lost.lock().unwrap()[0], ("a".to_owned(), "data".to_owned()));
    lab.mount("a", &NfsSource { make: false, ..source.clone() }).await.unwrap();
    assert_eq!(std::fs::read_to_string(place.join("page")).unwrap(), "new\n");
    lab.unmount("a", &source).await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kernel NFS server and client: run in a virtual machine"]
async fn a_server_that_is_restarted_is_used_on() {
    let lab = lab();
    let source = with(&["nfsvers=4.2"], "restart");
    let place = lab.mount("a", &source).await.unwrap();
    std::fs::write(place.join("page"), "1").unwrap();
    sh("systemctl restart nfs-server");
    // The server's own grace period passes first.
    let written = tokio::task::spawn_blocking(move || std::fs::write(place.join("page"), "2"));
    tokio::time::timeout(Duration::from_secs(180), written).await.unwrap().unwrap().unwrap();
    assert!(lab.news.lost.lock().unwrap().is_empty());
    lab.unmount("a", &source).await.unwrap();
    assert_eq!(std::fs::read_to_string("/srv/nfs/restart/page").unwrap(), "2");
}
