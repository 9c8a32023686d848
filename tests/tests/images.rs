//! The images the other tests run are real ones: containerd takes them.

use berth_tests::host::{self, Host};
use berth_tests::{cluster, image};

#[test]
fn containerd_imports_the_images_made_without_a_registry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("h");
    let host = Host::start("h", &path).unwrap();
    let images = cluster::images_dir().unwrap();
    host.import(&image::busybox(&images).unwrap()).unwrap();
    host.import(&image::redis(&images).unwrap()).unwrap();
    for archive in image::web(&images).unwrap() {
        host.import(&archive).unwrap();
    }
    let names = host.ctr(&["images", "ls", "-q"]).unwrap();
    for name in ["busybox:latest", "redis:5-alpine", "httpd:latest", "nginx:latest", "luksa/kubia-pet:latest"]
    {
        assert!(names.contains(name), "{name} is missing in:\n{names}");
    }
    // The Redis of the distribution brought all it needs.
    let id = "docker.io/library/redis:latest";
    let version = host.ctr(&["run", "--rm", id, "probe", "/usr/bin/redis-server", "--version"]).unwrap();
    assert!(version.contains("Redis server v="), "{version}");
    host::remove(&path).unwrap();
    assert!(!path.exists());
}
