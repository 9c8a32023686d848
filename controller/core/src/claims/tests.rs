//! What a claim gets, and what becomes of it.

use super::*;

fn claim(more: Value) -> Value {
    let mut claim = json!({
        "metadata": {"name": "data-web-0", "namespace": "default", "uid": "u1", "resourceVersion": "7"},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
            "storageClassName": "local", "volumeMode": "Filesystem",
        },
        "status": {"phase": "Pending"},
    });
    for (key, value) in more.as_object().unwrap() {
        claim["spec"][key] = value.clone();
    }
    claim
}

fn volume(name: &str, size: &str, class: &str) -> Value {
    json!({
        "metadata": {"name": name, "labels": {"disk": name}},
        "spec": {
            "capacity": {"storage": size}, "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
            "storageClassName": class, "hostPath": {"path": format!("/mnt/{name}")},
            "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem",
        },
        "status": {"phase": "Available"},
    })
}

fn class(name: &str, provisioner: &str, mode: &str) -> Value {
    json!({
        "metadata": {"name": name}, "provisioner": provisioner, "volumeBindingMode": mode,
        "reclaimPolicy": "Delete",
    })
}

fn provisioners() -> Provisioners {
    let at = |root: &str, shared| Backend::Directories(Directories { root: root.to_owned(), shared });
    Provisioners::new([("bdqn".to_owned(), at("/srv/bdqn", false)), ("nas".to_owned(), at("/nas/", true))])
}

fn node(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {HOSTNAME: name}}})
}

fn stands(claim: &Value, volumes: &[Value], classes: &[Value]) -> Standing {
    let (volumes, classes): (Vec<&Value>, Vec<&Value>) = (volumes.iter().collect(), classes.iter().collect());
    standing(claim, &Storage { volumes: &volumes, classes: &classes, provisioners: &provisioners() })
}

fn bound_on(claim: &Value, on: &str, volumes: &[Value], classes: &[Value]) -> Result<Binding, String> {
    let (volumes, classes): (Vec<&Value>, Vec<&Value>) = (volumes.iter().collect(), classes.iter().collect());
    bind_on(
        claim,
        &node(on),
        &Storage { volumes: &volumes, classes: &classes, provisioners: &provisioners() },
    )
}

#[test]
fn a_claim_of_class_local_becomes_a_directory_on_its_pods_host() {
    let claim = claim(json!({}));
    assert_eq!(stands(&claim, &[], &[local_class()]), Standing::WithPod);
    let made = bound_on(&claim, "a", &[], &[local_class()]).unwrap();
    assert!(made.new);
    assert_eq!(
        made.volume,
        json!({
            "apiVersion": "v1", "kind": "PersistentVolume",
            "metadata": {
                "name": "pvc-u1", "annotations": {"pv.kubernetes.io/provisioned-by": "berth.dev/directory"},
            },
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "local",
                "volumeMode": "Filesystem",
                "local": {"path": "default-data-web-0-pvc-u1"},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": ["a"]},
                ]}]}},
                "claimRef": {
                    "kind": "PersistentVolumeClaim", "apiVersion": "v1", "namespace": "default",
                    "name": "data-web-0", "uid": "u1", "resourceVersion": "7",
                },
            },
            "status": {"phase": "Bound"},
        })
    );
    let (bound, pinned) = (&made.claim, pinned_to(&made.volume));
    assert_eq!(
        (&bound["spec"]["volumeName"], &bound["status"]["phase"]),
        (&json!("pvc-u1"), &json!("Bound"))
    );
    assert_eq!(bound["status"]["capacity"]["storage"], "1Gi");
    for (key, value) in [
        (SELECTED_NODE, "a"),
        (PROVISIONER, DIRECTORY_PROVISIONER),
        (BIND_COMPLETED, "yes"),
        (BOUND_BY_CONTROLLER, "yes"),
    ] {
        assert_eq!(object::annotation(bound, key), Some(value), "{key}");
    }
    assert_eq!(pinned, Some("a"));
    assert!(reaches(&made.volume, &node("a")) && !reaches(&made.volume, &node("b")));
    assert_eq!(
        stands(bound, std::slice::from_ref(&made.volume), &[local_class()]),
        Standing::Bound { volume: "pvc-u1".to_owned() }
    );
    assert_eq!(reclaim(&made.volume, &provisioners()), Reclaim::Dispose(OnDelete::Delete));
}

