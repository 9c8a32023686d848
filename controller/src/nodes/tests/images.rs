//! Images asked for before a pod is made.

use super::*;
use crate::reconcile::Images as _;

fn wants(image: &str) -> Value {
    json!({
        "metadata": {"name": "web-0", "namespace": "default"},
        "spec": {"containers": [{"name": "c", "image": image, "imagePullPolicy": "IfNotPresent"}]},
    })
}

async fn asked(agent: &mut Agent) -> Prefetch {
    match agent.next().await {
        Down::Prefetch(prefetch) => prefetch,
        other => panic!("no prefetch: {other:?}"),
    }
}

async fn answer(agent: &Agent, to: &Prefetch, error: &str) {
    let operation_id = to.operation_id;
    agent.say(Up::OperationResult(OperationResult { operation_id, error: error.into() })).await;
}

#[tokio::test]
async fn pods_that_want_the_same_images_on_a_host_are_one_request() {
    let controller = Controller::start().await;
    let mut agent = controller.agent("n1").await;
    let ensure = |image| tokio::spawn(controller.nodes.ensure("n1", &wants(image)));
    let (one, two, other) = (ensure("a:1"), ensure("a:1"), ensure("b:1"));
    let (first, second) = (asked(&mut agent).await, asked(&mut agent).await);
    let mut named = [&first, &second].map(|p| p.images[0].image.clone());
    named.sort();
    assert_eq!(named, ["a:1", "b:1"], "each image once");
    let (a, b) = if first.images[0].image == "a:1" { (first, second) } else { (second, first) };
    answer(&agent, &a, "").await;
    answer(&agent, &b, "image \"b:1\": no").await;
    assert_eq!((one.await.unwrap(), two.await.unwrap()), (Ok(()), Ok(())));
    assert_eq!(other.await.unwrap(), Err("node \"n1\": image \"b:1\": no".to_owned()));
    // What has been answered is asked anew: images come and go.
    let again = ensure("a:1");
    let third = asked(&mut agent).await;
    answer(&agent, &third, "").await;
    assert_eq!(again.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_host_that_is_away_or_goes_away_is_told_at_once() {
    let controller = Controller::start().await;
    let gone = controller.nodes.ensure("n1", &wants("a:1")).await.unwrap_err();
    assert_eq!(gone, "a:1: node \"n1\" has no session with the controller now");
    let mut agent = controller.agent("n1").await;
    let waiting = tokio::spawn(controller.nodes.ensure("n1", &wants("a:1")));
    let first = asked(&mut agent).await;
    drop(agent);
    assert_eq!(waiting.await.unwrap().unwrap_err(), gone);
    // An answer that comes late, in another session, is nobody's.
    let mut agent = controller.agent("n1").await;
    let again = tokio::spawn(controller.nodes.ensure("n1", &wants("a:1")));
    let second = asked(&mut agent).await;
    answer(&agent, &first, "too late").await;
    answer(&agent, &second, "").await;
    assert_eq!(again.await.unwrap(), Ok(()));
}
