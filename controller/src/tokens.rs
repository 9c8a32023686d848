//! Join tokens: what lets a host's agent in, once.
//!
//! A token is `<id><secret>.<pin>`: the id names its record, the secret's hash is what the record holds, and
//! the pin (the authority's hash) lets the agent know the controller before it says the secret. A record is
//! of use until it expires, once per node: the same agent with the same key may ask again, because the first
//! answer may have been lost.

use std::time::Duration;

use berth_controller_core::identity::{self, Record};
use berth_controller_core::kinds::node::NODE;
use berth_controller_core::kinds::{Kind, names};
use berth_controller_core::object;
use berth_controller_core::status::Status;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::objects::Allocate;
use crate::pki::hex;
use crate::store::{CommitError, Key, Scope, Store, Transaction};

const RESOURCE: &str = "tokens.berth.dev";
/// Which key each host joined with: this resource, no namespace, the node's name. An empty one is nobody's: the
/// Node was deleted.
pub const KEYS: &str = "nodekeys.berth.dev";
/// Hexadecimal digits.
const ID: usize = 8;
const SECRET: usize = 48;
/// Nobody plans that far ahead; also keeps times within bounds.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Deliberately the same for unknown and wrong ones.
    #[error("the join token is not valid (unknown, expired, or of another cluster)")]
    Unknown,
    #[error("the join token is for node {0:?}")]
    OtherNode(String),
    #[error(
        "the join token was used for node {0:?} already; make a new one with `berth-controller token create`"
    )]
    Used(String),
    /// Somebody vouches for a machine that takes another's place by naming it.
    #[error(
        "node {0:?} is another machine's name; if this one takes its place, use a token made for it: `berth-controller token create --node {0}`"
    )]
    Taken(String),
    #[error("{0}")]
    Invalid(String),
    #[error(transparent)]
    Store(#[from] CommitError),
}

/// The tokens of one controller.
#[derive(Clone)]
pub struct Tokens {
    store: Store,
    /// See [`crate::pki::Pki::authority_pin`].
    pin: String,
}

impl Tokens {
    pub fn new(store: Store, pin: String) -> Tokens {
        Tokens { store, pin }
    }

    /// A new token, for one node or (None) for any.
    pub async fn create(&self, node: Option<&str>, life: Duration) -> Result<String, TokenError> {
        if let Some(node) = node {
            check_name(node)?;
        }
        if life.is_zero() || life > LONGEST {
            return Err(TokenError::Invalid("a token lives between a second and a year".to_owned()));
        }
        let now = Timestamp::now();
        let random = || uuid::Uuid::new_v4().simple().to_string();
        let id = random()[..ID].to_owned();
        let secret = format!("{}{}", random(), random())[..SECRET].to_owned();
        let expires = SignedDuration::try_from(life)
            .ok()
            .and_then(|life| now.checked_add(life).ok())
            .ok_or_else(|| TokenError::Invalid("its life is too long".to_owned()))?;
        let record = json!({
            "metadata": {}, "hash": hash(&secret), "node": node, "expires": expires.to_string(), "used": {},
        });
        let mut transaction = Transaction::new().absent(key(&id)).put(key(&id), record);
        for old in self.store.list(&Scope::all(RESOURCE)).objects {
            if expired(&old.value(), now) {
                transaction = transaction.delete(old.key.clone());
            }
        }
        self.store.commit(transaction).await?;
        Ok(format!("{id}{secret}.{}", self.pin))
    }

