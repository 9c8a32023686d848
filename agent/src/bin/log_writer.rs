//! berth-log-writer: takes one container's output from containerd's shim and writes it to a file in the CRI log
//! format, rotated. One such process per container, so it is small: the standard library, poll(2), no threads.
//!
//! Started by the shim with stdout on descriptor 3, stderr on 4, and 5 to be closed when ready. Arguments:
//! `<bytes>x<files> <path>` (one parameter of a `binary://` URI). With a `u` behind the number of files, what is said is
//! written at once and in parts, not line by line: a terminal's prompt is a line without an end.
//!
//! It must never block the container: whatever the disk does, the pipes are emptied. What cannot be written is
//! dropped, and the log says so as soon as it can be written again. It ends when both streams have ended, and
//! nothing else ends it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsFd, FromRawFd, OwnedFd},
        unix::fs::OpenOptionsExt,
    },
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::SigSet,
};

/// Longer lines are split, as every CRI runtime does.
const MAX_LINE: usize = 16 * 1024;
/// A log that could not be opened is tried again after this.
const REOPEN: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let sizes = arguments.next().and_then(|sizes| parse_sizes(sizes.to_str()?));
    let (Some((max_size, max_files, unbuffered)), Some(path)) = (sizes, arguments.next()) else {
        eprintln!("usage: berth-log-writer <bytes>x<files>[u] <path>, as a containerd log binary");
        return ExitCode::from(2);
    };
    // The end of both streams is the only reason to end: a signal to a whole group or unit must not cut a log.
    let _ = SigSet::all().thread_block();
    // A directory that is unmounted must not be held.
    let _ = std::env::set_current_dir("/");

    let mut log = Log::new(path.into(), max_size, max_files);
    let streams = [descriptor(3), descriptor(4)];
    // Closed: ready. Only now does the shim go on to make the container.
    drop(descriptor(5));
    run(streams, unbuffered, &mut log);
    ExitCode::SUCCESS
}

/// A descriptor that the shim handed over.
fn descriptor(number: i32) -> Option<OwnedFd> {
    fs::symlink_metadata(format!("/proc/self/fd/{number}")).ok()?;
    // SAFETY: it is open (just asked), handed over by the shim for this purpose, and taken only here, once.
    #[allow(unsafe_code)]
    Some(unsafe { OwnedFd::from_raw_fd(number) })
}

fn parse_sizes(text: &str) -> Option<(u64, u32, bool)> {
    let (sizes, unbuffered) = match text.strip_suffix('u') {
        Some(sizes) => (sizes, true),
        None => (text, false),
    };
    let (size, files) = sizes.split_once('x')?;
    Some((size.parse().ok()?, files.parse().ok()?, unbuffered))
}

fn run(mut streams: [Option<OwnedFd>; 2], unbuffered: bool, log: &mut Log) {
    let mut lines = [Lines::new("stdout"), Lines::new("stderr")];
    let mut buffer = vec![0u8; MAX_LINE];
    let mut out = Vec::with_capacity(2 * MAX_LINE);
    while streams.iter().any(Option::is_some) {
        let ready = wait(&streams);
        let now = stamp(SystemTime::now());
        for at in 0..streams.len() {
            let Some(stream) = streams[at].as_ref().filter(|_| ready[at]) else { continue };
            match nix::unistd::read(stream.as_fd(), &mut buffer) {
                Ok(0) => {
                    lines[at].flush(&now, &mut out);
                    streams[at] = None;
                }
                Ok(n) => {
                    lines[at].feed(&buffer[..n], &now, &mut out);
                    if unbuffered {
                        lines[at].flush(&now, &mut out);
                    }
                }
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(_) => streams[at] = None,
            }
        }
        log.write(&out, &now);
        out.clear();
    }
}

/// Which streams have something, or have ended.
fn wait(streams: &[Option<OwnedFd>; 2]) -> [bool; 2] {
    let open: Vec<usize> = (0..streams.len()).filter(|at| streams[*at].is_some()).collect();
    let mut polled: Vec<PollFd> =
        streams.iter().flatten().map(|stream| PollFd::new(stream.as_fd(), PollFlags::POLLIN)).collect();
    let mut ready = [false; 2];
    if poll(&mut polled, PollTimeout::NONE).is_ok() {
        for (at, one) in open.iter().zip(&polled) {
            ready[*at] = one.revents().is_some_and(|events| !events.is_empty());
        }
    }
    ready
}

/// One stream on its way from bytes to lines.
struct Lines {
    name: &'static str,
    /// The beginning of a line that has no end yet; shorter than MAX_LINE.
    begun: Vec<u8>,
}

impl Lines {
    fn new(name: &'static str) -> Lines {
        Lines { name, begun: Vec::new() }
    }

