//! A look into an image's root file system, without starting anything and without leaving a mount behind.
//!
//! The mount is made in a mount namespace of its own, on a thread of its own; it is gone with the thread, also
//! when the agent is killed in between. Paths are resolved by the kernel inside that root, so that a link in an image
//! never leads to a file of the host.

use std::{
    io::Read,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use containerd_client::types::Mount;
use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
    sys::stat::Mode,
};

use super::{super::RuntimeError, accounts::Accounts};

const WHAT: &str = "reading the image's /etc/passwd and /etc/group";
/// Nobody's passwd is larger; what is beyond is not read.
const MAX_FILE: u64 = 4 << 20;

/// Reads the accounts of the image whose (read-only) snapshot these mounts make. `stage`: any directory, used as
/// mount point where nobody sees it.
pub(crate) async fn accounts(mounts: Vec<Mount>, stage: PathBuf) -> Result<Accounts, RuntimeError> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("image-accounts".into())
        .spawn(move || {
            // The receiver may be gone: then nobody wants to know.
            let _ = sender.send(read_in_private(&mounts, &stage));
        })
        .map_err(|e| RuntimeError::failed(WHAT, e))?;
    receiver.await.map_err(|_| RuntimeError::failed(WHAT, "the reading thread died"))?
}

fn read_in_private(mounts: &[Mount], stage: &Path) -> Result<Accounts, RuntimeError> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |e: nix::Error| RuntimeError::failed(WHAT, format!("{what}: {e}"))
    };
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("a mount namespace"))?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(failed("a private mount namespace"))?;
    for one in mounts {
        mount_one(one, stage)?;
    }
    let root = open(stage, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(failed("the mounted image"))?;
    Ok(Accounts::parse(&read_file(&root, "etc/passwd"), &read_file(&root, "etc/group")))
}

/// A file that is not there, or no file, is an empty one.
fn read_file(root: &OwnedFd, path: &str) -> String {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let Ok(file) = openat2(root, path, how) else { return String::new() };
    let file = std::fs::File::from(file);
    if !file.metadata().is_ok_and(|meta| meta.is_file()) {
        return String::new();
    }
    let mut bytes = Vec::new();
    if file.take(MAX_FILE).read_to_end(&mut bytes).is_err() {
        return String::new();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn mount_one(one: &Mount, stage: &Path) -> Result<(), RuntimeError> {
    let failed = |e: nix::Error| RuntimeError::failed(WHAT, format!("mounting a {}: {e}", one.r#type));
    match one.r#type.as_str() {
        "bind" | "rbind" => {
            mount(Some(one.source.as_str()), stage, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                .map_err(failed)
        }
        "overlay" => {
            let (base, options) = overlay_options(&one.options);
            if let Some(base) = base {
                nix::unistd::chdir(base.as_path()).map_err(failed)?;
            }
            mount(Some("overlay"), stage, Some("overlay"), MsFlags::MS_RDONLY, Some(options.as_str()))
                .map_err(failed)
        }
        other => {
            Err(RuntimeError::failed(WHAT, format!("the snapshotter's mount type {other:?} is not known")))
        }
    }
}

/// The options as the kernel takes them, with the layers' paths relative to a directory they share: all options
/// together must fit in one page, and images have up to 127 layers.
fn overlay_options(options: &[String]) -> (Option<PathBuf>, String) {
    let lower = options.iter().find_map(|option| option.strip_prefix("lowerdir=")).unwrap_or_default();
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let base = layers.split_first().and_then(|(first, rest)| {
        first
            .ancestors()
            .skip(1)
            .find(|dir| dir.parent().is_some() && rest.iter().all(|l| l.starts_with(dir)))
    });
    let short: Vec<String> = layers
        .iter()
        .map(|layer| {
            base.and_then(|base| layer.strip_prefix(base).ok()).unwrap_or(layer).display().to_string()
        })
        .collect();
    let rest = options.iter().filter(|option| {
        !["lowerdir=", "upperdir=", "workdir="].iter().any(|p| option.starts_with(p))
            && *option != "ro"
            && *option != "rw"
    });
    let mut all = vec![format!("lowerdir={}", short.join(":"))];
    all.extend(rest.cloned());
    (base.map(Path::to_path_buf), all.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_named_relative_to_what_they_share() {
        let options =
            ["index=off", "lowerdir=/var/x/snapshots/3/fs:/var/x/snapshots/1/fs", "ro"].map(String::from);
        let (base, options) = overlay_options(&options);
        assert_eq!(base, Some("/var/x/snapshots".into()));
        assert_eq!(options, "lowerdir=3/fs:1/fs,index=off");
    }

    #[test]
    fn layers_that_share_nothing_keep_their_paths() {
        let (base, options) = overlay_options(&["lowerdir=/a/b:/c/d".to_owned()]);
        assert_eq!(base, None);
        assert_eq!(options, "lowerdir=/a/b:/c/d");
    }

    #[tokio::test]
    async fn accounts_are_read_without_leaving_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        std::fs::create_dir(&etc).unwrap();
        std::fs::write(dir.path().join("real"), "u:x:7:8::/:\n").unwrap();
        // Absolute inside the image; outside it names a file that is not there.
        std::os::unix::fs::symlink("/real", etc.join("passwd")).unwrap();
        std::os::unix::fs::symlink("/../../../../../../etc/hostname", etc.join("group")).unwrap();
        let bind = Mount {
            r#type: "bind".into(),
            source: dir.path().display().to_string(),
            options: vec!["ro".into(), "rbind".into()],
            ..Mount::default()
        };
        let stage = tempfile::tempdir().unwrap();
        let accounts = accounts(vec![bind], stage.path().into()).await.unwrap();
        assert_eq!(accounts, Accounts::parse("u:x:7:8::/:\n", ""));
        let left = std::fs::read_dir(stage.path()).unwrap().count();
        assert_eq!(left, 0, "the mount is not seen outside");
    }
}
