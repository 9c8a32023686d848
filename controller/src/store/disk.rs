//! The store on disk: one SQLite database, held exclusively.
//!
//! Only the writer's thread comes here. Nothing is ever overwritten: whatever is not soundly ours is
//! refused before the first write, and a new database is made beside its place and moved there whole.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, params};

use super::error::OpenError;
use super::model::{Event, EventKind, Key, Meta, Object, Revision};

/// "Bert" in the database's header: whose file it is.
const APPLICATION: i64 = 0x4265_7274;
/// The format written; higher ones are refused, lower ones (there are none yet) migrated.
const FORMAT: i64 = 1;

const SCHEMA: &str = "
    CREATE TABLE object (
        resource TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL,
        revision INTEGER NOT NULL,
        sum INTEGER NOT NULL,
        value BLOB NOT NULL,
        UNIQUE (resource, namespace, name)
    ) STRICT;
    CREATE TABLE counter (id INTEGER PRIMARY KEY CHECK (id = 0), revision INTEGER NOT NULL) STRICT;
    INSERT INTO counter VALUES (0, 1);
";

/// The open database.
pub(super) struct Disk {
    /// None: in memory, for tests.
    path: Option<PathBuf>,
    /// None while it has to be opened again.
    connection: Option<Connection>,
}

impl Disk {
    /// Opens or makes the database, hands every object in it to `load`, and returns its revision.
    pub fn open(path: &Path, mut load: impl FnMut(Object)) -> Result<(Disk, Revision), OpenError> {
        if !path.try_exists().map_err(|e| io(path, e))? {
            create(path)?;
        }
        check_header(path)?;
        let connection = connect(path).map_err(|e| sql(path, e))?;
        check_content(path, &connection)?;
        let revision = counter(&connection).map_err(|e| sql(path, e))?;
        read_all(path, &connection, revision, &mut load)?;
        settle(&connection).map_err(|e| sql(path, e))?;
        Ok((Disk { path: Some(path.to_owned()), connection: Some(connection) }, revision))
    }

    pub fn in_memory() -> Result<(Disk, Revision), OpenError> {
        let open = || {
            let connection = Connection::open_in_memory()?;
            connection.execute_batch(SCHEMA)?;
            let revision = counter(&connection)?;
            Ok((Disk { path: None, connection: Some(connection) }, revision))
        };
        open().map_err(|e| sql(Path::new(":memory:"), e))
    }

    /// Everything in it, and its revision.
    #[cfg(test)]
    pub fn content(&self) -> Result<(Vec<Object>, Revision), OpenError> {
        let path = Path::new(":memory:");
        let connection = self.connection.as_ref().ok_or_else(|| OpenError::Foreign(path.to_owned()))?;
        let revision = counter(connection).map_err(|e| sql(path, e))?;
        let mut objects = Vec::new();
        read_all(path, connection, revision, &mut |object| objects.push(object))?;
        Ok((objects, revision))
    }

