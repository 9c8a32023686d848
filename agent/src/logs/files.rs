//! The files of one log, held open: what is rotated away or removed meanwhile is still read. Blocking.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::format::Line;

/// More than any configuration asks for: where looking for older files ends.
const MAX_FILES: u32 = 1000;
/// Read at a time when looking for the last lines.
const BLOCK: u64 = 64 * 1024;
/// Of a line, enough to see its tag.
const HEAD: usize = 128;

/// One file, and how far it is read.
#[derive(Debug, Clone)]
pub(super) struct Part {
    file: Arc<File>,
    inode: u64,
    position: u64,
}

impl Part {
    /// None when it is not there.
    fn open(path: &Path) -> io::Result<Option<Part>> {
        match File::open(path) {
            Ok(file) => {
                let inode = file.metadata()?.ino();
                Ok(Some(Part { file: Arc::new(file), inode, position: 0 }))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// What follows, at most so much; empty at the end.
    pub fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; most];
        let n = self.file.read_at(&mut bytes, self.position)?;
        bytes.truncate(n);
        Ok(bytes)
    }
}

/// The files from the oldest to the youngest.
#[derive(Debug)]
pub(super) struct Parts {
    parts: VecDeque<Part>,
}

impl Parts {
    /// None when there is no log.
    pub fn open(path: &Path, tail: Option<u64>, since_ns: Option<i64>) -> io::Result<Option<Parts>> {
        let mut parts = VecDeque::from(younger(path, None)?);
        if parts.is_empty() {
            return Ok(None);
        }
        if let Some(since) = since_ns {
            // A file that was last written before that has nothing for us.
            while parts.len() > 1 && last_written(&parts[0])? < since {
                parts.pop_front();
            }
        }
        if let Some(tail) = tail {
            seek_to_tail(&mut parts, tail)?;
        }
        Ok(Some(Parts { parts }))
    }

    pub fn first(&self) -> Option<&Part> {
        self.parts.front()
    }

    pub fn len(&self) -> usize {
        self.parts.len()
    }

    pub fn advance(&mut self, by: u64) {
        if let Some(first) = self.parts.front_mut() {
            first.position += by;
        }
    }

    pub fn drop_first(&mut self) {
        self.parts.pop_front();
    }

    pub fn append(&mut self, younger: Vec<Part>) {
        self.parts.extend(younger);
    }
}

fn last_written(part: &Part) -> io::Result<i64> {
    let meta = part.file.metadata()?;
    Ok(meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec()))
}

/// The files younger than the one with that inode (all, if it is not among them), oldest first.
///
/// Opened from the youngest on: a rotation in between shows a file again under its next name, which its inode
/// gives away, and hides none.
pub(super) fn younger(path: &Path, than: Option<u64>) -> io::Result<Vec<Part>> {
    let mut found: Vec<Part> = Vec::new();
    let mut missing = 0;
    for n in 0..MAX_FILES {
        let name = if n == 0 { path.to_owned() } else { numbered(path, n) };
        match Part::open(&name)? {
            Some(part) if Some(part.inode) == than => break,
            Some(part) if found.iter().any(|have| have.inode == part.inode) => {}
            Some(part) => found.push(part),
            // In the middle of a rotation the youngest is missing for a moment, and one behind it.
            None if missing < 2 => missing += 1,
            None => break,
        }
    }
    found.reverse();
    Ok(found)
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

/// Sets the positions so that only the last lines are read. A line is one of the container's, whole.
fn seek_to_tail(parts: &mut VecDeque<Part>, lines: u64) -> io::Result<()> {
    let mut count = 0;
    let mut seen = false;
    // Where the lines that were counted begin: part and position.
    let mut begin = (parts.len() - 1, parts[parts.len() - 1].file.metadata()?.len());
    for at in (0..parts.len()).rev() {
        let file = parts[at].file.clone();
        let stop = backwards(&file, |position, full| {
            // Seen from the end, the end of a line begins it; an unfinished one at the very end counts too.
            if full || !seen {
                if count == lines {
                    return true;
                }
                count += 1;
            }
            seen = true;
            begin = (at, position);
            false
        })?;
        if stop {
            break;
        }
    }
    parts.drain(..begin.0);
    parts[0].position = begin.1;
    Ok(())
}

/// Visits the lines of a file from the last to the first, each with its position and whether it is full. Ends early when
/// told to (true). What is no line is passed over.
fn backwards(file: &File, mut visit: impl FnMut(u64, bool) -> bool) -> io::Result<bool> {
    let mut end = file.metadata()?.len();
    // The beginning of what lies behind the block: it belongs to the block's last line.
    let mut behind: Vec<u8> = Vec::new();
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        block.resize(usize::try_from(end - start).unwrap_or(0), 0);
        file.read_exact_at(&mut block, start)?;
        let size = block.len();
        block.extend_from_slice(&behind);
        for at in (0..=size).rev() {
            let begins = match at {
                0 => start == 0,
                // Behind the last byte of the file nothing begins.
                at if at == size && behind.is_empty() => false,
                at => block[at - 1] == b'\n',
            };
            if !begins {
                continue;
            }
            let head = &block[at..block.len().min(at + HEAD)];
            let head = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
            if let Some(line) = Line::parse(head)
                && visit(start + at as u64, line.full)
            {
                return Ok(true);
            }
        }
        behind = block[..block.len().min(HEAD)].to_vec();
        end = start;
    }
    Ok(false)
}