    fn feed(&mut self, mut bytes: &[u8], now: &str, out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = MAX_LINE - self.begun.len();
            match bytes.iter().take(room).position(|byte| *byte == b'\n') {
                Some(end) => {
                    line(now, self.name, true, &self.begun, &bytes[..end], out);
                    self.begun.clear();
                    bytes = &bytes[end + 1..];
                }
                None if bytes.len() >= room => {
                    line(now, self.name, false, &self.begun, &bytes[..room], out);
                    self.begun.clear();
                    bytes = &bytes[room..];
                }
                None => {
                    self.begun.extend_from_slice(bytes);
                    bytes = &[];
                }
            }
        }
    }

    /// What has no end yet is a partial line.
    fn flush(&mut self, now: &str, out: &mut Vec<u8>) {
        if !self.begun.is_empty() {
            line(now, self.name, false, &self.begun, &[], out);
            self.begun.clear();
        }
    }
}

fn line(now: &str, stream: &str, full: bool, begin: &[u8], end: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(now.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(if full { b" F " } else { b" P " });
    out.extend_from_slice(begin);
    out.extend_from_slice(end);
    out.push(b'\n');
}

/// RFC 3339 with nanoseconds, UTC.
fn stamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
    // From days to a date: years of 400 are alike, and begin in March so that the leap day comes last.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:09}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        since.subsec_nanos()
    )
}

/// The file and those rotated away.
struct Log {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
    file: Option<File>,
    /// Where the last whole line ends.
    size: u64,
    last_try: Option<Instant>,
    lost: u64,
    why: String,
}

impl Log {
    fn new(path: PathBuf, max_size: u64, max_files: u32) -> Log {
        let mut log = Log {
            path,
            max_size: max_size.max(1),
            max_files: max_files.max(1),
            file: None,
            size: 0,
            last_try: None,
            lost: 0,
            why: String::new(),
        };
        log.open();
        log
    }

    fn open(&mut self) {
        if self.file.is_some() || self.last_try.is_some_and(|last| last.elapsed() < REOPEN) {
            return;
        }
        self.last_try = Some(Instant::now());
        match open(&self.path) {
            Ok((file, size)) => (self.file, self.size, self.last_try) = (Some(file), size, None),
            Err(error) => self.why = error.to_string(),
        }
    }

    /// Whole lines.
    fn write(&mut self, lines: &[u8], now: &str) {
        if lines.is_empty() {
            return;
        }
        self.open();
        if self.size > 0 && self.size + lines.len() as u64 > self.max_size {
            self.rotate();
        }
        let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        if self.lost > 0 {
            let text = format!("[berth: {} lines of this log are lost: {}]", self.lost, self.why);
            let mut notice = Vec::new();
            line(now, "stderr", true, text.as_bytes(), &[], &mut notice);
            if self.append(&notice) {
                self.lost = 0;
            }
        }
        if self.lost > 0 || !self.append(lines) {
            self.lost += count;
        }
    }

    /// All or nothing, so that the file stays one of whole lines.
    fn append(&mut self, bytes: &[u8]) -> bool {
        let Some(file) = &mut self.file else { return false };
        match file.write_all(bytes) {
            Ok(()) => {
                self.size += bytes.len() as u64;
                true
            }
            Err(error) => {
                self.why = error.to_string();
                let _ = file.set_len(self.size);
                false
            }
        }
    }

    /// `log` becomes `log.1`, that becomes `log.2`, and so on. If that cannot be done, writing goes on where it was.
    fn rotate(&mut self) {
        if self.max_files == 1 {
            if self.file.as_ref().is_some_and(|file| file.set_len(0).is_ok()) {
                self.size = 0;
            }
            return;
        }
        for n in (1..self.max_files - 1).rev() {
            let _ = fs::rename(numbered(&self.path, n), numbered(&self.path, n + 1));
        }
        if fs::rename(&self.path, numbered(&self.path, 1)).is_err() {
            return;
        }
        match open(&self.path) {
            Ok((file, size)) => (self.file, self.size) = (Some(file), size),
            // The old one has still its descriptor, under its new name.
            Err(_) => drop(fs::rename(numbered(&self.path, 1), &self.path)),
        }
    }
}

fn open(path: &Path) -> io::Result<(File, u64)> {
    let open = || OpenOptions::new().append(true).create(true).mode(0o640).open(path);
    let file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            open()?
        }
        other => other?,
    };
    let size = file.metadata()?.len();
    Ok((file, size))
}