#[test]
fn a_mapped_provisioner_names_its_directories_as_the_nfs_subdir_provisioner_does() {
    let classes = [class("fast", "bdqn", "Immediate")];
    let claim = claim(json!({"storageClassName": "fast"}));
    assert_eq!(stands(&claim, &[], &classes), Standing::WithPod, "pinned to a host even if Immediate");
    let made = bound_on(&claim, "a", &[], &classes).unwrap();
    assert_eq!(made.volume["spec"]["local"]["path"], "/srv/bdqn/default-data-web-0-pvc-u1");
    assert_eq!(
        location(&made.volume),
        Ok(Location::Directory(Directory {
            root: "/srv/bdqn".into(),
            name: "default-data-web-0-pvc-u1".into()
        }))
    );
}

#[test]
fn shared_directories_are_bound_at_once_and_pinned_nowhere() {
    let claim = claim(json!({"storageClassName": "nas"}));
    let Standing::Now(made) = stands(&claim, &[], &[class("nas", "nas", "Immediate")]) else { panic!() };
    assert_eq!(made.volume["spec"]["hostPath"]["path"], "/nas/default-data-web-0-pvc-u1");
    assert!(reaches(&made.volume, &node("b")) && pinned_to(&made.volume).is_none());
    let late = [class("nas", "nas", "WaitForFirstConsumer")];
    assert_eq!(stands(&claim, &[], &late), Standing::WithPod);
}

#[test]
fn directories_of_hosts_are_kept_for_other_volumes_and_never_lie_in_one_another() {
    let class = |pattern: &str| {
        let mut class = class("nas", "nas", "Immediate");
        class["parameters"] = json!({"pathPattern": pattern});
        class
    };
    let claim = claim(json!({"storageClassName": "nas"}));
    let made = |pattern: &str, volumes: &[Value]| match stands(&claim, volumes, &[class(pattern)]) {
        Standing::Now(binding) => Ok(binding.volume),
        Standing::Waits { message, .. } => Err(message),
        other => panic!("{other:?}"),
    };
    let mut first = made("team/${.PVC.namespace}", &[]).unwrap();
    first["metadata"]["name"] = "first".into();
    first["spec"]["claimRef"]["name"] = "another".into();
    let second = made("team/default", std::slice::from_ref(&first)).unwrap();
    assert_eq!(used_by_another(&first, &[&first, &second]), Some("pvc-u1"));
    for nested in ["team", "team/default/x"] {
        let why = made(nested, std::slice::from_ref(&first)).unwrap_err();
        assert!(why.contains("\"first\" lie one in the other"), "{why}");
    }
    made("team/defaults", std::slice::from_ref(&first)).unwrap();
    // On another host it is another directory.
    let on = |host: &str| {
        let mut volume = first.clone();
        volume["metadata"]["name"] = host.into();
        volume["spec"]["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [host]}]},
        ]}});
        volume
    };
    assert_eq!(used_by_another(&on("a"), &[&on("b")]), None);
    assert_eq!(used_by_another(&on("a"), &[&first]), Some("first"));
    let of_agent = {
        let mut class = local_class();
        class["parameters"] = json!({"pathPattern": "a/b"});
        class
    };
    let claim = super::tests::claim(json!({}));
    assert!(bound_on(&claim, "a", &[], &[of_agent]).unwrap_err().contains("one name"));
}

#[test]
fn a_static_volume_is_the_smallest_that_fits_class_mode_size_and_selector() {
    let volumes = [
        volume("big", "10Gi", "manual"),
        volume("fits", "2Gi", "manual"),
        volume("small", "100Mi", "manual"),
        volume("other", "1Gi", "else"),
    ];
    let bound = |more: Value| match stands(&claim(more), &volumes, &[]) {
        Standing::Now(binding) => object::name(&binding.volume).to_owned(),
        other => format!("{other:?}"),
    };
    assert_eq!(bound(json!({"storageClassName": "manual"})), "fits");
    let selector = json!({"matchLabels": {"disk": "big"}});
    assert_eq!(bound(json!({"storageClassName": "manual", "selector": selector})), "big");
    assert!(bound(json!({"storageClassName": "manual", "accessModes": ["ReadOnlyMany"]})).contains("Waits"));
}

