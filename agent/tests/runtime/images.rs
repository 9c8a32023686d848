//! Images from a real registry (Debian's docker-registry), and those containerd holds already.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use berth_agent::runtime::{ImageError, RegistryCredentials};
use berth_proto::{Prefetch, prefetch};
use oci_client::{
    Reference,
    client::{ClientConfig, ClientProtocol},
    secrets::RegistryAuth,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::host::{Host, IMAGE, layout, on_a_host};

struct Registry {
    child: Child,
    dir: PathBuf,
}

const USER: &str = "admin";
const PASSWORD: &str = "s3cret";
const HTPASSWD: &str = "admin:$2y$05$abcdefghijklmnopqrstuuLK7U1u6pVRmL7L1BBM2aS35PSZnDXlK\n";

impl Registry {
    fn start(dir: &Path) -> Registry {
        let dir = dir.join("registry");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: info}}\nstorage: {{filesystem: {{rootdirectory: {0}/data}}}}\n\
             http: {{addr: '127.0.0.1:5000'}}\nauth: {{htpasswd: {{realm: berth, path: {0}/htpasswd}}}}\n",
            dir.display()
        );
        fs::write(dir.join("config.yml"), config).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("package docker-registry");
        Registry { child, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap()
    }

    /// Pushes the test image as an index: ours, and one for a machine that this is not.
    async fn push(&self, layout: &Path) -> String {
        let client = oci_client::Client::new(ClientConfig {
            protocol: ClientProtocol::Http,
            ..ClientConfig::default()
        });
        let auth = RegistryAuth::Basic(USER.into(), PASSWORD.into());
        let name: Reference = "127.0.0.1:5000/team/box:1".parse().unwrap();
        for attempt in 0.. {
            match client.auth(&name, &auth, oci_client::RegistryOperation::Push).await {
                Ok(_) => break,
                Err(error) if attempt > 500 => panic!("{error}: {}", self.log()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let read = |digest: &str| {
            fs::read(layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"))).unwrap()
        };
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest = read(index["manifests"][0]["digest"].as_str().unwrap());
        let ours: Value = serde_json::from_slice(&manifest).unwrap();
        for blob in [&ours["config"], &ours["layers"][0]] {
            let digest = blob["digest"].as_str().unwrap();
            client.push_blob(&name, read(digest), digest).await.unwrap();
        }
        let mut theirs = ours.clone();
        theirs["annotations"] = json!({"for": "another machine"});
        let mut entries = Vec::new();
        for (document, architecture) in
            [(theirs, "s390x"), (ours, if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" })]
        {
            let bytes = document.to_string().into_bytes();
            let digest = digest(&bytes);
            let kind = "application/vnd.oci.image.manifest.v1+json";
            entries.push(json!({"mediaType": kind, "digest": digest, "size": bytes.len(),
                "platform": {"os": "linux", "architecture": architecture}}));
            let part = name.clone_with_digest(digest);
            client.push_manifest_raw(&part, bytes, kind.parse().unwrap()).await.unwrap();
        }
        let kind = "application/vnd.oci.image.index.v1+json";
        let index =
            json!({"schemaVersion": 2, "mediaType": kind, "manifests": entries}).to_string().into_bytes();
        let digest = digest(&index);
        client.push_manifest_raw(&name, index, kind.parse().unwrap()).await.unwrap();
        digest
    }

    /// Changes a byte of the largest blob where the registry keeps it.
    fn corrupt(&self) {
        let mut largest = (0, PathBuf::new());
        let mut left = vec![self.dir.join("data")];
        while let Some(dir) = left.pop() {
            for entry in fs::read_dir(dir).unwrap().flatten() {
                let meta = entry.metadata().unwrap();
                if meta.is_dir() {
                    left.push(entry.path());
                } else if meta.len() > largest.0 {
                    largest = (meta.len(), entry.path());
                }
            }
        }
        let mut bytes = fs::read(&largest.1).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&largest.1, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn credentials(password: &str) -> Vec<RegistryCredentials> {
    vec![RegistryCredentials {
        registry: "127.0.0.1:5000".into(),
        username: USER.into(),
        password: password.into(),
    }]
}

#[test]
fn an_image_is_pulled_once_for_all_who_want_it_and_survives_garbage_collection() {
    on_a_host(|| async {
        let host = Host::new().await;
        let registry = Registry::start(host.dir.path());
        let index = registry.push(&layout(&host.dir.path().join("image"))).await;
        let name = "127.0.0.1:5000/team/box:1";
        assert!(host.runtime.find_image(name).await.unwrap().is_none());
        let before = registry.log().matches("GET /v2/team/box/manifests/1 ").count();
        let good = credentials(PASSWORD);
        let (a, b, c) = tokio::join!(
            host.runtime.pull_image(name, &good),
            host.runtime.pull_image(name, &good),
            host.runtime.pull_image(name, &good),
        );
        let image = a.unwrap();
        assert_eq!((&image, &image), (&b.unwrap(), &c.unwrap()));
        let log = registry.log();
        assert_eq!(log.matches("GET /v2/team/box/manifests/1 ").count(), before + 1, "{log}");
        assert_eq!(image.name, name);
        assert_eq!(image.id, format!("127.0.0.1:5000/team/box@{index}"));
        assert_eq!(image.config.working_dir, "/data");
        assert_eq!(host.leftovers(), Vec::<String>::new());

        host.collect_garbage();
        let found = host.runtime.find_image(name).await.unwrap().unwrap();
        assert_eq!(found, image);
        let pod = host.pod("pulled").await;
        let spec = pod.container("main", &found, "echo runs");
        assert_eq!(pod.run(&spec).await.1, "runs\n");
        pod.end().await;

        // By digest, and a second time: what is there is not fetched again.
        let by_digest = format!("127.0.0.1:5000/team/box@{index}");
        let blobs = registry.log().matches("GET /v2/team/box/blobs/").count();
        let again = host.runtime.pull_image(&by_digest, &good).await.unwrap();
        assert_eq!((again.name.as_str(), &again.chain_id), (by_digest.as_str(), &image.chain_id));
        assert_eq!(registry.log().matches("GET /v2/team/box/blobs/").count(), blobs);
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn what_cannot_be_pulled_says_why() {
    on_a_host(|| async {
        let host = Host::new().await;
        let registry = Registry::start(host.dir.path());
        registry.push(&layout(&host.dir.path().join("image"))).await;
        let say = async |name: &str, password: Option<&str>| {
            let credentials = password.map(credentials).unwrap_or_default();
            let error = host.runtime.pull_image(name, &credentials).await.unwrap_err();
            assert_eq!(
                error.reason(),
                if name.contains("UPPER") { "InvalidImageName" } else { "ErrImagePull" }
            );
            error.to_string()
        };
        let name = "127.0.0.1:5000/team/box:1";
        for password in [None, Some("wrong")] {
            let text = say(name, password).await;
            assert!(text.contains("credentials") && text.contains(name), "{text}");
        }
        let text = say("127.0.0.1:5000/team/box:2", Some(PASSWORD)).await;
        assert!(text.ends_with("not found in the registry"), "{text}");
        let text = say("127.0.0.1:5000/no/such:1", Some(PASSWORD)).await;
        assert!(text.contains("not found") || text.contains("denies"), "{text}");
        let text = say("127.0.0.1:1/team/box:1", None).await;
        assert!(text.contains("refused"), "{text}");
        let text = say("no-such-host.invalid/box:1", None).await;
        assert!(text.contains("no-such-host.invalid"), "{text}");
        let text = say("UPPER/case", None).await;
        assert!(text.contains("couldn't parse"), "{text}");

        registry.corrupt();
        let text = say(name, Some(PASSWORD)).await;
        assert!(text.contains("igest") && text.contains("sha256:"), "{text}");
        assert!(host.runtime.find_image(name).await.unwrap().is_none());
        assert_eq!(host.leftovers(), Vec::<String>::new());

        // And once the cause is gone, it works.
        registry.corrupt();
        host.runtime.pull_image(name, &credentials(PASSWORD)).await.unwrap();
    });
}

#[test]
fn an_imported_image_that_is_not_unpacked_gets_unpacked() {
    on_a_host(|| async {
        let host = Host::new().await;
        host.import("berth", &["--no-unpack"]).await;
        assert!(!host.containerd.ctr(&["-n", "berth", "snapshots", "ls"]).contains("Committed"));
        let image = host.runtime.find_image("box:1").await.unwrap().expect("by its short name");
        assert_eq!(image.name, IMAGE);
        let pod = host.pod("imported").await;
        let spec = pod.container("main", &image, "echo runs");
        assert_eq!(pod.run(&spec).await.1, "runs\n");
        pod.end().await;
        assert_eq!(host.leftovers(), Vec::<String>::new());

        // What somebody removes from under us is unpacked again.
        host.containerd.ctr(&["-n", "berth", "snapshots", "rm", &image.chain_id]);
        let again = host.runtime.find_image(IMAGE).await.unwrap().unwrap();
        assert_eq!(again.chain_id, image.chain_id);
        assert!(host.containerd.ctr(&["-n", "berth", "snapshots", "ls"]).contains(&image.chain_id));
    });
}

#[test]
fn another_namespaces_image_is_shared() {
    on_a_host(|| async {
        let host = Host::new().await;
        host.import("default", &[]).await;
        let image = host.runtime.find_image(IMAGE).await.unwrap().expect("in namespace default");
        assert_eq!(host.leftovers(), Vec::<String>::new());
        host.containerd.ctr(&["-n", "default", "images", "rm", "--sync", IMAGE]);
        host.collect_garbage();
        let pod = host.pod("shared").await;
        let spec = pod.container("main", &image, "echo runs");
        assert_eq!(pod.run(&spec).await.1, "runs\n");
        assert!(host.runtime.find_image(IMAGE).await.unwrap().is_some());
        pod.end().await;
    });
}

#[test]
fn what_a_namespace_that_nobody_named_holds_does_not_disturb_a_pull() {
    on_a_host(|| async {
        let host = Host::new().await;
        let registry = Registry::start(host.dir.path());
        registry.push(&layout(&host.dir.path().join("image"))).await;
        let name = "127.0.0.1:5000/team/box:1";
        let user = format!("{USER}:{PASSWORD}");
        host.containerd.ctr(&["-n", "stranger", "images", "pull", "--plain-http", "--user", &user, name]);
        let image = host.runtime.pull_image(name, &credentials(PASSWORD)).await.unwrap();
        assert_eq!(image.name, name);
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn leftovers_of_an_agent_that_died_are_cleared() {
    on_a_host(|| async {
        let (host, _) = Host::with_image().await;
        host.containerd.ctr(&["-n", "berth", "leases", "create", "--id", "dead", "berth.dev/lease=image"]);
        host.containerd.ctr(&["-n", "berth", "leases", "create", "--id", "theirs"]);
        host.containerd.ctr(&["-n", "berth", "snapshots", "prepare", "extract-berth-dead sha256:x"]);
        host.containerd.ctr(&["-n", "berth", "snapshots", "prepare", "extract-theirs sha256:x"]);
        host.runtime
            .clear_leftovers(jiff::Timestamp::now() - jiff::SignedDuration::from_mins(1))
            .await
            .unwrap();
        assert_eq!(host.leftovers().len(), 4, "they are young: perhaps somebody is at it");
        host.runtime
            .clear_leftovers(jiff::Timestamp::now() + jiff::SignedDuration::from_mins(1))
            .await
            .unwrap();
        let left = host.leftovers();
        assert!(left.len() == 2 && left.iter().all(|one| one.contains("theirs")), "{left:?}");
    });
}

#[test]
fn images_are_fetched_before_a_pod_needs_them_as_its_own_start_would() {
    on_a_host(|| async {
        let host = Host::new().await;
        let registry = Registry::start(host.dir.path());
        registry.push(&layout(&host.dir.path().join("image"))).await;
        let name = "127.0.0.1:5000/team/box:1";
        let fetch = |image: &str, policy: &str, password: &str| {
            let request = Prefetch {
                operation_id: 7,
                images: vec![prefetch::Image { image: image.into(), pull_policy: policy.into() }],
                registry_auth: vec![berth_proto::RegistryAuth {
                    registry: "127.0.0.1:5000".into(),
                    username: USER.into(),
                    password: password.into(),
                }],
            };
            let runtime = host.runtime.clone();
            async move {
                let result = berth_agent::prefetch::prefetch(&runtime, request).await;
                assert_eq!(result.operation_id, 7);
                result.error
            }
        };
        let never = fetch(name, "Never", PASSWORD).await;
        assert!(never.contains(name) && never.contains("Never"), "{never}");
        let denied = fetch(name, "IfNotPresent", "wrong").await;
        assert!(denied.contains(name) && denied.contains("credentials"), "{denied}");
        let unknown = fetch("127.0.0.1:5000/team/box:2", "IfNotPresent", PASSWORD).await;
        assert!(unknown.contains("team/box:2") && unknown.contains("not found"), "{unknown}");
        assert!(host.runtime.find_image(name).await.unwrap().is_none());

        let asked = || registry.log().matches("GET /v2/team/box/manifests/1 ").count();
        let before = asked();
        let (one, other) =
            tokio::join!(fetch(name, "IfNotPresent", PASSWORD), fetch(name, "IfNotPresent", PASSWORD));
        assert_eq!((one.as_str(), other.as_str()), ("", ""));
        assert_eq!(asked(), before + 1, "one pull for all");
        assert!(host.runtime.find_image(name).await.unwrap().is_some());
        assert_eq!(fetch(name, "IfNotPresent", "wrong").await, "", "what is here is not asked for");
        assert_eq!(fetch(name, "Never", PASSWORD).await, "");
        assert_eq!(asked(), before + 1);
        assert_eq!(fetch(name, "Always", PASSWORD).await, "");
        assert_eq!(asked(), before + 2);
        assert_eq!(host.leftovers(), Vec::<String>::new());
    });
}

#[test]
fn never_is_a_policy_of_the_caller() {
    let error = ImageError::Never("x".into());
    assert_eq!(error.reason(), "ErrImageNeverPull");
}
