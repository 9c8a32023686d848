//! Claim templates that change, and the claims that are there.

use super::*;

pub fn templates(world: &mut World, change: impl Fn(&mut Value)) {
    world.edit(|set| change(&mut set["spec"]["volumeClaimTemplates"]));
}

pub fn request(storage: &str) -> Value {
    json!({"resources": {"requests": {"storage": storage}}})
}

/// Two pods, on bound claims of 1Gi.
pub fn bound() -> World {
    let mut world = World::new(false, 0, 2);
    templates(&mut world, |t| t[0]["spec"] = request("1Gi"));
    world.settle();
    for claim in world.claims.values_mut() {
        claim["status"] = json!({"phase": "Bound"});
    }
    world
}

pub fn requests(world: &World) -> Vec<&Value> {
    world.claims.values().map(|claim| &claim["spec"]["resources"]["requests"]["storage"]).collect()
}

#[test]
fn a_claim_that_was_made_larger_by_hand_stays_so_and_one_without_a_volume_waits_for_it() {
    let mut world = bound();
    world.claims.get_mut("data-web-0").unwrap()["spec"] = request("5Gi");
    world.claims.get_mut("data-web-1").unwrap()["status"] = json!({"phase": "Pending"});
    templates(&mut world, |t| t[0]["spec"] = request("2048Mi"));
    world.settle();
    assert_eq!(requests(&world), ["5Gi", "1Gi"]);
    world.claims.get_mut("data-web-1").unwrap()["status"] = json!({"phase": "Bound"});
    world.settle();
    assert_eq!(requests(&world), ["5Gi", "2048Mi"]);
}

#[test]
fn labels_and_annotations_reach_the_claims_and_what_others_wrote_there_stays() {
    let mut world = bound();
    let claim = world.claims.get_mut("data-web-0").unwrap();
    claim["metadata"]["annotations"] = json!({"theirs": "x", "note": "old"});
    templates(&mut world, |t| {
        t[0]["metadata"]["labels"] = json!({"tier": "gold", "app": "mine"});
        t[0]["metadata"]["annotations"] = json!({"note": "new"});
    });
    world.settle();
    let claim = &world.claims["data-web-0"];
    assert_eq!(claim["metadata"]["annotations"], json!({"theirs": "x", "note": "new"}));
    // The selector's labels are the set's to say.
    assert_eq!(claim["metadata"]["labels"], json!({"tier": "gold", "app": "web"}));
    assert_eq!(object::label(&world.claims["data-web-1"], "tier"), Some("gold"));
}

/// "Allow adding more volumeClaimTemplates to an existing statefulSet": Kubernetes refuses the edit.
#[test]
fn issue_69041_a_new_template_gets_its_claim_when_each_ordinal_is_next_replaced() {
    let mut world = bound();
    templates(&mut world, |t| {
        t.as_array_mut().unwrap().push(json!({"metadata": {"name": "more"}, "spec": request("3Gi")}));
    });
    world.settle();
    let claims = |world: &World| world.claims.keys().cloned().collect::<Vec<_>>();
    assert_eq!(claims(&world), ["data-web-0", "data-web-1"], "no pod would use it");
    world.delete_pod("web-1");
    world.settle();
    assert_eq!(claims(&world), ["data-web-0", "data-web-1", "more-web-1"]);
    let volumes = &world.pods["web-1"]["spec"]["volumes"];
    assert_eq!(volumes[1]["persistentVolumeClaim"]["claimName"], "more-web-1");
    world.take(&Step::Template(1));
    world.settle();
    assert_eq!(claims(&world), ["data-web-0", "data-web-1", "more-web-0", "more-web-1"]);
}

#[test]
fn a_claim_that_another_controller_owns_or_that_goes_is_left_alone() {
    let mut world = bound();
    world.claims.get_mut("data-web-0").unwrap()["metadata"]["deletionTimestamp"] =
        "2027-01-01T00:00:00Z".into();
    world.claims.get_mut("data-web-1").unwrap()["metadata"]["ownerReferences"] =
        json!([{"kind": "Operator", "name": "o", "uid": "o", "controller": true}]);
    templates(&mut world, |t| t[0]["spec"] = request("2Gi"));
    world.reconcile(None);
    assert_eq!(requests(&world), ["1Gi", "1Gi"]);
}
