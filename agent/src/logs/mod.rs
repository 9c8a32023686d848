//! Reading container logs in the CRI format, as berth-log-writer writes them: across rotated files, followed by
//! inotify.
//!
//! It must never read more into memory than one chunk, and never poll.

mod files;
mod format;

use std::{io, path::PathBuf};

use bytes::{Bytes, BytesMut};
use files::{Part, Parts};
use format::Line;
use tokio::sync::watch;

use crate::notify::Changes;

/// Read from the disk at a time.
const CHUNK: usize = 64 * 1024;

/// What to read.
#[derive(Debug, Clone)]
pub struct LogRequest {
    /// The current log file of one attempt ([`crate::runtime::LogTarget::path`]).
    pub path: PathBuf,
    /// Keep reading until `ended`.
    pub follow: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Unix time, nanoseconds: nothing older.
    pub since_ns: Option<i64>,
    /// End after so many bytes.
    pub limit_bytes: Option<u64>,
    /// Becomes true when the container has ended and its log is complete: that is once
    /// [`crate::runtime::Runtime::remove`] has returned, since the log writer may still be writing when the process
    /// is gone. A dropped sender means the same.
    pub ended: watch::Receiver<bool>,
}

/// Why a log cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// There is no such log.
    #[error("no log at {0}")]
    NotFound(PathBuf),
    /// The disk.
    #[error("reading {path}: {cause}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
}

/// A log being read: chunks without the CRI prefix, both streams together, in order.
pub struct LogReader {
    request: LogRequest,
    parts: Parts,
    /// Set up before the first look at the files, so that no change after that look is missed.
    changes: Option<Changes>,
    /// Read and not yet a whole line.
    rest: BytesMut,
    /// The next line begins a line of the container's, instead of going on with one.
    fresh: bool,
    left: Option<u64>,
    done: bool,
}

impl LogReader {
    /// Finds where to begin.
    pub async fn open(request: LogRequest) -> Result<LogReader, LogError> {
        let failed = |cause| LogError::Io { path: request.path.clone(), cause };
        let changes = match (request.follow, request.path.parent()) {
            (true, Some(dir)) => {
                let changes = Changes::new().map_err(failed)?;
                // The directory tells of changes of the file and of its replacement.
                match changes.watch(dir) {
                    Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                        return Err(LogError::NotFound(request.path));
                    }
                    other => other.map_err(failed)?,
                }
                Some(changes)
            }
            _ => None,
        };
        let (path, tail, since) = (request.path.clone(), request.tail_lines, request.since_ns);
        let parts = blocking(move || Parts::open(&path, tail, since)).await.map_err(failed)?;
        let Some(parts) = parts else { return Err(LogError::NotFound(request.path)) };
        let left = request.limit_bytes;
        Ok(LogReader { request, parts, changes, rest: BytesMut::new(), fresh: true, left, done: false })
    }

    /// The next chunk (at most some 64 KiB); None at the end. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, LogError>> {
        loop {
            if self.done {
                return None;
            }
            match self.step().await {
                Ok(bytes) if bytes.is_empty() => {}
                Ok(bytes) => return Some(Ok(bytes)),
                Err(cause) => {
                    self.done = true;
                    return Some(Err(LogError::Io { path: self.request.path.clone(), cause }));
                }
            }
        }
    }

    async fn step(&mut self) -> io::Result<Bytes> {
        // Before looking at the file: what was written before it became true is seen after.
        let ended =
            !self.request.follow || *self.request.ended.borrow() || self.request.ended.has_changed().is_err();
        if let Some(part) = self.parts.first() {
            let data = read_chunk(part).await?;
            if !data.is_empty() {
                self.parts.advance(data.len() as u64);
                self.rest.extend_from_slice(&data);
                return Ok(self.take_lines());
            }
            if self.parts.len() > 1 {
                self.parts.drop_first();
                self.rest.clear();
                return Ok(Bytes::new());
            }
        }
        // The end of the youngest: perhaps there is a younger one by now.
        if self.request.follow {
            let path = self.request.path.clone();
            let youngest = self.parts.first().map(Part::inode);
            let younger = blocking(move || files::younger(&path, youngest)).await?;
            if !younger.is_empty() {
                // Once more to the end of this one, since the writer may have written to it before it rotated.
                self.parts.append(younger);
                return Ok(Bytes::new());
            }
        }
        if ended {
            self.done = true;
            return Ok(Bytes::new());
        }
        if let Some(changes) = &self.changes {
            tokio::select! {
                () = changes.next() => {}
                _ = self.request.ended.changed() => {}
            }
        }
        Ok(Bytes::new())
    }

    /// What of the rest are whole lines, as the reader wants them.
    fn take_lines(&mut self) -> Bytes {
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else { return Bytes::new() };
        let lines = self.rest.split_to(end + 1);
        let mut out = BytesMut::with_capacity(lines.len());
        for line in lines[..].split(|byte| *byte == b'\n') {
            // What is no line of ours (a disk that was full once) is left out.
            let Some(line) = Line::parse(line) else { continue };
            if let Some(since) = self.request.since_ns {
                if line.nanoseconds().is_some_and(|at| at < since) {
                    self.fresh = line.full;
                    continue;
                }
                // Time only goes on: the rest need not be asked.
                self.request.since_ns = None;
            }
            if self.request.timestamps && self.fresh {
                out.extend_from_slice(line.time);
                out.extend_from_slice(b" ");
            }
            out.extend_from_slice(line.content);
            if line.full {
                out.extend_from_slice(b"\n");
            }
            self.fresh = line.full;
        }
        if let Some(left) = &mut self.left {
            let room = usize::try_from(*left).unwrap_or(usize::MAX);
            if out.len() >= room {
                out.truncate(room);
                self.done = true;
            }
            *left -= out.len() as u64;
        }
        out.freeze()
    }
}