    /// Uses a token for a node's key (see [`crate::pki::AgentRequest::key_hash`]).
    pub async fn redeem(&self, token: &str, node: &str, key_hash: &str) -> Result<(), TokenError> {
        check_name(node)?;
        let (id, secret) = self.split(token.trim()).ok_or(TokenError::Unknown)?;
        loop {
            let found = self.store.get(&key(id)).ok_or(TokenError::Unknown)?;
            let mut record = found.value();
            let hash = hash(secret);
            if !same(hash.as_bytes(), record["hash"].as_str().unwrap_or_default().as_bytes())
                || expired(&record, Timestamp::now())
            {
                return Err(TokenError::Unknown);
            }
            if let Some(other) = record["node"].as_str().filter(|n| *n != node) {
                return Err(TokenError::OtherNode(other.to_owned()));
            }
            match record["used"][node].as_str() {
                Some(before) if before == key_hash => return Ok(()),
                Some(_) => return Err(TokenError::Used(node.to_owned())),
                None => {}
            }
            let before = key_of(&self.store, node);
            if record["node"].is_null() && before.as_deref() != Some(key_hash) && self.is_known(node) {
                return Err(TokenError::Taken(node.to_owned()));
            }
            record["used"][node] = key_hash.into();
            let transaction = Transaction::new()
                .unchanged(key(id), found.revision)
                .put(key(id), record)
                .put(Key::new(KEYS, "", node), json!({"metadata": {}, "key": key_hash}));
            match self.store.commit(transaction).await {
                Ok(_) => return Ok(()),
                // Another node was faster with the same token: at most as often as there are nodes.
                Err(CommitError::Conflict { .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Whether a host of that name has joined, or may still run pods although its Node is gone.
    fn is_known(&self, node: &str) -> bool {
        let held = || self.store.list(&Scope::all(identity::RESOURCE)).objects;
        self.store.get(&Key::new("nodes", "", node)).is_some()
            || held().iter().any(|o| Record::read(&o.value()).is_some_and(|record| record.node == node))
    }

    fn split<'a>(&self, token: &'a str) -> Option<(&'a str, &'a str)> {
        let (own, pin) = token.split_once('.')?;
        let sound = own.len() == ID + SECRET && own.is_ascii() && pin == self.pin;
        sound.then(|| own.split_at(ID))
    }
}

/// The key that a node's host joined with last; another's certificate counts no more.
pub fn key_of(store: &Store, node: &str) -> Option<String> {
    store.get(&Key::new(KEYS, "", node))?.value()["key"].as_str().map(str::to_owned)
}

/// With this a node's host counts as a stranger, whatever certificate it has, until it joins again.
pub fn revoke(transaction: Transaction, node: &str) -> Transaction {
    transaction.put(Key::new(KEYS, "", node), json!({"metadata": {}, "key": ""}))
}

pub fn is_revoked(store: &Store, node: &str) -> bool {
    key_of(store, node).is_some_and(|key| key.is_empty())
}

/// What a host is told whose certificate is revoked.
pub fn revoked_because(node: &str) -> String {
    format!(
        "node {node:?} was deleted, and its certificate revoked with it; to join again, give the agent a new token \
         as its token-file: `berth-controller token create --node {node}`"
    )
}

/// Revokes a node's certificate in the transaction that deletes the Node.
pub struct Revoking<A>(pub A);

impl<A: Allocate> Allocate for Revoking<A> {
    fn allocate(
        &self,
        kind: &Kind,
        old: Option<&Value>,
        new: Option<&mut Value>,
        transaction: Transaction,
    ) -> Result<Transaction, Status> {
        let deleted = (new.is_none() && kind.plural == NODE.plural).then_some(old).flatten();
        let transaction = match deleted {
            Some(node) => revoke(transaction, object::name(node)),
            None => transaction,
        };
        self.0.allocate(kind, old, new, transaction)
    }
}

fn key(id: &str) -> Key {
    Key::new(RESOURCE, "", id)
}

fn hash(secret: &str) -> String {
    hex(&Sha256::digest(secret))
}

/// Compares in a time that does not depend on where they differ.
fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |differs, (x, y)| differs | (x ^ y)) == 0
}

fn expired(record: &Value, now: Timestamp) -> bool {
    let expires = record["expires"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    expires.is_none_or(|expires| expires <= now)
}

fn check_name(node: &str) -> Result<(), TokenError> {
    let faults = names::subdomain(node);
    match faults.first() {
        Some(fault) => Err(TokenError::Invalid(format!("{node:?} is no name for a node: {fault}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn tokens() -> Tokens {
        Tokens::new(Store::in_memory().unwrap(), "ab".repeat(32))
    }

    #[tokio::test]
    async fn a_token_lets_each_node_in_once() {
        let tokens = tokens();
        let token = tokens.create(None, HOUR).await.unwrap();
        tokens.redeem(&token, "one", "key-1").await.unwrap();
        tokens.redeem(&token, "two", "key-2").await.unwrap();
        assert_eq!(tokens.redeem(&token, "one", "key-3").await, Err(TokenError::Used("one".to_owned())));
        tokens.redeem(&token, "one", "key-1").await.expect("the answer may have been lost");
        tokens.redeem(&format!("{token}\n"), "three", "key-3").await.expect("files end in a newline");
    }

    #[tokio::test]
    async fn a_token_for_a_node_lets_no_other_in() {
        let tokens = tokens();
        let token = tokens.create(Some("one"), HOUR).await.unwrap();
        let refused = tokens.redeem(&token, "two", "key").await;
        assert_eq!(refused, Err(TokenError::OtherNode("one".to_owned())));
        tokens.redeem(&token, "one", "key").await.unwrap();
    }

    #[tokio::test]
    async fn a_known_hosts_name_goes_to_another_machine_only_with_a_token_that_names_it() {
        let tokens = tokens();
        let token = async |node: Option<&str>| tokens.create(node, HOUR).await.unwrap();
        tokens.redeem(&token(None).await, "one", "key-1").await.unwrap();
        tokens.redeem(&token(None).await, "one", "key-2").await.expect("it has never said hello");
        let node = Key::new("nodes", "", "one");
        tokens.store.commit(Transaction::new().put(node.clone(), json!({"metadata": {}}))).await.unwrap();
        let refused = tokens.redeem(&token(None).await, "one", "key-3").await.unwrap_err();
        assert_eq!(refused, TokenError::Taken("one".to_owned()));
        assert!(refused.to_string().contains("token create --node one"), "{refused}");
        tokens.redeem(&token(None).await, "one", "key-2").await.expect("it is the same machine");

        // A Node that was deleted, and whose pods may run on.
        let record = Record { uid: "u".into(), node: "one".into(), epoch: 1, address: String::new() };
        let held = Key::new(identity::RESOURCE, "default", "web-0");
        let deleted = Transaction::new().delete(node).put(held.clone(), record.write());
        tokens.store.commit(deleted).await.unwrap();
        assert_eq!(tokens.redeem(&token(None).await, "one", "key-3").await, Err(refused));
        tokens.redeem(&token(Some("one")).await, "one", "key-3").await.unwrap();
        assert_eq!(key_of(&tokens.store, "one").as_deref(), Some("key-3"));
        tokens.store.commit(Transaction::new().delete(held)).await.unwrap();
        tokens.redeem(&token(None).await, "one", "key-4").await.expect("nobody has the name any more");
    }

    #[tokio::test]
    async fn a_wrong_token_is_refused() {
        let tokens = tokens();
        let token = tokens.create(None, HOUR).await.unwrap();
        let mut wrong = token.clone();
        wrong.replace_range(ID..ID + 1, if token.as_bytes()[ID] == b'0' { "1" } else { "0" });
        let foreign = format!("{}.{}", token.split('.').next().unwrap(), "cd".repeat(32));
        for bad in ["", ".", "x.y", "ä", wrong.as_str(), foreign.as_str(), &token[1..]] {
            assert_eq!(tokens.redeem(bad, "one", "key").await, Err(TokenError::Unknown), "{bad}");
        }
        assert!(matches!(tokens.redeem(&token, "../x", "key").await, Err(TokenError::Invalid(_))));
    }

    #[tokio::test]
    async fn an_expired_token_is_refused_and_swept_by_the_next() {
        let tokens = tokens();
        let token = tokens.create(None, HOUR).await.unwrap();
        let (id, _) = token.split_at(ID);
        let mut record = tokens.store.get(&key(id)).unwrap().value();
        record["expires"] = "2020-01-01T00:00:00Z".into();
        tokens.store.commit(Transaction::new().put(key(id), record)).await.unwrap();
        assert_eq!(tokens.redeem(&token, "one", "key").await, Err(TokenError::Unknown));
        tokens.create(None, HOUR).await.unwrap();
        assert!(tokens.store.get(&key(id)).is_none());
        assert!(matches!(tokens.create(None, Duration::MAX).await, Err(TokenError::Invalid(_))));
    }

    #[tokio::test]
    async fn the_secret_is_not_kept() {
        let tokens = tokens();
        let token = tokens.create(None, HOUR).await.unwrap();
        let secret = &token[ID..ID + SECRET];
        let kept = tokens.store.get(&key(&token[..ID])).unwrap();
        assert!(!String::from_utf8_lossy(&kept.bytes).contains(secret));
    }
}
