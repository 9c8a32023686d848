//! The databases of the ledger: how each is started, and enough of its protocol to write a number and to read all.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;

/// One of them.
pub struct Kind {
    /// Of the set, its service and its claim.
    pub name: &'static str,
    port: u16,
    pub node_port: u16,
    /// What is done before the first start, and what is started.
    script: &'static str,
    start: fn(TcpStream) -> Result<Box<dyn Session>>,
}

/// A connection to a database.
pub trait Session {
    /// Returns when the number is acknowledged.
    fn write(&mut self, number: u64) -> Result<()>;
    fn read(&mut self) -> Result<BTreeSet<u64>>;
}

pub const KINDS: &[Kind] = &[
    Kind {
        name: "redis",
        port: 6379,
        node_port: 30379,
        script: r#"
live redis-server --dir /data --appendonly yes --appendfsync always --save "" --protected-mode no --bind 0.0.0.0
"#,
        start: |stream| Ok(Box::new(Redis(BufReader::new(stream)))),
    },
    Kind {
        name: "postgres",
        port: 5432,
        node_port: 30432,
        script: r#"
if [ ! -e /data/pg ]; then
  rm -rf /data/new
  cp -r /new /data/new && chmod 700 /data/new && mv /data/new /data/pg || exit 1
fi
live postgres -D /data/pg -c listen_addresses='*' -c unix_socket_directories= -c shared_buffers=16MB -c jit=off
"#,
        start: |stream| Ok(Box::new(Postgres::new(stream)?)),
    },
];

/// A life is noted on the volume from before the database starts until it has ended. A note is there when it has been
/// made: nothing starts without one.
const LIVE: &str = r#"
life=$POD_UID.$(cat /proc/sys/kernel/random/uuid)
note() { echo "$1 $life" | dd of=/data/lives oflag=append conv=notrunc,fsync status=none; }
note start || exit 1
live() {
  "$@" & database=$!
  trap 'kill -INT $database' TERM
  while sleep 1; do note beat; done & beats=$!
  while kill -0 $database 2>/dev/null; do wait $database; code=$?; done
  kill $beats
  note end
  exit $code
}
"#;

impl Kind {
    pub fn manifest(&self, image: &str) -> String {
        let Kind { name, port, node_port, script, .. } = self;
        let labels = json!({"app": name});
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "selector": labels, "ports": [{"port": port, "nodePort": node_port}]},
        });
        let container = json!({
            "name": "database", "image": image, "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", format!("{LIVE}{script}")],
            "env": [{"name": "POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            "resources": {"limits": {"memory": "256Mi", "cpu": "900m"}, "requests": {"cpu": "100m"}},
        });
        let set = json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
            "spec": {
                "serviceName": name, "replicas": 1, "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "terminationGracePeriodSeconds": 60,
                        "securityContext": {"runAsUser": 999, "runAsGroup": 999, "fsGroup": 999, "fsGroupChangePolicy": "OnRootMismatch"},
                        "containers": [container],
                    },
                },
                "volumeClaimTemplates": [{
                    "metadata": {"name": "data"},
                    "spec": {
                        "accessModes": ["ReadWriteOnce"], "storageClassName": "ledger",
                        "resources": {"requests": {"storage": "100Mi"}},
                    },
                }],
            },
        });
        json!({"apiVersion": "v1", "kind": "List", "items": [service, set]}).to_string()
    }

    /// Connects through the first host that leads to it.
    pub fn open(&self, doors: &[SocketAddr]) -> Result<Box<dyn Session>> {
        let mut last = None;
        for door in doors {
            match TcpStream::connect_timeout(door, Duration::from_secs(5)) {
                Ok(stream) => {
                    // A server of files that is away makes a database silent.
                    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
                    stream.set_nodelay(true)?;
                    match (self.start)(stream) {
                        Ok(session) => return Ok(session),
                        Err(error) => last = Some(error),
                    }
                }
                Err(error) => last = Some(error.into()),
            }
        }
        Err(last.context("no host")?)
    }
}

struct Redis(BufReader<TcpStream>);

impl Redis {
    fn ask(&mut self, command: &str) -> Result<String> {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes())?;
        let answer = self.line()?;
        if answer.starts_with('-') || answer.is_empty() {
            bail!("{answer:?}");
        }
        Ok(answer)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        if !line.ends_with("\r\n") {
            bail!("the connection has ended");
        }
        Ok(line.trim_end().to_owned())
    }
}

impl Session for Redis {
    fn write(&mut self, number: u64) -> Result<()> {
        self.ask(&format!("RPUSH ledger {number}")).map(drop)
    }

    fn read(&mut self) -> Result<BTreeSet<u64>> {
        let count: usize = self.ask("LRANGE ledger 0 -1")?.trim_start_matches('*').parse()?;
        (0..count)
            .map(|_| {
                self.line()?;
                Ok(self.line()?.parse()?)
            })
            .collect()
    }
}

struct Postgres(TcpStream);

impl Postgres {
    fn new(stream: TcpStream) -> Result<Postgres> {
        let mut this = Postgres(stream);
        let parameters = b"user\0postgres\0database\0postgres\0\0";
        let version: u32 = 3 << 16;
        this.0.write_all(&u32::try_from(8 + parameters.len())?.to_be_bytes())?;
        this.0.write_all(&version.to_be_bytes())?;
        this.0.write_all(parameters)?;
        this.until_ready()?;
        this.ask("CREATE TABLE IF NOT EXISTS ledger (n bigint)")?;
        Ok(this)
    }

    /// The first column of what is answered.
    fn ask(&mut self, query: &str) -> Result<Vec<String>> {
        let mut message = vec![b'Q'];
        message.extend(u32::try_from(5 + query.len())?.to_be_bytes());
        message.extend(query.as_bytes());
        message.push(0);
        self.0.write_all(&message)?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> Result<Vec<String>> {
        let (mut rows, mut error) = (Vec::new(), None);
        loop {
            let mut head = [0; 5];
            self.0.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let mut body = vec![0; length.checked_sub(4).context("a message's length")?];
            self.0.read_exact(&mut body)?;
            match head[0] {
                b'E' => error = Some(String::from_utf8_lossy(&body).replace('\0', " ")),
                // Two bytes say how many columns, four how long the first is.
                b'D' => rows.push(String::from_utf8_lossy(body.get(6..).unwrap_or_default()).into_owned()),
                b'Z' => break,
                _ => {}
            }
            if let (Some(error), b'E') = (&error, head[0])
                && error.contains("FATAL")
            {
                bail!("{error}");
            }
        }
        match error {
            Some(error) => bail!("{error}"),
            None => Ok(rows),
        }
    }
}

impl Session for Postgres {
    fn write(&mut self, number: u64) -> Result<()> {
        self.ask(&format!("INSERT INTO ledger VALUES ({number})")).map(drop)
    }

    fn read(&mut self) -> Result<BTreeSet<u64>> {
        self.ask("SELECT n FROM ledger")?.iter().map(|n| Ok(n.parse()?)).collect()
    }
}
