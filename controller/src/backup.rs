//! `berth-controller backup` and `restore`: all that a controller is, in one file.
//!
//! The file is a copy of the database with one table more, which holds the authority, the certificates and the
//! configuration. A restored controller knows the world as it was: it must start nothing before every host has
//! said what runs there ([`identity::Restore`]), and `restore` never writes into a directory that holds anything.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use berth_controller_core::identity::{self, Record, Restore};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use crate::files::{make_private_directory, write_atomically};
use crate::store::{Key, OpenError, Scope, Store, Transaction};

/// What copies are called that are being made in the data directory.
const UNFINISHED: &str = "backup-";
/// The table's columns are a path below the data directory (or [`CONFIG`]) and the file's content.
const TABLE: &str = "CREATE TABLE file (path TEXT PRIMARY KEY, content BLOB NOT NULL) STRICT";
const CONFIG: &str = "controller.toml";
const DATABASE: &str = "berth.db";
/// Paths and contents.
type Files = Vec<(String, Vec<u8>)>;
/// The authority first: without it, what else there is makes no controller.
const FILES: [&str; 3] = ["pki/ca.pem", "pki/server.pem", "pki/admin.pem"];
/// Revisions are counted on from here: whoever has seen a newer one than the copy holds will not meet it again
/// with another meaning.
const SKIP: i64 = 1 << 20;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{path}: {error}", path = .path.display())]
    Io { path: PathBuf, error: io::Error },
    #[error("{path}: {error}", path = .path.display())]
    Sql { path: PathBuf, error: rusqlite::Error },
    #[error("{path} is no backup of a controller: {reason}", path = .path.display())]
    Foreign { path: PathBuf, reason: String },
    #[error(
        "{path} is not empty: a controller is restored into an empty directory only (move what is there away, or name another: --data-dir)",
        path = .path.display()
    )]
    NotEmpty { path: PathBuf },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}")]
    Store(String),
}

/// Where a running controller's copy comes from.
#[derive(Clone)]
pub struct Source {
    pub store: Store,
    pub data_dir: PathBuf,
    pub config: Option<PathBuf>,
}

impl Source {
    /// Makes a copy in the data directory, readable by its owner only; its name. Whoever asked for it takes it
    /// away. Writes wait while the database is copied.
    pub async fn make(&self) -> Result<String, BackupError> {
        let name = format!("{UNFINISHED}{}", uuid::Uuid::new_v4().simple());
        let path = self.data_dir.join(&name);
        let made = async {
            let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
            open.map_err(|error| at(&path, error))?;
            self.store.copy(&path).await.map_err(BackupError::Store)?;
            let (source, path) = (self.clone(), path.clone());
            let sealing = tokio::task::spawn_blocking(move || source.seal(&path));
            sealing.await.map_err(|panic| BackupError::Store(panic.to_string()))?
        };
        let made = made.await;
        if made.is_err() {
            // The first error is the one to tell.
            let _ = fs::remove_file(&path);
        }
        made.map(|()| name)
    }