    /// Writes events, in order, as one SQLite transaction that is on the medium on return. After an error
    /// it is unknown whether they were written, until [`Disk::recover`] tells.
    pub fn apply<'a>(
        &mut self,
        events: impl Iterator<Item = &'a Event>,
        revision: Revision,
    ) -> Result<(), rusqlite::Error> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(rusqlite::Error::InvalidQuery);
        };
        let transaction = connection.transaction()?;
        {
            let mut put = transaction.prepare_cached(
                "INSERT INTO object (resource, namespace, name, revision, sum, value) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET revision = excluded.revision, sum = excluded.sum, value = excluded.value",
            )?;
            let mut delete = transaction
                .prepare_cached("DELETE FROM object WHERE resource = ? AND namespace = ? AND name = ?")?;
            for Event { kind, object, .. } in events {
                let Key { resource, namespace, name } = &object.key;
                match kind {
                    EventKind::Put => {
                        let sum = checksum(&object.key, object.revision, &object.bytes);
                        put.execute(params![
                            resource,
                            namespace,
                            name,
                            object.revision as i64,
                            sum,
                            &object.bytes[..]
                        ])?;
                    }
                    EventKind::Deleted => {
                        delete.execute(params![resource, namespace, name])?;
                    }
                }
            }
            transaction
                .prepare_cached("UPDATE counter SET revision = ? WHERE id = 0")?
                .execute([revision as i64])?;
        }
        transaction.commit()
    }

    /// Copies everything into a database of its own: `path` is a file that is there, and empty.
    pub fn copy(&self, path: &Path) -> Result<(), rusqlite::Error> {
        let connection = self.connection.as_ref().ok_or(rusqlite::Error::InvalidQuery)?;
        connection.execute("VACUUM INTO ?", [path.to_string_lossy()]).map(drop)
    }

    /// After an error: opens the database anew, brings what it holds safely onto the medium, and returns
    /// its revision, which tells whether the write in doubt was carried out.
    pub fn recover(&mut self) -> Result<Revision, OpenError> {
        let Some(path) = self.path.clone() else { return self.in_memory_revision() };
        // Closed first: the new connection needs the lock of the old.
        drop(self.connection.take());
        let connection = connect(&path).map_err(|e| sql(&path, e))?;
        let revision = counter(&connection).map_err(|e| sql(&path, e))?;
        // What the kernel shows may never have reached the medium (a failed fsync marks pages clean):
        // copied out of the log into the database and synced again, it has.
        let busy: i64 = connection
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))
            .map_err(|e| sql(&path, e))?;
        if busy != 0 {
            return Err(OpenError::Locked(path));
        }
        settle(&connection).map_err(|e| sql(&path, e))?;
        self.connection = Some(connection);
        Ok(revision)
    }

    fn in_memory_revision(&self) -> Result<Revision, OpenError> {
        let path = Path::new(":memory:");
        let connection = self.connection.as_ref().ok_or_else(|| OpenError::Foreign(path.to_owned()))?;
        counter(connection).map_err(|e| sql(path, e))
    }
}

/// A new database, complete from the first moment it bears its name.
fn create(path: &Path) -> Result<(), OpenError> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".new.{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    remove(&fresh).map_err(|e| io(path, e))?;
    let make = || -> rusqlite::Result<()> {
        let connection = Connection::open(&fresh)?;
        connection.pragma_update(None, "application_id", APPLICATION)?;
        connection.pragma_update(None, "user_version", FORMAT)?;
        connection.execute_batch(SCHEMA)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        connection.close().map_err(|(_, e)| e)
    };
    let made = make().map_err(|e| sql(path, e)).and_then(|()| {
        restrict(&fresh).map_err(|e| io(path, e))?;
        // A link, not a rename: if another process was faster, its database stays.
        match fs::hard_link(&fresh, path) {
            Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(io(path, e)),
            _ => sync_parent(path).map_err(|e| io(path, e)),
        }
    });
    remove(&fresh).map_err(|e| io(path, e))?;
    made
}

/// Secrets are in there: nobody else reads it.
fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    File::open(path)?.sync_all()
}

fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Looks at the file's first bytes, before SQLite could touch anything.
fn check_header(path: &Path) -> Result<(), OpenError> {
    let mut header = [0u8; 100];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).map_err(|e| match e.kind() {
        ErrorKind::UnexpectedEof => damaged(path, "the file is cut short"),
        _ => io(path, e),
    })?;
    if !header.starts_with(b"SQLite format 3\0") {
        return Err(damaged(path, "it does not begin as a database does"));
    }
    let word = |at: usize| {
        i64::from(u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]))
    };
    if word(68) != APPLICATION {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    check_format(path, word(60))
}

fn check_format(path: &Path, found: i64) -> Result<(), OpenError> {
    match found {
        FORMAT => Ok(()),
        newer if newer > FORMAT => {
            Err(OpenError::Newer { path: path.to_owned(), found: newer, known: FORMAT })
        }
        other => Err(damaged(path, &format!("its format is {other}, which never existed"))),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    // For a predecessor that is just ending.
    connection.busy_timeout(Duration::from_millis(500))?;
    // Until it is known to be sound, nothing is moved from the log into the database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // One controller a database. Also keeps SQLite's index of the log in plain memory.
    connection.pragma_update(None, "locking_mode", "exclusive")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "cache_size", -512)?;
    connection.pragma_update(None, "temp_store", "memory")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    Ok(connection)
}