#[test]
fn a_volume_reserved_or_asked_for_by_name_is_taken() {
    let mut reserved = volume("reserved", "50Gi", "manual");
    reserved["spec"]["claimRef"] = json!({"namespace": "default", "name": "data-web-0"});
    let volumes = [volume("fits", "2Gi", "manual"), reserved];
    let manual = claim(json!({"storageClassName": "manual"}));
    let Standing::Now(binding) = stands(&manual, &volumes, &[]) else { panic!() };
    assert_eq!(object::name(&binding.volume), "reserved");
    let named = claim(json!({"storageClassName": "manual", "volumeName": "fits"}));
    let Standing::Now(binding) = stands(&named, &volumes, &[]) else { panic!() };
    assert_eq!(binding.claim["status"]["capacity"]["storage"], "2Gi");
    let taken = claim(json!({"storageClassName": "other", "volumeName": "fits"}));
    assert!(matches!(stands(&taken, &volumes, &[]), Standing::Waits { reason: "VolumeMismatch", .. }));
}

#[test]
fn what_cannot_be_bound_says_why() {
    let why = |more: Value, classes: &[Value]| match stands(&claim(more), &[], classes) {
        Standing::Waits { reason, message } => (reason, message),
        other => panic!("{other:?}"),
    };
    let (reason, message) = why(json!({"storageClassName": "gone"}), &[]);
    assert_eq!((reason, &*message), ("ProvisioningFailed", "storageclass.storage.k8s.io \"gone\" not found"));
    let (reason, message) =
        why(json!({"storageClassName": "x"}), &[class("x", "example.com/x", "Immediate")]);
    assert_eq!(reason, "ExternalProvisioning");
    assert!(message.contains("example.com/x"), "{message}");
    assert_eq!(why(json!({"storageClassName": ""}), &[]).0, "FailedBinding");
}

#[test]
fn a_bound_claim_whose_volume_is_gone_is_lost() {
    let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
    assert!(matches!(stands(&made.claim, &[], &[local_class()]), Standing::Lost { .. }));
}

