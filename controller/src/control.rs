//! The way `berth-controller token create` reaches the running controller: a socket in the data directory,
//! which only its owner can enter. One line of JSON each way.

use std::fs::{self, File, Permissions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tracing::{info, warn};

use crate::backup::Source;
use crate::tokens::Tokens;

const SOCKET: &str = "control.sock";
/// Longer than any write takes.
const PATIENCE: Duration = Duration::from_secs(40);
/// Longer than copying a database takes.
const COPYING: Duration = Duration::from_secs(600);
const LONGEST: u64 = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Request {
    CreateToken { node: Option<String>, life_seconds: u64 },
    Backup,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Token(String),
    /// The name of the file in the data directory.
    Backup(String),
    Error(String),
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no controller runs on {data_dir} ({error}); start it with `berth-controller serve`, or name its directory with --data-dir", data_dir = .data_dir.display())]
    NotRunning { data_dir: PathBuf, error: io::Error },
    #[error("the controller did not answer: {0}")]
    Broken(#[from] io::Error),
    #[error("{0}")]
    Refused(String),
}

/// The listening side.
pub struct Control(UnixListener);

impl Control {
    /// The caller holds the data directory (its database): a socket that is there is of a dead controller.
    pub fn bind(data_dir: &Path) -> io::Result<Control> {
        let directory = File::open(data_dir)?;
        let path = short(&directory);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Control(listener))
    }

    /// Serves for as long as it is polled; one request at a time.
    pub async fn serve(self, tokens: Tokens, source: Source) {
        loop {
            let connection = match self.0.accept().await {
                Ok((connection, _)) => connection,
                Err(error) => {
                    warn!(%error, "control socket");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            match answer(connection, &tokens, &source).await {
                Ok(()) => {}
                Err(error) => warn!(%error, "control socket"),
            }
        }
    }
}

async fn answer(connection: tokio::net::UnixStream, tokens: &Tokens, source: &Source) -> io::Result<()> {
    let (reader, mut writer) = connection.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(LONGEST));
    tokio::time::timeout(PATIENCE, reader.read_line(&mut line)).await??;
    let answer = match serde_json::from_str(&line) {
        Err(e) => Answer::Error(format!("not understood: {e}")),
        Ok(Request::CreateToken { node, life_seconds }) => {
            match tokens.create(node.as_deref(), Duration::from_secs(life_seconds)).await {
                Ok(token) => {
                    info!(node = node.as_deref().unwrap_or("any"), life_seconds, "made a join token");
                    Answer::Token(token)
                }
                Err(e) => Answer::Error(e.to_string()),
            }
        }
        Ok(Request::Backup) => match source.make().await {
            Ok(name) => {
                info!("made a backup");
                Answer::Backup(name)
            }
            Err(e) => Answer::Error(e.to_string()),
        },
    };
    let mut text = serde_json::to_string(&answer)?;
    text.push('\n');
    tokio::time::timeout(PATIENCE, writer.write_all(text.as_bytes())).await?
}

/// Whether a controller runs on a data directory.
pub fn answers(data_dir: &Path) -> bool {
    File::open(data_dir).and_then(|directory| UnixStream::connect(short(&directory))).is_ok()
}

/// Asks the controller that runs on a data directory for a join token. Blocks.
pub fn create_token(data_dir: &Path, node: Option<&str>, life: Duration) -> Result<String, ControlError> {
    let request = Request::CreateToken { node: node.map(str::to_owned), life_seconds: life.as_secs() };
    match ask(data_dir, &request, PATIENCE)? {
        Answer::Token(token) => Ok(token),
        other => Err(unexpected(other)),
    }
}

/// Asks the controller that runs on a data directory for a backup; the name of the file in that directory. Blocks.
pub fn backup(data_dir: &Path) -> Result<String, ControlError> {
    match ask(data_dir, &Request::Backup, COPYING)? {
        Answer::Backup(name) => Ok(name),
        other => Err(unexpected(other)),
    }
}

fn unexpected(answer: Answer) -> ControlError {
    match answer {
        Answer::Error(reason) => ControlError::Refused(reason),
        other => ControlError::Refused(format!("it answered something else: {other:?}")),
    }
}

fn ask(data_dir: &Path, request: &Request, patience: Duration) -> Result<Answer, ControlError> {
    let not_running = |error| ControlError::NotRunning { data_dir: data_dir.to_owned(), error };
    let directory = File::open(data_dir).map_err(not_running)?;
    let mut connection = UnixStream::connect(short(&directory)).map_err(not_running)?;
    connection.set_read_timeout(Some(patience))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let mut text = serde_json::to_string(request).map_err(io::Error::from)?;
    text.push('\n');
    connection.write_all(text.as_bytes())?;
    let mut line = String::new();
    BufReader::new(connection).read_line(&mut line)?;
    Ok(serde_json::from_str(&line).map_err(io::Error::from)?)
}

/// The socket's path by way of its open directory: a socket's address holds some hundred bytes, a data
/// directory's path may have more.
fn short(directory: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_raw_fd()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;

    #[tokio::test]
    async fn a_token_is_made_through_the_socket_also_under_a_long_path() {
        let directory = tempfile::tempdir().unwrap();
        let data_dir = directory.path().join("x".repeat(200));
        fs::create_dir(&data_dir).unwrap();
        let ask = |node: &'static str| {
            let data_dir = data_dir.clone();
            tokio::task::spawn_blocking(move || create_token(&data_dir, Some(node), PATIENCE))
        };
        let refused = ask("one").await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("no controller runs on"), "{refused}");

        let tokens = Tokens::new(Store::in_memory().unwrap(), "ab".repeat(32));
        drop(Control::bind(&data_dir).unwrap());
        let control = Control::bind(&data_dir).expect("over a dead controller's socket");
        let mode = fs::metadata(data_dir.join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let source = Source { store: Store::in_memory().unwrap(), data_dir: data_dir.clone(), config: None };
        tokio::spawn(control.serve(tokens.clone(), source));
        let token = ask("one").await.unwrap().unwrap();
        tokens.redeem(&token, "one", "key").await.unwrap();
        let refused = ask("Not A Name").await.unwrap().unwrap_err();
        assert!(refused.to_string().contains("no name for a node"), "{refused}");
    }
}