    /// Adds the files to the copy.
    fn seal(&self, copy: &Path) -> Result<(), BackupError> {
        let mut files: Files = Vec::new();
        for name in FILES {
            let path = self.data_dir.join(name);
            files.push((name.to_owned(), fs::read(&path).map_err(|error| at(&path, error))?));
        }
        if let Some(config) = &self.config {
            files.push((CONFIG.to_owned(), fs::read(config).map_err(|error| at(config, error))?));
        }
        let add = || -> rusqlite::Result<()> {
            let mut connection = Connection::open_with_flags(copy, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
            let transaction = connection.transaction()?;
            transaction.execute_batch(TABLE)?;
            for (path, content) in &files {
                transaction.execute("INSERT INTO file VALUES (?, ?)", params![path, content])?;
            }
            transaction.commit()?;
            connection.close().map_err(|(_, error)| error)
        };
        add().map_err(|error| sql(copy, error))?;
        File::open(copy).and_then(|file| file.sync_all()).map_err(|error| at(copy, error))
    }
}

/// Copies that nobody has taken away: their askers are gone.
pub fn sweep(data_dir: &Path) {
    for entry in fs::read_dir(data_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(UNFINISHED) {
            // Not worth a refusal to start.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Moves a copy from the data directory to where it was wanted; what is there is replaced as a whole.
pub fn take_away(data_dir: &Path, name: &str, to: &Path) -> Result<(), BackupError> {
    let from = data_dir.join(name);
    let mut fresh = to.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let copied = (|| {
        let mut source = File::open(&from)?;
        let mut target =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
        io::copy(&mut source, &mut target)?;
        target.sync_all()?;
        fs::rename(&fresh, to)
    })();
    let removed = fs::remove_file(&from);
    copied.map_err(|error| at(to, error))?;
    removed.map_err(|error| at(&from, error))
}

/// What has been restored.
#[derive(Debug)]
pub struct Restored {
    /// The hosts whose inventory is awaited.
    pub awaited: Vec<String>,
    /// Where the configuration is that was in the backup.
    pub config: Option<PathBuf>,
}

/// Makes a data directory of a backup. If the directory was there, everything in it belongs to its owner.
pub async fn restore(backup: &Path, data_dir: &Path) -> Result<Restored, BackupError> {
    match fs::read_dir(data_dir).map(|mut entries| entries.next().is_none()) {
        Ok(false) => return Err(BackupError::NotEmpty { path: data_dir.to_owned() }),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(at(data_dir, error)),
        Ok(true) | Err(_) => {}
    }
    let files = look(backup)?;
    make_private_directory(data_dir).map_err(|error| at(data_dir, error))?;
    let fresh = data_dir.join(format!("{DATABASE}.restoring"));
    let open = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh);
    let copied = open.and_then(|mut to| {
        io::copy(&mut File::open(backup)?, &mut to)?;
        to.sync_all()
    });
    copied.map_err(|error| at(&fresh, error))?;
    let strip = || -> rusqlite::Result<()> {
        let connection = Connection::open_with_flags(&fresh, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.execute_batch("DROP TABLE file; VACUUM")?;
        connection.execute("UPDATE counter SET revision = revision + ?", [SKIP])?;
        connection.close().map_err(|(_, error)| error)
    };
    strip().map_err(|error| sql(&fresh, error))?;
    let awaited = await_hosts(&fresh).await?;
    // The database before the authority: a controller that finds only the database makes another authority, which
    // no host trusts; one that found only the authority would have all hosts stop their pods.
    let database = data_dir.join(DATABASE);
    fs::rename(&fresh, &database).map_err(|error| at(&database, error))?;
    let mut config = None;
    let pki = data_dir.join("pki");
    make_private_directory(&pki).map_err(|error| at(&pki, error))?;
    for (name, content) in files {
        let path = match name.as_str() {
            CONFIG => data_dir.join(format!("restored-{CONFIG}")),
            name => data_dir.join(name),
        };
        write_atomically(&path, &content, 0o600).map_err(|error| at(&path, error))?;
        if name == CONFIG {
            config = Some(path);
        }
    }
    give_to_owner(data_dir)?;
    Ok(Restored { awaited, config })
}

/// The files in a backup, if it is one and sound.
fn look(backup: &Path) -> Result<Files, BackupError> {
    let foreign = |reason: String| BackupError::Foreign { path: backup.to_owned(), reason };
    File::open(backup).map_err(|error| at(backup, error))?;
    let read = || -> rusqlite::Result<(String, Files)> {
        let connection = Connection::open_with_flags(backup, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        let verdict = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
        let table = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'file'";
        if connection.query_row(table, [], |_| Ok(())).optional()?.is_none() {
            return Ok((verdict, Vec::new()));
        }
        let mut statement = connection.prepare("SELECT path, content FROM file")?;
        let files = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok((verdict, files.collect::<rusqlite::Result<_>>()?))
    };
    let (verdict, mut files) = read().map_err(|error| foreign(error.to_string()))?;
    if verdict != "ok" {
        return Err(foreign(format!("it is damaged ({verdict})")));
    }
    let known = |name: &str| name == CONFIG || FILES.contains(&name);
    if let Some((other, _)) = files.iter().find(|(name, _)| !known(name)) {
        return Err(foreign(format!("it holds {other:?}")));
    }
    if let Some(missing) = FILES.iter().find(|name| !files.iter().any(|(there, _)| there == *name)) {
        return Err(foreign(format!("{missing} is not in it")));
    }
    files.sort_by_key(|(name, _)| FILES.iter().position(|file| file == name));
    Ok(files)
}

/// Notes which hosts are to say what they run before anything new is started.
async fn await_hosts(database: &Path) -> Result<Vec<String>, BackupError> {
    let store = Store::open(database)?;
    let nodes = store.list(&Scope::all("nodes")).objects;
    let records = store.list(&Scope::all(identity::RESOURCE)).objects;
    let mut restore = Restore::default();
    restore.awaited.extend(nodes.iter().map(|node| node.key.name.clone()));
    restore.awaited.extend(records.iter().filter_map(|record| Some(Record::read(&record.value())?.node)));
    let key = Key::new(identity::RESTORE, "", "restore");
    if !restore.awaited.is_empty() {
        let noted = store.commit(Transaction::new().put(key, restore.write())).await;
        noted.map_err(|error| BackupError::Store(error.to_string()))?;
    }
    store.close().await;
    Ok(restore.awaited.into_iter().collect())
}

fn give_to_owner(directory: &Path) -> Result<(), BackupError> {
    let owner = fs::metadata(directory).map_err(|error| at(directory, error))?;
    let (uid, gid) = (owner.uid(), owner.gid());
    if !nix::unistd::geteuid().is_root() || uid == 0 {
        return Ok(());
    }
    let mut next = vec![directory.to_owned()];
    while let Some(directory) = next.pop() {
        for entry in fs::read_dir(&directory).map_err(|error| at(&directory, error))?.flatten() {
            let path = entry.path();
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).map_err(|error| at(&path, error))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                next.push(path);
            }
        }
    }
    Ok(())
}

fn at(path: &Path, error: io::Error) -> BackupError {
    BackupError::Io { path: path.to_owned(), error }
}

fn sql(path: &Path, error: rusqlite::Error) -> BackupError {
    BackupError::Sql { path: path.to_owned(), error }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn pod(name: &str) -> (Key, serde_json::Value) {
        (Key::new("pods", "default", name), json!({"metadata": {"name": name}}))
    }

    /// A data directory as a controller leaves it, with a host that holds a pod's name.
    async fn source(data_dir: &Path) -> Source {
        fs::create_dir_all(data_dir.join("pki")).unwrap();
        for file in FILES {
            fs::write(data_dir.join(file), format!("this is {file}")).unwrap();
        }
        let config = data_dir.join("my.toml");
        fs::write(&config, "advertise = ['a']").unwrap();
        let store = Store::open(&data_dir.join(DATABASE)).unwrap();
        let record = Record { uid: "u".into(), node: "gone".into(), epoch: 1, address: String::new() };
        let node = json!({"metadata": {"name": "one"}});
        let (key, value) = pod("web-0");
        let first = Transaction::new()
            .put(key, value)
            .put(Key::new("nodes", "", "one"), node)
            .put(Key::new(identity::RESOURCE, "default", "web-0"), record.write());
        store.commit(first).await.unwrap();
        Source { store, data_dir: data_dir.to_owned(), config: Some(config) }
    }

    #[tokio::test]
    async fn what_was_backed_up_is_restored_and_waits_for_its_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let source = source(&directory.path().join("data")).await;
        let name = source.make().await.unwrap();
        // What comes later is not in it, and the store goes on.
        let (key, value) = pod("web-1");
        let seen = source.store.commit(Transaction::new().put(key, value)).await.unwrap();
        let backup = directory.path().join("backup");
        take_away(&source.data_dir, &name, &backup).unwrap();
        assert_eq!(fs::metadata(&backup).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!source.data_dir.join(&name).exists());

        let target = directory.path().join("target");
        let restored = restore(&backup, &target).await.unwrap();
        assert_eq!(restored.awaited, ["gone", "one"]);
        assert_eq!(fs::read_to_string(restored.config.unwrap()).unwrap(), "advertise = ['a']");
        for file in FILES {
            assert_eq!(fs::read_to_string(target.join(file)).unwrap(), format!("this is {file}"));
            assert_eq!(fs::metadata(target.join(file)).unwrap().permissions().mode() & 0o777, 0o600);
        }
        let store = Store::open(&target.join(DATABASE)).unwrap();
        assert!(store.get(&pod("web-0").0).is_some() && store.get(&pod("web-1").0).is_none());
        assert!(store.revision() > seen, "no revision is used twice");
        let awaited = store.get(&Key::new(identity::RESTORE, "", "restore")).unwrap();
        assert_eq!(Restore::read(&awaited.value()).awaited, ["gone".to_owned(), "one".to_owned()].into());
    }

    #[tokio::test]
    async fn nothing_is_restored_over_what_is_there_nor_from_what_is_no_backup() {
        let directory = tempfile::tempdir().unwrap();
        let source = source(&directory.path().join("data")).await;
        let backup = source.data_dir.join(source.make().await.unwrap());
        let refused = restore(&backup, &source.data_dir).await.unwrap_err();
        assert!(matches!(refused, BackupError::NotEmpty { .. }), "{refused}");

        let target = directory.path().join("target");
        let (damaged, text) = (directory.path().join("damaged"), directory.path().join("text"));
        let mut content = fs::read(&backup).unwrap();
        content.truncate(content.len() / 2);
        fs::write(&damaged, content).unwrap();
        fs::write(&text, "not a backup at all").unwrap();
        source.store.close().await;
        for wrong in [&damaged, &text, &source.data_dir.join(DATABASE)] {
            let refused = restore(wrong, &target).await.unwrap_err();
            assert!(matches!(refused, BackupError::Foreign { .. }), "{refused}");
            assert!(!target.exists(), "nothing was begun");
        }
        assert!(matches!(
            restore(&directory.path().join("none"), &target).await,
            Err(BackupError::Io { .. })
        ));
        sweep(&source.data_dir);
        assert!(!backup.exists());
    }
}