#[test]
fn a_larger_request_grows_the_volume_if_its_class_allows_it() {
    let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
    let mut larger = made.claim.clone();
    larger["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
    let grown = |claim: &Value, class: &Value| {
        let storage = Storage { volumes: &[], classes: &[class], provisioners: &provisioners() };
        match growth(claim, &made.volume, &storage) {
            Growth::To(volume) => volume["spec"]["capacity"]["storage"].clone(),
            other => format!("{other:?}").into(),
        }
    };
    assert_eq!(grown(&larger, &local_class()), "2Gi");
    assert_eq!(grown(&made.claim, &local_class()), "None");
    assert!(grown(&larger, &class("local", "bdqn", "Immediate")).as_str().unwrap().starts_with("Refused"));
}

#[test]
fn a_half_written_binding_is_completed() {
    let made = bound_on(&claim(json!({})), "a", &[], &[local_class()]).unwrap();
    let mut half = made.claim.clone();
    half["status"] = json!({"phase": "Pending"});
    let Standing::Now(again) = stands(&half, std::slice::from_ref(&made.volume), &[local_class()]) else {
        panic!()
    };
    assert_eq!(again.claim["status"], made.claim["status"]);
}

#[test]
fn the_class_of_a_claim_may_be_in_the_annotation_of_before() {
    let mut old = claim(json!({}));
    old["spec"].as_object_mut().unwrap().remove("storageClassName");
    old["metadata"]["annotations"] = json!({CLASS_BETA: "fast"});
    assert!(!wants_default_class(&old), "it names one");
    let fitting = volume("b", "5Gi", "fast");
    let Standing::Now(binding) = stands(&old, &[volume("a", "1Gi", "slow"), fitting], &[]) else { panic!() };
    assert_eq!(object::name(&binding.volume), "b");
}

#[test]
fn the_youngest_default_class_is_for_claims_that_name_none() {
    let mut old = local_class();
    old["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut young = class("young", "bdqn", "Immediate");
    young["metadata"]["annotations"] = json!({DEFAULT_CLASS: "true"});
    young["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    assert_eq!(default_class(&[&old, &young, &class("x", "x", "Immediate")]), Some("young"));
    let mut none = claim(json!({}));
    none["spec"].as_object_mut().unwrap().remove("storageClassName");
    assert!(wants_default_class(&none));
    assert!(!wants_default_class(&claim(json!({"storageClassName": ""}))));
}

mod nfs {
    use proptest::prelude::*;

    use super::*;

    fn nfs_class(provisioner: &str, parameters: Value) -> Value {
        json!({
            "metadata": {"name": "c"}, "provisioner": provisioner, "parameters": parameters,
            "volumeBindingMode": "Immediate", "reclaimPolicy": "Delete",
        })
    }

    fn known() -> Provisioners {
        let export = Export {
            server: "nas".into(),
            share: "/nfsdata".into(),
            mount_options: vec!["nfsvers=4.1".into()],
        };
        Provisioners::new([("bdqn".to_owned(), Backend::Export(export))])
    }

    fn asks(claim: &Value, class: &Value, volumes: &[&Value]) -> Result<Value, String> {
        let known = known();
        let storage = Storage { volumes, classes: &[class], provisioners: &known };
        match standing(claim, &storage) {
            Standing::Now(binding) => Ok(binding.volume),
            Standing::Waits { reason: "ProvisioningFailed", message } => Err(message),
            other => panic!("{other:?}"),
        }
    }

    fn of_class(parameters: Value) -> Result<Value, String> {
        asks(&claim(json!({"storageClassName": "c"})), &nfs_class("nfs.csi.k8s.io", parameters), &[])
    }

    fn of_mapped(parameters: Value) -> Result<Value, String> {
        let mut claim = claim(json!({"storageClassName": "c"}));
        claim["metadata"]["labels"] = json!({"team": "db"});
        claim["metadata"]["annotations"] = json!({"nfs.io/storage-path": "a/b", "up": "../x"});
        asks(&claim, &nfs_class("bdqn", parameters), &[])
    }

    fn at(volume: &Value) -> Nfs {
        match location(volume).unwrap() {
            Location::Nfs(nfs) => *nfs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_driver_names_directories_after_the_volume_and_writes_what_csi_driver_nfs_would() {
        let parameters = json!({"server": "nas", "share": "/export", "mountPermissions": "0770"});
        let volume = of_class(parameters).unwrap();
        assert_eq!(
            volume["spec"]["csi"],
            json!({
                "driver": "nfs.csi.k8s.io", "volumeHandle": "nas#export#pvc-u1##",
                "volumeAttributes": {
                    "server": "nas", "share": "/export", "subDir": "pvc-u1", "mountPermissions": "0770",
                    "csi.storage.k8s.io/pv/name": "pvc-u1", "csi.storage.k8s.io/pvc/name": "data-web-0",
                    "csi.storage.k8s.io/pvc/namespace": "default",
                },
            })
        );
        let there = at(&volume);
        assert_eq!((there.full_path().as_str(), there.mode, there.make), ("/export/pvc-u1", 0o770, true));
        assert_eq!(there.new_mode, 0o755);
    }

    #[test]
    fn sub_dir_knows_the_names_of_claim_and_volume() {
        let sub_dir = |pattern: &str| {
            let parameters = json!({"server": "nas", "share": "/", "subDir": pattern, "onDelete": "archive"});
            of_class(parameters).map(|volume| at(&volume).full_path())
        };
        let all = "${pvc.metadata.namespace}/${pvc.metadata.name}-${pv.metadata.name}";
        assert_eq!(sub_dir(all).unwrap(), "/default/data-web-0-pvc-u1");
        for escaping in ["..", "a/../../b", "a//b", "./a", "a/\u{0}", "${pvc.metadata.uid}", "${open"] {
            assert!(sub_dir(escaping).is_err(), "{escaping}");
        }
    }

    #[test]
    fn what_becomes_of_the_drivers_directory_is_read_in_any_case() {
        for (given, expected) in [
            ("Retain", OnDelete::Retain),
            ("ARCHIVE", OnDelete::Archive),
            ("delete", OnDelete::Delete),
            ("", OnDelete::Delete),
        ] {
            let volume = of_class(json!({"server": "nas", "share": "/x", "OnDelete": given})).unwrap();
            assert_eq!(reclaim(&volume, &known()), Reclaim::Dispose(expected), "{given:?}");
        }
    }

    #[test]
    fn a_class_with_parameters_that_nobody_knows_is_refused_by_name() {
        let why = |parameters: Value| of_class(parameters).unwrap_err();
        assert!(why(json!({"share": "/"})).contains("parameter server"));
        assert!(why(json!({"server": "nas", "share": "x"})).contains("not an absolute path"));
        assert!(why(json!({"server": "nas", "share": "/", "nope": "1"})).contains("\"nope\""));
        assert!(why(json!({"server": "nas", "share": "/", "onDelete": "keep"})).contains("\"keep\""));
        assert!(why(json!({"server": "nas", "share": "/", "mountPermissions": "9"})).contains("octal"));
        assert!(why(json!({"server": "nas", "share": "/", "uid": "-1"})).contains("uid \"-1\""));
        assert!(of_mapped(json!({"server": "x"})).unwrap_err().contains("\"server\""));
    }

    #[test]
    fn a_mapped_provisioner_makes_what_nfs_subdir_external_provisioner_makes() {
        let volume = of_mapped(json!({})).unwrap();
        let path = "/nfsdata/default-data-web-0-pvc-u1";
        assert_eq!(volume["spec"]["nfs"], json!({"server": "nas", "path": path}));
        assert_eq!(volume["spec"]["mountOptions"], json!(["nfsvers=4.1"]));
        let there = at(&volume);
        assert_eq!((there.share.as_str(), there.sub_dir.as_str()), ("/nfsdata", "default-data-web-0-pvc-u1"));
        assert_eq!((there.new_mode, there.make), (0o777, true));
        assert_eq!(reclaim(&volume, &known()), Reclaim::Dispose(OnDelete::Archive));
        let end = |parameters: Value| reclaim(&of_mapped(parameters).unwrap(), &known());
        let unset = json!({"archiveOnDelete": "", "onDelete": "", "pathPattern": ""});
        assert_eq!(end(unset), Reclaim::Dispose(OnDelete::Archive), "as its chart leaves them");
        assert_eq!(end(json!({"archiveOnDelete": "false"})), Reclaim::Dispose(OnDelete::Delete));
        assert_eq!(
            end(json!({"archiveOnDelete": "false", "onDelete": "retain"})),
            Reclaim::Dispose(OnDelete::Retain)
        );
    }

    #[test]
    fn a_path_pattern_reads_labels_and_annotations_and_never_escapes() {
        let path = |pattern: &str| of_mapped(json!({"pathPattern": pattern})).map(|v| at(&v).sub_dir);
        assert_eq!(path("${.PVC.namespace}/${.PVC.labels.team}").unwrap(), "default/db");
        assert_eq!(path("${.PVC.annotations.nfs.io/storage-path}").unwrap(), "a/b");
        assert!(path("${.PVC.annotations.up}").unwrap_err().contains("\"..\""));
        assert!(path("${.PVC.labels.none}").unwrap_err().contains(".PVC.labels.none"));
    }

    #[test]
    fn volumes_made_by_the_provisioners_themselves_are_understood() {
        let moved = json!({
            "metadata": {"name": "pvc-9", "annotations": {PROVISIONED_BY: "bdqn"}},
            "spec": {
                "persistentVolumeReclaimPolicy": "Delete", "accessModes": ["ReadWriteOnce"],
                "nfs": {"server": "nas", "path": "/nfsdata/default-x-pvc-9", "readOnly": true},
            },
        });
        let there = at(&moved);
        assert_eq!((there.share.as_str(), there.sub_dir.as_str()), ("/nfsdata/default-x-pvc-9", ""));
        assert!(there.read_only && !there.make, "what is there is never taken for new");
        assert_eq!(reclaim(&moved, &known()), Reclaim::Dispose(OnDelete::Archive));
        let ends_in = |path: &str| {
            let mut volume = moved.clone();
            volume["spec"]["nfs"]["path"] = path.into();
            end_of(&volume, &known()).map(|end| match end {
                Location::Nfs(nfs) => (nfs.share, nfs.sub_dir),
                other => panic!("{other:?}"),
            })
        };
        let place = |share: &str, sub_dir: &str| Ok((share.to_owned(), sub_dir.to_owned()));
        assert_eq!(ends_in("/nfsdata/default-x-pvc-9"), place("/nfsdata", "default-x-pvc-9"));
        assert_eq!(ends_in("/nfsdata/team/x"), place("/nfsdata", "team/x"), "the share, where it is known");
        assert_eq!(ends_in("/nfsdatax/y/x"), place("/nfsdatax/y", "x"));
        assert_eq!(ends_in("/x"), place("/", "x"));
        assert!(ends_in("/").unwrap_err().contains("not touched"));
        let mut csi = moved.clone();
        csi["spec"].as_object_mut().unwrap().remove("nfs");
        csi["metadata"]["annotations"][PROVISIONED_BY] = NFS_DRIVER.into();
        csi["spec"]["csi"] = json!({
            "driver": NFS_DRIVER, "volumeHandle": "nas#share#d#pvc-9#retain",
            "volumeAttributes": {"server": "nas", "share": "/share", "subdir": "d"},
        });
        assert_eq!(at(&csi).full_path(), "/share/d");
        assert_eq!(reclaim(&csi, &known()), Reclaim::Dispose(OnDelete::Retain));
        assert_eq!(end_of(&csi, &known()), location(&csi));
        csi["metadata"]["annotations"] = json!({});
        assert_eq!(reclaim(&csi, &known()), Reclaim::Keep, "made by a person");
    }

    #[test]
    fn a_volume_of_the_driver_made_by_hand_is_what_its_attributes_say() {
        let attributes = json!({
            "server": "nas", "share": "/", "mountPermissions": "0750", "uid": "26", "gid": "27",
            "mountOptions": "nfsvers=4.1,noatime",
        });
        let mut by_hand = json!({
            "metadata": {"name": "v"},
            "spec": {
                "mountOptions": ["hard"],
                "csi": {"driver": NFS_DRIVER, "volumeHandle": "x", "volumeAttributes": attributes},
            },
        });
        let there = at(&by_hand);
        assert_eq!((there.share.as_str(), there.sub_dir.as_str(), there.make), ("/", "", false));
        assert_eq!((there.mode, there.uid, there.gid), (0o750, Some(26), Some(27)));
        assert_eq!(there.mount_options, ["hard", "nfsvers=4.1", "noatime"]);
        by_hand["spec"]["csi"]["volumeAttributes"]["subDir"] = "team/db".into();
        assert_eq!(at(&by_hand).full_path(), "/team/db");
        // A provisioner gave its owner once: what its users have made of it since is theirs.
        by_hand["metadata"]["annotations"] = json!({PROVISIONED_BY: NFS_DRIVER});
        assert_eq!((at(&by_hand).uid, at(&by_hand).gid), (None, None));
        by_hand["metadata"]["annotations"][UNUSED] = "true".into();
        assert_eq!(at(&by_hand).uid, Some(26));
    }

    #[test]
    fn a_directory_below_another_volumes_counts_as_in_use() {
        let export = |name: &str, path: &str| {
            json!({
                "metadata": {"name": name}, "spec": {"nfs": {"server": "nas", "path": path}},
                "status": {"phase": "Bound"},
            })
        };
        let own = export("own", "/data/a");
        let other = |path: &str| used_by_another(&own, &[&own, &export("other", path)]).is_some();
        assert!(other("/data/a") && other("/data/a/b") && other("/data/a/"));
        assert!(!other("/data") && !other("/data/ab"), "the share as a whole does not keep what is in it");
    }

    proptest! {
        /// Whatever a class, a claim's labels and annotations say: strictly below the share, or refused.
        #[test]
        fn no_pattern_leaves_the_share(
            pattern in "[a./$\\{\\}PVC\u{0}-]{0,24}",
            label in "[a./\u{0}]{0,8}",
            annotation in "(\\.\\./|/|a){0,5}",
            use_both in any::<bool>(),
        ) {
            let pattern = match use_both {
                true => format!("{pattern}${{.PVC.labels.l}}/${{.PVC.annotations.a}}"),
                false => pattern,
            };
            let mut claim = claim(json!({"storageClassName": "c"}));
            claim["metadata"]["labels"] = json!({"l": label});
            claim["metadata"]["annotations"] = json!({"a": annotation});
            let parameters = json!({"pathPattern": pattern});
            if let Ok(volume) = asks(&claim, &nfs_class("bdqn", parameters), &[]) {
                let there = at(&volume);
                prop_assert_eq!(&there.share, "/nfsdata");
                prop_assert!(!there.sub_dir.is_empty());
                let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
                prop_assert!(there.sub_dir.split('/').all(plain), "{}", there.sub_dir);
            }
        }
    }
}