async fn read_chunk(part: &Part) -> io::Result<Vec<u8>> {
    let part = part.clone();
    blocking(move || part.read(CHUNK)).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

/// The end of a log for a termination message: the last `lines` lines, of these at most the last `bytes` bytes.
pub async fn last_words(path: &std::path::Path, lines: usize, bytes: usize) -> String {
    let (_, ended) = watch::channel(true);
    let request = LogRequest {
        path: path.into(),
        follow: false,
        timestamps: false,
        tail_lines: Some(lines as u64),
        since_ns: None,
        limit_bytes: None,
        ended,
    };
    let Ok(mut reader) = LogReader::open(request).await else { return String::new() };
    let mut kept: Vec<u8> = Vec::new();
    while let Some(Ok(chunk)) = reader.next().await {
        kept.extend_from_slice(&chunk);
        kept.drain(..kept.len().saturating_sub(bytes));
    }
    // Cut within a character: what is left of it is left out.
    let begin = kept.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
    String::from_utf8_lossy(&kept[begin..]).into_owned()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, OpenOptions},
        io::Write,
        path::Path,
    };

    use proptest::prelude::*;

    use super::*;

    fn request(path: &Path) -> LogRequest {
        let (_, ended) = watch::channel(true);
        LogRequest {
            path: path.into(),
            follow: false,
            timestamps: false,
            tail_lines: None,
            since_ns: None,
            limit_bytes: None,
            ended,
        }
    }

    async fn all(request: LogRequest) -> String {
        let mut reader = LogReader::open(request).await.unwrap();
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    fn line(second: u32, tag: char, content: &str) -> String {
        format!("2026-11-21T08:00:{second:02}.000000001Z stdout {tag} {content}\n")
    }

    fn append(path: &Path, text: &str) {
        OpenOptions::new().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Three files: 1 to 4, the third line in two pieces.
    fn rotated(dir: &Path) -> PathBuf {
        let path = dir.join("0.log");
        append(&dir.join("0.log.2"), &line(1, 'F', "one"));
        append(&dir.join("0.log.1"), &(line(2, 'F', "two") + &line(3, 'P', "th")));
        append(&path, &(line(3, 'F', "ree") + &line(4, 'F', "four")));
        path
    }

    #[tokio::test]
    async fn a_rotated_log_is_one_log() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        assert_eq!(all(request(&path)).await, "one\ntwo\nthree\nfour\n");
    }

    #[tokio::test]
    async fn the_last_lines_are_the_containers_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        for (tail, text) in [
            (0, ""),
            (1, "four\n"),
            (2, "three\nfour\n"),
            (3, "two\nthree\nfour\n"),
            (9, "one\ntwo\nthree\nfour\n"),
        ] {
            assert_eq!(all(LogRequest { tail_lines: Some(tail), ..request(&path) }).await, text, "{tail}");
        }
        append(&path, &line(5, 'P', "half"));
        assert_eq!(all(LogRequest { tail_lines: Some(1), ..request(&path) }).await, "half");
        assert_eq!(all(LogRequest { tail_lines: Some(2), ..request(&path) }).await, "four\nhalf");
    }

    #[tokio::test]
    async fn since_leaves_out_what_is_older() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        let at: jiff::Timestamp = "2026-11-21T08:00:03Z".parse().unwrap();
        let since_ns = Some(i64::try_from(at.as_nanosecond()).unwrap());
        assert_eq!(all(LogRequest { since_ns, ..request(&path) }).await, "three\nfour\n");
    }

    #[tokio::test]
    async fn time_stands_before_each_line_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        let text = all(LogRequest { timestamps: true, tail_lines: Some(2), ..request(&path) }).await;
        assert_eq!(text, "2026-11-21T08:00:03.000000001Z three\n2026-11-21T08:00:04.000000001Z four\n");
    }

    #[tokio::test]
    async fn a_limit_cuts_to_the_byte() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        for limit in [0, 1, 5, 100] {
            let text = all(LogRequest { limit_bytes: Some(limit), ..request(&path) }).await;
            assert_eq!(text, &"one\ntwo\nthree\nfour\n"[..text.len()]);
            assert_eq!(text.len(), usize::try_from(limit).unwrap().min(19));
        }
    }

    #[tokio::test]
    async fn no_log_is_said() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["0.log", "no/0.log"] {
            for follow in [false, true] {
                let request = LogRequest { follow, ..request(&dir.path().join(path)) };
                assert!(matches!(LogReader::open(request).await, Err(LogError::NotFound(_))));
            }
        }
    }

    #[tokio::test]
    async fn lines_that_are_none_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, &(line(1, 'F', "one") + "garbage\n\n" + &line(2, 'F', "") + "2026 stdout X y\n"));
        assert_eq!(all(request(&path)).await, "one\n\n");
    }

    #[tokio::test]
    async fn last_words_are_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = rotated(dir.path());
        assert_eq!(last_words(&path, 2, 100).await, "three\nfour\n");
        assert_eq!(last_words(&path, 80, 7).await, "e\nfour\n");
        append(&path, &line(5, 'F', "äöü"));
        assert_eq!(last_words(&path, 1, 6).await, "öü\n");
        assert_eq!(last_words(&dir.path().join("none"), 80, 2048).await, "");
    }

    #[tokio::test]
    async fn following_goes_on_over_rotations_until_told_that_it_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, &line(0, 'F', "begin"));
        let (end, ended) = watch::channel(false);
        let mut reader = LogReader::open(LogRequest { follow: true, ended, ..request(&path) }).await.unwrap();
        let writer = path.clone();
        let write = tokio::spawn(async move {
            for n in 0..200u32 {
                append(&writer, &line(n % 60, 'F', &n.to_string()));
                if n % 20 == 19 {
                    let name = |n: u32| format!("{}.{n}", writer.display());
                    for k in (1..4).rev() {
                        let _ = fs::rename(name(k), name(k + 1));
                    }
                    fs::rename(&writer, name(1)).unwrap();
                    append(&writer, "");
                }
                if n % 7 == 0 {
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                }
            }
            end.send_replace(true);
        });
        let mut text = Vec::new();
        while let Some(chunk) = reader.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        write.await.unwrap();
        let expected: String = "begin\n".to_owned() + &(0..200).map(|n| format!("{n}\n")).collect::<String>();
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    #[tokio::test]
    async fn a_dropped_sender_ends_it_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        append(&path, &line(0, 'F', "x"));
        let (end, ended) = watch::channel(false);
        let mut reader = LogReader::open(LogRequest { follow: true, ended, ..request(&path) }).await.unwrap();
        assert_eq!(reader.next().await.unwrap().unwrap(), "x\n");
        drop(end);
        assert!(reader.next().await.is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_tail_is_the_end_of_the_whole(
            lines in proptest::collection::vec(("[a-z]{0,40}", proptest::bool::weighted(0.7), 0u8..10), 1..60),
            tail in 0u64..70,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("0.log");
            // A tenth of the lines begins a new file.
            let mut files = vec![String::new()];
            for (content, full, dice) in &lines {
                if *dice == 0 {
                    files.push(String::new());
                }
                files.last_mut().unwrap().push_str(&line(1, if *full { 'F' } else { 'P' }, content));
            }
            for (n, text) in files.iter().rev().enumerate() {
                let name = if n == 0 { path.clone() } else { dir.path().join(format!("0.log.{n}")) };
                append(&name, text);
            }
            let whole = runtime.block_on(all(request(&path)));
            let part = runtime.block_on(all(LogRequest { tail_lines: Some(tail), ..request(&path) }));
            // An unfinished last line counts as one, also where nothing has been written to it.
            let unfinished = !lines.last().unwrap().1;
            let finished = whole.matches('\n').count() as u64;
            let count = finished + u64::from(unfinished);
            let mut wanted: Vec<&str> = whole.split_inclusive('\n').collect();
            if unfinished && (whole.is_empty() || whole.ends_with('\n')) {
                wanted.push("");
            }
            let skip = usize::try_from(count.saturating_sub(tail)).unwrap();
            prop_assert_eq!(part, wanted[skip..].concat());
        }
    }
}
