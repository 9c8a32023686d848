//! The directories of cgroupfs, version by version. Blocking.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// One mounted cgroup hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub mount: PathBuf,
    pub v2: bool,
    pub controllers: Vec<String>,
}

/// All that are mounted, each once.
pub(super) fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mut found = parse(&fs::read_to_string("/proc/self/mountinfo")?);
    for hierarchy in found.iter_mut().filter(|hierarchy| hierarchy.v2) {
        let text = fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
        hierarchy.controllers = text.split_whitespace().map(str::to_owned).collect();
    }
    Ok(found)
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
        let (kind, options) = (right.next().unwrap_or_default(), right.nth(1).unwrap_or_default());
        let hierarchy = match kind {
            "cgroup2" => Hierarchy { mount: mount.into(), v2: true, controllers: Vec::new() },
            "cgroup" => {
                // Named ones (name=systemd) count as well: runc puts processes there too.
                let controllers = options.split(',').filter(|o| !matches!(*o, "rw" | "ro"));
                Hierarchy {
                    mount: mount.into(),
                    v2: false,
                    controllers: controllers.map(str::to_owned).collect(),
                }
            }
            _ => continue,
        };
        if !found.iter().any(|one| one.v2 == hierarchy.v2 && one.controllers == hierarchy.controllers) {
            found.push(hierarchy);
        }
    }
    found
}

impl Hierarchy {
    pub fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|one| one == controller)
    }

    /// The directory of a cgroup path.
    pub fn dir(&self, path: &str) -> PathBuf {
        self.mount.join(path.trim_start_matches('/'))
    }

    /// Makes it with its parents; on v2 with their controllers turned on.
    pub fn make(&self, dir: &Path) -> io::Result<()> {
        // The parent may be removed as empty in between.
        let mut result = fs::create_dir_all(dir);
        for _ in 0..10 {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::NotFound => result = fs::create_dir_all(dir),
                _ => break,
            }
        }
        result?;
        if self.v2 {
            let mut above: Vec<&Path> =
                dir.ancestors().skip(1).take_while(|above| above.starts_with(&self.mount)).collect();
            above.reverse();
            for parent in above {
                for controller in ["cpu", "memory", "pids"].into_iter().filter(|one| self.has(one)) {
                    let file = parent.join("cgroup.subtree_control");
                    if let Err(error) = fs::write(&file, format!("+{controller}")) {
                        tracing::warn!(file = %file.display(), controller, %error, "a cgroup controller is not available");
                    }
                }
            }
        }
        Ok(())
    }

    /// Sets a limit. Where the controller is not there for us, the machine has no such limit: a warning.
    pub fn set(&self, dir: &Path, file: &str, value: &str) -> io::Result<()> {
        match fs::write(dir.join(file), value) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && dir.exists() => {
                tracing::warn!(file, dir = %dir.display(), "not there: the pod's limit is not set");
                Ok(())
            }
            other => other,
        }
    }

    pub fn is_empty(&self, dir: &Path) -> io::Result<bool> {
        if self.v2 {
            return match fs::read_to_string(dir.join("cgroup.events")) {
                Ok(events) => Ok(events.lines().any(|line| line == "populated 0")),
                Err(error) if is_gone(&error) => Ok(true),
                Err(error) => Err(error),
            };
        }
        Ok(processes(dir)?.is_empty())
    }

    /// SIGKILL to all in it.
    pub fn kill(&self, dir: &Path) -> io::Result<()> {
        if self.v2 {
            match fs::write(dir.join("cgroup.kill"), "1") {
                Ok(()) => return Ok(()),
                // Kernels before 5.14, or there is no such cgroup.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        // As long as there are new ones: a process may fork between being listed and being killed.
        let mut before = Vec::new();
        for _ in 0..100 {
            let now = processes(dir)?;
            if now.iter().all(|pid| before.contains(pid)) {
                return Ok(());
            }
            for pid in &now {
                match kill(Pid::from_raw(*pid), Signal::SIGKILL) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            before = now;
        }
        Ok(())
    }
}

/// All processes in a cgroup and below it.
fn processes(dir: &Path) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        match fs::read_to_string(dir.join("cgroup.procs")) {
            // 0 is a process of another pid namespace; kill(0) would be us.
            Ok(text) => {
                pids.extend(text.lines().filter_map(|line| line.parse().ok()).filter(|pid: &i32| *pid > 0))
            }
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        }
        left.extend(children(&dir)?.into_iter().map(|name| dir.join(name)));
    }
    Ok(pids)
}

/// Names of the cgroups in a cgroup; none when it is not there.
pub(super) fn children(dir: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_gone(&error) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut names = Vec::new();
    for entry in entries {
        match entry {
            Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => {
                names.extend(entry.file_name().into_string().ok());
            }
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(names)
}

/// Removes it and all below it; fine when it is not there.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    for name in children(dir)? {
        remove(&dir.join(name))?;
    }
    // Right after its last process has ended, the kernel may still be at it.
    let mut pause = Duration::from_millis(1);
    loop {
        match fs::remove_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error)
                if error.raw_os_error() == Some(Errno::EBUSY as i32)
                    && pause < Duration::from_millis(100) =>
            {
                std::thread::sleep(pause);
                pause *= 2;
            }
            Err(error) => return Err(error),
        }
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ENODEV as i32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_hierarchies_are_found_each_once() {
        let text = "\
31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:5 - cgroup cgroup rw,cpu,cpuacct
40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
42 99 0:29 / /mnt/cpu rw - cgroup cgroup rw,cpu,cpuacct
43 99 0:38 / /mnt/unified rw - cgroup2 cgroup2 rw
";
        let found = parse(text);
        let mounts: Vec<_> = found.iter().map(|one| one.mount.display().to_string()).collect();
        assert_eq!(
            mounts,
            ["/sys/fs/cgroup/cpu,cpuacct", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"]
        );
        assert!(found[0].has("cpu") && found[0].has("cpuacct") && !found[0].has("memory"));
        assert!(found[2].v2);
    }
}