/// Whether every page and table is as it should be.
fn check_content(path: &Path, connection: &Connection) -> Result<(), OpenError> {
    let found = connection.pragma_query_value(None, "user_version", |row| row.get(0));
    check_format(path, found.map_err(|e| sql(path, e))?)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(|e| sql(path, e))?;
    if verdict != "ok" {
        return Err(damaged(path, &verdict));
    }
    let mode: String = connection
        .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
        .map_err(|e| sql(path, e))?;
    if mode != "wal" {
        return Err(OpenError::Io {
            path: path.to_owned(),
            reason: format!("no write-ahead log can be kept here (journal mode {mode})"),
        });
    }
    Ok(())
}

/// It is ours and sound: the log may be folded in from now on.
fn settle(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.pragma_update(None, "journal_size_limit", 4 << 20)
}

fn counter(connection: &Connection) -> rusqlite::Result<Revision> {
    connection.query_row("SELECT revision FROM counter WHERE id = 0", [], |row| {
        row.get::<_, i64>(0).map(|r| r as Revision)
    })
}

fn read_all(
    path: &Path,
    connection: &Connection,
    newest: Revision,
    load: &mut impl FnMut(Object),
) -> Result<(), OpenError> {
    let mut statement = connection
        .prepare("SELECT resource, namespace, name, revision, sum, value FROM object")
        .map_err(|e| sql(path, e))?;
    let mut rows = statement.query([]).map_err(|e| sql(path, e))?;
    while let Some(row) = rows.next().map_err(|e| sql(path, e))? {
        let read = || -> rusqlite::Result<_> {
            let key = Key::new(row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?);
            let value = Bytes::copy_from_slice(row.get_ref(5)?.as_blob()?);
            Ok((key, row.get::<_, i64>(3)? as Revision, row.get::<_, i64>(4)?, value))
        };
        let (key, revision, sum, bytes) = read().map_err(|e| sql(path, e))?;
        if sum != checksum(&key, revision, &bytes) {
            return Err(damaged(path, &format!("{key} is not as it was written")));
        }
        if revision > newest {
            return Err(damaged(path, &format!("{key} is of revision {revision}, the newest is {newest}")));
        }
        let meta = Meta::parse(&bytes).map_err(|e| damaged(path, &format!("{key}: {e}")))?;
        load(Object { key, revision, bytes, meta });
    }
    Ok(())
}

/// CRC-32 (IEEE) of a row: SQLite's own check sees broken pages, not broken content.
fn checksum(key: &Key, revision: Revision, bytes: &[u8]) -> i64 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut i = 0;
        while i < 256 {
            let mut c = i as u32;
            let mut k = 0;
            while k < 8 {
                c = if c & 1 == 1 { 0xedb8_8320 ^ (c >> 1) } else { c >> 1 };
                k += 1;
            }
            table[i] = c;
            i += 1;
        }
        table
    };
    let parts: [&[u8]; 5] = [
        key.resource.as_bytes(),
        key.namespace.as_bytes(),
        key.name.as_bytes(),
        &revision.to_be_bytes(),
        bytes,
    ];
    let crc = parts.into_iter().flatten().fold(u32::MAX, |c, b| TABLE[usize::from(c as u8 ^ b)] ^ (c >> 8));
    i64::from(!crc)
}

fn damaged(path: &Path, reason: &str) -> OpenError {
    OpenError::Damaged { path: path.to_owned(), reason: reason.to_owned() }
}

fn io(path: &Path, error: std::io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), reason: error.to_string() }
}

fn sql(path: &Path, error: rusqlite::Error) -> OpenError {
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => OpenError::Locked(path.to_owned()),
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => damaged(path, &error.to_string()),
        // A table that is missing, or a column of another type, under our own format number.
        Some(ErrorCode::Unknown) => damaged(path, &error.to_string()),
        Some(_) => OpenError::Io { path: path.to_owned(), reason: error.to_string() },
        None => damaged(path, &error.to_string()),
    }
}
