use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc;

use super::*;

const LONG: Duration = Duration::from_secs(20);

/// Somebody who waits for default/web-0, and hears how it stands.
struct Waiter {
    done: tokio::task::JoinHandle<Result<(), String>>,
    heard: mpsc::UnboundedReceiver<String>,
}

fn waiter(run_dir: &Path, limit: Duration) -> Waiter {
    let run_dir = run_dir.to_owned();
    let (tell, heard) = mpsc::unbounded_channel();
    let done = tokio::spawn(async move {
        wait_ready(&run_dir, "default", "web-0", limit, |says| drop(tell.send(says.to_owned()))).await
    });
    Waiter { done, heard }
}

/// The next question that comes in.
async fn asked(listener: &UnixListener) -> (Question, OwnedWriteHalf) {
    let (connection, _) = listener.accept().await.unwrap();
    let (reader, writer) = connection.into_split();
    let line = BufReader::new(reader).lines().next_line().await.unwrap().unwrap();
    (serde_json::from_str(&line).unwrap(), writer)
}

async fn say(writer: &mut OwnedWriteHalf, standing: Standing) {
    writer.write_all(format!("{}\n", serde_json::to_string(&standing).unwrap()).as_bytes()).await.unwrap();
}

#[tokio::test]
async fn who_waits_hears_how_the_pod_stands_until_it_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, _keep) = bind(directory.path()).unwrap();
    let mut waiter = waiter(directory.path(), LONG);
    let (question, mut writer) = asked(&listener).await;
    assert_eq!((&*question.namespace, &*question.pod), ("default", "web-0"));
    say(&mut writer, Standing::not_ready("it is Pending")).await;
    assert_eq!(waiter.heard.recv().await.unwrap(), "it is Pending");
    say(&mut writer, Standing::ready("it is Ready")).await;
    waiter.done.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_agent_that_starts_later_or_again_is_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    // Not even the run directory is there yet.
    let run_dir = directory.path().join("run");
    let mut waiter = waiter(&run_dir, LONG);
    assert_eq!(waiter.heard.recv().await.unwrap(), "the agent does not run");
    fs::create_dir(&run_dir).unwrap();
    let (first, keep) = bind(&run_dir).unwrap();
    let (_, mut writer) = asked(&first).await;
    say(&mut writer, Standing::not_ready("it is Pending")).await;
    assert_eq!(waiter.heard.recv().await.unwrap(), "it is Pending");
    drop((first, keep, writer));
    assert_eq!(waiter.heard.recv().await.unwrap(), "the agent does not run");
    let (second, _keep) = bind(&run_dir).expect("over a dead agent's socket");
    let (_, mut writer) = asked(&second).await;
    say(&mut writer, Standing::ready("it is Ready")).await;
    waiter.done.await.unwrap().unwrap();
}

#[tokio::test]
async fn who_waits_in_vain_is_told_why() {
    let directory = tempfile::tempdir().unwrap();
    let (listener, _keep) = bind(directory.path()).unwrap();
    let mode = fs::metadata(directory.path().join(SOCKET)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let waiter = waiter(directory.path(), Duration::from_millis(500));
    let (_, mut writer) = asked(&listener).await;
    say(&mut writer, Standing::not_ready("it is Pending")).await;
    let refused = waiter.done.await.unwrap().unwrap_err();
    assert_eq!(refused, "not within 500ms: it is Pending");
}
