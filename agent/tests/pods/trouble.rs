//! What cannot be had is told in words, and recovered from.

use std::time::Duration;

use berth_proto::{DirectorySource, NfsSource, Volume, VolumeMount, volume::Source};

use crate::host::{IMAGE, on_a_host};
use crate::lab::{Lab, SERVE, container, pod};

#[test]
fn a_missing_image_command_or_volume_is_named_and_its_coming_noticed() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let mut no_image = container("main", SERVE);
        no_image.image = "localhost:1/no/such:1".into();
        let mut no_command = container("main", SERVE);
        no_command.command = vec!["/no/such/program".into()];
        let mut no_volume = pod("volume", 9, vec![container("main", SERVE)]);
        no_volume.containers[0].mounts =
            vec![VolumeMount { volume: "data".into(), mount_path: "/data".into(), ..Default::default() }];
        let nfs = NfsSource { server: "nas".into(), share: "/export".into(), ..Default::default() };
        no_volume.volumes =
            vec![Volume { name: "data".into(), source: Some(Source::Nfs(nfs)), ..Default::default() }];
        let mut no_config = container("main", SERVE);
        no_config.config_error = "secret \"password\" not found".into();

        let image = pod("image", 7, vec![no_image]);
        let command = pod("command", 8, vec![no_command]);
        let config = pod("config", 10, vec![no_config]);
        for pod in [&image, &command, &no_volume, &config] {
            lab.pods().apply(pod.clone());
        }
        let waits = |lab: &Lab, name: &str, reason: &str| {
            lab.waits(name, "main").is_some_and(|(why, _)| why == reason)
        };
        lab.until("ErrImagePull", |lab| waits(lab, "image", "ErrImagePull")).await;
        lab.until("CreateContainerError", |lab| waits(lab, "command", "CreateContainerError")).await;
        let (_, why) = lab.waits("command", "main").unwrap();
        assert!(why.contains("/no/such/program"), "{why}");
        lab.until("a config error", |lab| waits(lab, "config", "CreateContainerConfigError")).await;
        assert_eq!(lab.waits("config", "main").unwrap().1, "secret \"password\" not found");
        lab.event("MountVolume.SetUp failed for volume \"data\"").await;
        lab.event("Pulling image \"localhost:1/no/such:1\"").await;
        lab.event("Failed to pull image \"localhost:1/no/such:1\"").await;
        assert_eq!(lab.statuses["volume"].phase, "Pending");
        lab.until("ImagePullBackOff", |lab| waits(lab, "image", "ImagePullBackOff")).await;

        // The causes go away.
        let mut image = image;
        image.containers[0].image = IMAGE.into();
        let mut command = command;
        command.containers[0].command = container("main", SERVE).command;
        let mut config = config;
        config.containers[0].config_error.clear();
        let source = DirectorySource { name: "data".into(), ..Default::default() };
        no_volume.volumes[0].source = Some(Source::Directory(source));
        for pod in [&image, &command, &no_volume, &config] {
            lab.pods().apply(pod.clone());
        }
        for name in ["image", "command", "config", "volume"] {
            lab.ready(name).await;
            assert_eq!(lab.status(name, "main").restart_count, 0);
            lab.end(name).await;
        }
        lab.no_traces().await;
    });
}

#[test]
fn a_network_that_cannot_be_had_is_told_and_tried_again() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        let conf = lab.host.dir.path().join("net.d");
        std::fs::create_dir_all(&conf).unwrap();
        let broken = conf.join("10-broken.conflist");
        std::fs::write(
            &broken,
            r#"{"cniVersion":"0.4.0","name":"broken","plugins":[{"type":"no-such-plugin"}]}"#,
        )
        .unwrap();
        lab.pods().apply(pod("web-0", 7, vec![container("main", SERVE)]));
        lab.event("Failed to create pod sandbox").await;
        std::fs::remove_file(&broken).unwrap();
        lab.ready("web-0").await;
        lab.end("web-0").await;
        lab.no_traces().await;
    });
}

#[test]
fn a_pod_stopped_at_any_moment_leaves_nothing() {
    on_a_host(|| async {
        let mut lab = Lab::new().await;
        for round in 0..12u8 {
            let name = format!("web-{round}");
            let mut web = pod(&name, 20 + round, vec![container("main", SERVE), container("side", SERVE)]);
            web.init_containers = vec![container("init", "exit 0")];
            lab.pods().apply(web);
            tokio::time::sleep(Duration::from_millis(u64::from(round) * 17)).await;
            lab.end(&name).await;
        }
        lab.no_traces().await;
    });
}
