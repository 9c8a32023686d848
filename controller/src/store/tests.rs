use std::collections::BTreeMap;
use std::fs;
use std::io::{Seek, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn pod(name: &str) -> Key {
    Key::new("pods", "default", name)
}

fn body(text: &str) -> serde_json::Value {
    json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"uid": text}, "spec": {"text": text}})
}

async fn put(store: &Store, key: Key, text: &str) -> Revision {
    store.commit(Transaction::new().put(key, body(text))).await.unwrap()
}

fn names(list: &List) -> Vec<&str> {
    list.objects.iter().map(|o| o.key.name.as_str()).collect()
}

#[tokio::test]
async fn an_object_carries_its_revision_and_comes_back_as_it_was_put() {
    let store = Store::in_memory().unwrap();
    let mut value = body("a");
    value["metadata"]["resourceVersion"] = "stale".into();
    value["metadata"]["annotations"] =
        json!({"last": r#"{"kind":"Pod","metadata":{"resourceVersion":"7"}}"#});
    let done = store.write(Transaction::new().put(pod("a"), value.clone())).await.unwrap();
    value["metadata"]["resourceVersion"] = done.revision.to_string().into();
    let object = store.get(&pod("a")).unwrap();
    assert_eq!(object.value(), value);
    assert_eq!(done.objects[0].bytes, object.bytes);
    assert!(object.bytes.starts_with(br#"{"kind":"Pod","apiVersion":"v1","metadata":{"#));
}

#[tokio::test]
async fn filters_read_labels_owners_and_deletion_without_parsing() {
    let store = Store::in_memory().unwrap();
    let value = json!({"metadata": {
        "uid": "u", "labels": {"b": "2", "a": "1"}, "deletionTimestamp": "2026-11-21T08:45:09Z",
        "ownerReferences": [{"uid": "o", "kind": "StatefulSet", "name": "web", "apiVersion": "apps/v1", "controller": true}],
    }});
    store.commit(Transaction::new().put(pod("a"), value)).await.unwrap();
    let meta = store.get(&pod("a")).unwrap().meta.clone();
    assert_eq!((meta.labels.get("a"), meta.labels.get("c")), (Some("1"), None));
    assert_eq!(meta.labels.iter().map(|(k, _)| k).collect::<Vec<_>>(), ["a", "b"]);
    assert!(meta.deleting && !meta.finalizers && meta.owners[0].controller);
    assert_eq!((&*meta.uid, &*meta.owners[0].uid), ("u", "o"));
}

#[tokio::test]
async fn kin_are_what_a_controller_owns_and_what_bears_its_name() {
    let store = Store::in_memory().unwrap();
    let owned =
        |by: &str| json!({"metadata": {"uid": "u", "ownerReferences": [{"uid": by, "controller": true}]}});
    let kin = || -> Vec<String> {
        store.kin("pods", "default", "set", "web-").iter().map(|o| o.key.name.clone()).collect()
    };
    let mut all = Transaction::new();
    for (name, by) in [("web-1", "set"), ("web-0", "other"), ("other", "set"), ("webs-0", "x"), ("z", "x")] {
        all = all.put(pod(name), owned(by));
    }
    all = all.put(Key::new("pods", "elsewhere", "web-2"), owned("set"));
    store.commit(all).await.unwrap();
    assert_eq!(kin(), ["other", "web-0", "web-1"]);
    // Whatever changes hands, or goes.
    let given =
        Transaction::new().put(pod("other"), owned("x")).put(pod("z"), owned("set")).delete(pod("web-1"));
    store.commit(given).await.unwrap();
    assert_eq!(kin(), ["web-0", "z"]);
    store.commit(Transaction::new().delete(pod("z"))).await.unwrap();
    assert_eq!(kin(), ["web-0"]);
}

#[tokio::test]
async fn a_transaction_whose_check_fails_changes_nothing() {
    let store = Store::in_memory().unwrap();
    let first = put(&store, pod("a"), "1").await;
    let refused = [
        Transaction::new().absent(pod("a")),
        Transaction::new().unchanged(pod("a"), first + 1),
        Transaction::new().unchanged(pod("b"), first),
        Transaction::new().present(pod("b")),
    ];
    for transaction in refused {
        let transaction = transaction.put(pod("c"), body("c")).delete(pod("a"));
        assert!(matches!(store.commit(transaction).await, Err(CommitError::Conflict { .. })));
    }
    assert_eq!(store.revision(), first);
    assert_eq!(names(&store.list(&Scope::all("pods"))), ["a"]);
}

#[tokio::test]
async fn what_is_no_object_is_refused() {
    let store = Store::in_memory().unwrap();
    for value in [json!(1), json!({"metadata": 1}), json!({"metadata": {"labels": {"a": 1}}})] {
        let refused = store.commit(Transaction::new().put(pod("a"), value)).await;
        assert!(matches!(refused, Err(CommitError::Unavailable(_))), "{refused:?}");
    }
}

#[tokio::test]
async fn all_writes_of_a_transaction_share_a_revision_and_are_seen_together() {
    let store = Store::in_memory().unwrap();
    let mut watch = store.watch(&Scope::all("pods"), store.revision()).unwrap();
    put(&store, pod("a"), "1").await;
    let both = Transaction::new().put(pod("b"), body("b")).delete(pod("a")).delete(pod("none"));
    let revision = store.commit(both).await.unwrap();
    let batch = watch.next().await.unwrap();
    let seen: Vec<_> =
        batch.events.iter().map(|e| (e.revision, e.kind, e.object.key.name.as_str())).collect();
    assert_eq!(
        seen,
        [
            (revision - 1, EventKind::Put, "a"),
            (revision, EventKind::Put, "b"),
            (revision, EventKind::Deleted, "a")
        ]
    );
    let gone = &batch.events[2];
    assert_eq!(gone.object.value()["metadata"]["resourceVersion"], revision.to_string());
    assert_eq!(gone.previous.as_ref().unwrap().revision, revision - 1);
    assert_eq!(batch.revision, revision);
}

#[tokio::test]
async fn a_watch_sees_its_own_scope_only_and_keeps_up_with_the_rest() {
    let store = Store::in_memory().unwrap();
    let start = store.revision();
    let mut watch = store.watch(&Scope::namespaced("pods", "other"), start).unwrap();
    put(&store, pod("a"), "1").await;
    let newest = put(&store, Key::new("services", "other", "a"), "1").await;
    assert!(watch.poll().unwrap().is_none());
    assert_eq!(watch.revision(), newest);
    let mine = put(&store, Key::new("pods", "other", "b"), "1").await;
    assert_eq!(watch.revision(), newest, "a bookmark never runs ahead of an event");
    assert_eq!(watch.next().await.unwrap().revision, mine);
    assert_eq!(watch.revision(), mine);
}

#[tokio::test]
async fn a_waiting_watch_is_woken() {
    let store = Store::in_memory().unwrap();
    let mut watch = store.watch(&Scope::all("pods"), store.revision()).unwrap();
    let waiting = tokio::spawn(async move { watch.next().await });
    tokio::task::yield_now().await;
    let revision = put(&store, pod("a"), "1").await;
    assert_eq!(waiting.await.unwrap().unwrap().events[0].revision, revision);
}

#[tokio::test]
async fn history_is_bounded_per_resource_and_a_slow_watch_expires() {
    let store = Store::in_memory().unwrap();
    let start = store.revision();
    let mut slow = store.watch(&Scope::all("pods"), start).unwrap();
    let mut quiet = store.watch(&Scope::all("services"), start).unwrap();
    let large = "x".repeat(300 << 10);
    for _ in 0..20 {
        put(&store, pod("a"), &large).await;
    }
    let expired = slow.next().await.unwrap_err();
    assert_eq!(expired, Expired { asked: start, oldest: store.oldest(&Scope::all("pods")) });
    assert!(store.watch(&Scope::all("pods"), expired.oldest).is_ok());
    assert!(store.watch(&Scope::all("pods"), store.revision() + 1).is_err(), "the future is no history");
    put(&store, Key::new("services", "default", "a"), "1").await;
    assert_eq!(quiet.next().await.unwrap().events.len(), 1);
}

#[tokio::test]
async fn pages_of_one_revision_are_exact_whatever_is_written_between_them() {
    let store = Store::in_memory().unwrap();
    for name in ["a", "b", "c", "d"] {
        put(&store, pod(name), name).await;
    }
    let scope = Scope::namespaced("pods", "default");
    let first = store.list_page(&scope, None, None, 2).unwrap();
    assert_eq!((names(&first), first.remaining), (vec!["a", "b"], 2));
    store.commit(Transaction::new().delete(pod("c")).put(pod("bb"), body("new"))).await.unwrap();
    put(&store, pod("d"), "changed").await;
    let second = store.list_page(&scope, Some(first.revision), Some(("default", "b")), 10).unwrap();
    assert_eq!((names(&second), second.remaining), (vec!["c", "d"], 0));
    assert_eq!(second.objects[1].value()["spec"]["text"], "d");
    assert_eq!(names(&store.list(&scope)), ["a", "b", "bb", "d"]);
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("berth.db");
    (directory, path)
}

#[tokio::test]
async fn the_revision_survives_a_restart_also_when_the_newest_write_was_a_deletion() {
    let (_directory, path) = place();
    let store = Store::open(&path).unwrap();
    put(&store, pod("a"), "a").await;
    put(&store, pod("b"), "b").await;
    let newest = store.commit(Transaction::new().delete(pod("a"))).await.unwrap();
    let kept = store.get(&pod("b")).unwrap();
    store.close().await;
    assert!(matches!(
        store.commit(Transaction::new().delete(pod("b"))).await,
        Err(CommitError::Unavailable(_))
    ));

    let again = Store::open(&path).unwrap();
    assert_eq!(again.revision(), newest);
    assert_eq!(names(&again.list(&Scope::all("pods"))), ["b"]);
    let read = again.get(&pod("b")).unwrap();
    assert_eq!((&read.bytes, &read.meta, read.revision), (&kept.bytes, &kept.meta, kept.revision));
    assert!(again.watch(&Scope::all("pods"), newest - 1).is_err(), "history does not outlive the process");
    assert!(again.watch(&Scope::all("pods"), newest).is_ok());
    assert_eq!(put(&again, pod("c"), "c").await, newest + 1);
}

#[tokio::test]
async fn the_database_is_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let (directory, path) = place();
    let store = Store::open(&path).unwrap();
    put(&store, pod("a"), "a").await;
    for entry in fs::read_dir(directory.path()).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    assert!(matches!(Store::open(&path).err().unwrap(), OpenError::Locked(_)));
}

/// A sound database with enough in it, closed.
async fn filled(path: &Path) {
    let store = Store::open(path).unwrap();
    for i in 0..100 {
        put(&store, pod(&format!("pod-{i}")), &"content ".repeat(100)).await;
    }
    store.close().await;
}

fn refused_untouched(path: &Path) -> OpenError {
    let before = fs::read(path).unwrap();
    let refusal = Store::open(path).err().expect("refused");
    assert_eq!(fs::read(path).unwrap(), before, "left as it was: {refusal}");
    refusal
}

#[tokio::test]
async fn a_damaged_database_is_refused_and_left_untouched() {
    for at in [0_u64, 4096, 4096 * 3, 4096 * 10, 4096 * 20 - 64] {
        let (_directory, path) = place();
        filled(&path).await;
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[0x5a; 64]).unwrap();
        let refusal = refused_untouched(&path);
        assert!(matches!(refusal, OpenError::Damaged { .. }), "at {at}: {refusal}");
        assert!(refusal.to_string().contains("damaged"), "{refusal}");
    }
}

#[tokio::test]
async fn a_database_cut_short_is_refused() {
    for length in [0, 50, 4096, 4096 * 10 + 100] {
        let (_directory, path) = place();
        filled(&path).await;
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length).unwrap();
        let refusal = refused_untouched(&path);
        assert!(matches!(refusal, OpenError::Damaged { .. }), "{length}: {refusal}");
    }
}

#[tokio::test]
async fn a_single_changed_character_of_an_object_is_noticed() {
    let (_directory, path) = place();
    filled(&path).await;
    let mut bytes = fs::read(&path).unwrap();
    // Everywhere: SQLite leaves stale copies in the unused parts of its pages.
    let hits: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at..].starts_with(br#""text":"content"#)).collect();
    hits.into_iter().for_each(|at| bytes[at + 8] = b'C');
    fs::write(&path, bytes).unwrap();
    assert!(refused_untouched(&path).to_string().contains("is not as it was written"));
}

#[tokio::test]
async fn a_newer_format_is_refused_also_while_it_is_only_in_the_log() {
    let (_directory, path) = place();
    filled(&path).await;
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 7).unwrap();
    // Copied while open, so that the change is in the log and not yet in the file.
    let (_other, copy) = place();
    fs::copy(&path, &copy).unwrap();
    fs::copy(path.with_extension("db-wal"), copy.with_extension("db-wal")).unwrap();
    assert!(matches!(refused_untouched(&copy), OpenError::Newer { found: 7, known: 1, .. }));
    drop(newer);
    let refusal = refused_untouched(&path);
    assert!(refusal.to_string().contains("newer Berth"), "{refusal}");
}

