//! What is mounted where, as the kernel lists it: reading that asks no server anything.

use std::path::{Path, PathBuf};

use super::VolumeError;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u64,
    /// `major:minor` of the file system.
    pub device: String,
    pub point: PathBuf,
}

/// All mounts of this mount namespace.
pub struct Mounted(Vec<Mount>);

impl Mounted {
    pub fn read() -> Result<Mounted, VolumeError> {
        let text = std::fs::read_to_string("/proc/thread-self/mountinfo")
            .map_err(|cause| VolumeError::io("/proc/thread-self/mountinfo", cause))?;
        Ok(Mounted(text.lines().filter_map(parse).collect()))
    }

    /// What is on top there.
    pub fn at(&self, point: &Path) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == point)
    }

    /// Mounts at or below a path.
    pub fn below(&self, path: &Path) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.point.starts_with(path))
    }

    /// Mounts of a file system.
    pub fn of(&self, device: &str) -> impl Iterator<Item = &Mount> {
        self.0.iter().filter(move |mount| mount.device == device)
    }
}

fn parse(line: &str) -> Option<Mount> {
    let mut fields = line.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    Some(Mount { id, device, point: unescape(fields.nth(1)?) })
}

/// The mount a descriptor of this process is on.
pub fn id_of(fd: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/thread-self/fdinfo/{fd}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// mountinfo writes blanks, tabs, newlines and backslashes as `\ooo`.
fn unescape(field: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_understood() {
        let line = "36 35 0:41 / /a\\040b\\134c rw,nosuid shared:1 - nfs4 nas:/x rw";
        let expected = Mount { id: 36, device: "0:41".into(), point: "/a b\\c".into() };
        assert_eq!(parse(line), Some(expected));
        assert_eq!(unescape("/a\\"), PathBuf::from("/a\\"));
    }
}
