//! The benchmark's floor does real work on a real containerd and leaves nothing behind.

use berth_tests::host::{self, Host};
use berth_tests::{cluster, image, tools};

#[test]
fn the_floor_runs_a_round_and_cleans_up() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let host = Host::start("h", &path).unwrap();
    let archive = image::busybox(&cluster::images_dir().unwrap()).unwrap();
    let socket = host.containerd_socket().display().to_string();
    host.run("ctr", &["-a", &socket, "-n", "berth-floor", "images", "import", archive.to_str().unwrap()])
        .unwrap();
    let bench = tools::own("bench").unwrap();
    let work = host.dir.join("floor");
    let out = host.command(&bench).unwrap().arg("floor").arg(&socket).arg(&work).output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    let round: serde_json::Value = serde_json::from_str(&text).unwrap();
    eprintln!("{round}");
    for name in ["ordered", "parallel", "replace", "gap"] {
        assert!(round[name].as_f64().unwrap() > 0.0, "{round}");
    }
    let left = host.run("ctr", &["-a", &socket, "-n", "berth-floor", "containers", "ls", "-q"]).unwrap();
    assert_eq!(left, "");
    assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    host::remove(&path).unwrap();
}