fn numbered(path: &Path, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{n}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn time_is_written_as_rfc_3339() {
        let at = |seconds, nanos| stamp(UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(at(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(at(951_827_696, 789), "2000-02-29T12:34:56.000000789Z");
        assert_eq!(at(1_767_225_599, 999_999_999), "2025-12-31T23:59:59.999999999Z");
        assert_eq!(at(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn sizes_come_in_one_word() {
        assert_eq!(parse_sizes("10485760x5"), Some((10_485_760, 5, false)));
        assert_eq!(parse_sizes("10x2u"), Some((10, 2, true)));
        for bad in ["", "x", "1", "1x", "x2", "ax2", "1x2x3", "1x2uu", "u"] {
            assert_eq!(parse_sizes(bad), None, "{bad}");
        }
    }

    fn log_in(dir: &Path, max_size: u64, max_files: u32) -> Log {
        Log::new(dir.join("0.log"), max_size, max_files)
    }

    #[test]
    fn old_files_make_room_for_new_ones() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path(), 10, 3);
        for text in ["one-\n", "two-\n", "three-\n", "four-\n", "five-\n", "six-\n"] {
            log.write(text.as_bytes(), "now");
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
        assert_eq!([read("0.log"), read("0.log.1"), read("0.log.2")], ["six-\n", "five-\n", "four-\n"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
    }

    #[test]
    fn a_full_disk_costs_lines_and_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path(), 1 << 20, 2);
        log.write(b"before\n", "t0");
        let good = log.file.replace(OpenOptions::new().write(true).open("/dev/full").unwrap());
        log.write(b"lost 1\nlost 2\n", "t1");
        log.write(b"lost 3\n", "t2");
        log.file = good;
        log.write(b"after\n", "t3");
        let text = fs::read_to_string(dir.path().join("0.log")).unwrap();
        assert_eq!(
            text,
            "before\nt3 stderr F [berth: 3 lines of this log are lost: No space left on device (os error 28)]\nafter\n"
        );
    }

    #[test]
    fn it_goes_on_with_a_log_that_is_there_and_makes_its_directory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/0.log");
        Log::new(path.clone(), 100, 2).write(b"one\n", "now");
        Log::new(path.clone(), 100, 2).write(b"two\n", "now");
        assert_eq!(fs::read_to_string(path).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn both_streams_are_written_until_both_have_ended() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path(), 1 << 20, 2);
        let (out_read, out_write) = nix::unistd::pipe().unwrap();
        let (err_read, err_write) = nix::unistd::pipe().unwrap();
        let writer = std::thread::spawn(move || {
            nix::unistd::write(&out_write, b"out\nhalf").unwrap();
            drop(out_write);
            nix::unistd::write(&err_write, b"err\n").unwrap();
        });
        run([Some(out_read), Some(err_read)], false, &mut log);
        writer.join().unwrap();
        let mut text = String::new();
        File::open(dir.path().join("0.log")).unwrap().read_to_string(&mut text).unwrap();
        let mut lines: Vec<&str> = text.lines().map(|line| line.split_once(' ').unwrap().1).collect();
        lines.sort_unstable();
        assert_eq!(lines, ["stderr F err", "stdout F out", "stdout P half"]);
    }

    #[test]
    fn a_terminals_prompt_does_not_wait_for_the_end_of_its_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = log_in(dir.path(), 1 << 20, 2);
        let (read, write) = nix::unistd::pipe().unwrap();
        let writer = std::thread::spawn(move || run([Some(read), None], true, &mut log));
        let path = dir.path().join("0.log");
        let deadline = Instant::now() + Duration::from_secs(10);
        nix::unistd::write(&write, b"hello\n# ").unwrap();
        while !fs::read_to_string(&path).is_ok_and(|text| text.ends_with(" stdout P # \n")) {
            assert!(Instant::now() < deadline, "{:?}", fs::read_to_string(&path));
            std::thread::sleep(Duration::from_millis(5));
        }
        drop(write);
        writer.join().unwrap();
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_however_it_arrives(
            chunks in proptest::collection::vec(proptest::collection::vec(prop_oneof![5 => Just(b'x'), 1 => Just(b'\n')], 0..9000), 0..8)
        ) {
            let mut lines = Lines::new("stdout");
            let mut out = Vec::new();
            for chunk in &chunks {
                lines.feed(chunk, "T", &mut out);
            }
            lines.flush("T", &mut out);
            let mut back = Vec::new();
            for line in out.split_inclusive(|b| *b == b'\n') {
                let full = line.starts_with(b"T stdout F ");
                prop_assert!(full || line.starts_with(b"T stdout P "));
                let content = &line[11..line.len() - 1];
                prop_assert!(content.len() <= MAX_LINE);
                back.extend_from_slice(content);
                if full {
                    back.push(b'\n');
                }
            }
            prop_assert_eq!(back, chunks.concat());
        }
    }
}