#[tokio::test]
async fn somebody_elses_file_is_refused() {
    let (_directory, path) = place();
    rusqlite::Connection::open(&path).unwrap().execute_batch("CREATE TABLE t (x); VACUUM;").unwrap();
    assert!(matches!(refused_untouched(&path), OpenError::Foreign(_)));
    fs::write(&path, "hello, this is a text file\n".repeat(20)).unwrap();
    assert!(matches!(refused_untouched(&path), OpenError::Damaged { .. }));
}

#[tokio::test]
async fn a_directory_that_is_missing_is_named() {
    let (directory, _) = place();
    let path = directory.path().join("none/berth.db");
    assert!(Store::open(&path).err().unwrap().to_string().contains("none/berth.db"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_writers_that_saw_the_same_state_one_wins() {
    let (_directory, path) = place();
    let store = Store::open(&path).unwrap();
    let mut seen = put(&store, pod("a"), "start").await;
    for _ in 0..10 {
        let writers: Vec<_> = (0..16)
            .map(|i| {
                let store = store.clone();
                tokio::spawn(async move {
                    let change =
                        Transaction::new().unchanged(pod("a"), seen).put(pod("a"), body(&i.to_string()));
                    store.commit(change).await
                })
            })
            .collect();
        let mut won = Vec::new();
        for writer in writers {
            won.extend(writer.await.unwrap().ok());
        }
        assert_eq!(won.len(), 1);
        assert_eq!(won[0], seen + 1);
        seen = won[0];
    }
}

#[derive(Clone, Debug)]
enum Op {
    Put(u8),
    Create(u8),
    Replace(u8, bool),
    Delete(u8),
    Two(u8, u8),
}

fn op() -> impl Strategy<Value = Op> {
    let key = 0..8_u8;
    prop_oneof![
        key.clone().prop_map(Op::Put),
        key.clone().prop_map(Op::Create),
        (key.clone(), any::<bool>()).prop_map(|(k, stale)| Op::Replace(k, stale)),
        key.clone().prop_map(Op::Delete),
        (key.clone(), key).prop_map(|(a, b)| Op::Two(a, b)),
    ]
}

/// Two namespaces and two resources.
fn key_of(k: u8) -> Key {
    let resource = if k & 1 == 0 { "pods" } else { "services" };
    Key::new(resource, if k & 2 == 0 { "one" } else { "two" }, format!("n{}", k / 4))
}

type State = BTreeMap<Key, Revision>;

fn content(store_list: &List) -> State {
    store_list.objects.iter().map(|o| (o.key.clone(), o.revision)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Against a plain map: every answer, every snapshot, every page of the past, and every watch.
    #[test]
    fn the_store_behaves_as_a_map_with_history(ops in proptest::collection::vec(op(), 1..60)) {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
            let store = Store::in_memory().unwrap();
            let mut model = State::new();
            let mut past: Vec<(Revision, State)> = vec![(store.revision(), model.clone())];
            for op in ops {
                let next = store.revision() + 1;
                let value = body(&next.to_string());
                let (transaction, change): (_, Option<Vec<(Key, bool)>>) = match op {
                    Op::Put(k) => {
                        (Transaction::new().put(key_of(k), value), Some(vec![(key_of(k), true)]))
                    }
                    Op::Create(k) => {
                        let free = !model.contains_key(&key_of(k));
                        (Transaction::new().absent(key_of(k)).put(key_of(k), value),
                         free.then(|| vec![(key_of(k), true)]))
                    }
                    Op::Replace(k, stale) => {
                        let found = model.get(&key_of(k)).copied();
                        let seen = found.unwrap_or(1) - u64::from(stale);
                        (Transaction::new().unchanged(key_of(k), seen).put(key_of(k), value),
                         (found == Some(seen)).then(|| vec![(key_of(k), true)]))
                    }
                    Op::Delete(k) => {
                        (Transaction::new().delete(key_of(k)), Some(vec![(key_of(k), false)]))
                    }
                    Op::Two(a, b) => {
                        let mut writes = vec![(key_of(a), true)];
                        if a == b { writes.clear(); }
                        writes.push((key_of(b), false));
                        (Transaction::new().put(key_of(a), value).delete(key_of(b)), Some(writes))
                    }
                };
                let answer = store.commit(transaction).await;
                match change {
                    None => { assert!(matches!(answer, Err(CommitError::Conflict { .. }))); }
                    Some(writes) => {
                        let before = model.clone();
                        for (key, put) in writes {
                            if put { model.insert(key, next); } else { model.remove(&key); }
                        }
                        let changed = model != before;
                        assert_eq!(answer.unwrap(), if changed { next } else { next - 1 });
                        if changed { past.push((next, model.clone())); }
                    }
                }
            }
            for resource in ["pods", "services"] {
                for namespace in [None, Some("one"), Some("two")] {
                    let scope = Scope { resource: resource.into(), namespace: namespace.map(str::to_owned) };
                    let of_scope = |state: &State| -> State {
                        state.iter().filter(|(k, _)| k.resource == resource && scope.has(k))
                            .map(|(k, r)| (k.clone(), *r)).collect()
                    };
                    let newest = of_scope(&model);
                    let list = store.list(&scope);
                    assert_eq!((content(&list), list.revision), (newest.clone(), store.revision()));
                    for (revision, state) in &past {
                        // Page by page, one object each.
                        let (mut paged, mut after) = (State::new(), None::<(String, String)>);
                        loop {
                            let from = after.as_ref().map(|(ns, name)| (ns.as_str(), name.as_str()));
                            let page = store.list_page(&scope, Some(*revision), from, 1).unwrap();
                            assert_eq!(page.remaining + page.objects.len() + paged.len(), of_scope(state).len());
                            let Some(object) = page.objects.first() else { break };
                            after = Some((object.key.namespace.clone(), object.key.name.clone()));
                            paged.insert(object.key.clone(), object.revision);
                        }
                        assert_eq!(paged, of_scope(state));
                        // Replaying a watch from there leads to the present.
                        let mut replayed = of_scope(state);
                        let mut last = *revision;
                        let mut watch = store.watch(&scope, *revision).unwrap();
                        while let Some(batch) = watch.poll().unwrap() {
                            for event in batch.events {
                                assert!(event.revision > *revision && event.revision >= last);
                                last = event.revision;
                                let key = event.object.key.clone();
                                assert_eq!(event.object.revision, event.revision);
                                assert_eq!(event.previous.map(|p| p.revision), replayed.get(&key).copied());
                                match event.kind {
                                    EventKind::Put => replayed.insert(key, event.revision),
                                    EventKind::Deleted => replayed.remove(&key),
                                };
                            }
                        }
                        assert_eq!(replayed, newest);
                    }
                }
            }
        });
    }
}
