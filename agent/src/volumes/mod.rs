//! Volumes: what they are on the host, made ready to be bind-mounted into containers.
//!
//! * `emptyDir`: `<pod>/volumes/<name>`, a tmpfs if it is kept in memory.
//! * files (ConfigMap, Secret): a directory replaced atomically as Kubernetes does; Secrets on a tmpfs.
//! * directory (class `local`): `<root>/<name>` itself, which outlives the pod.
//! * NFS: a directory of a share that is mounted once, bound to `<pod>/volumes/<name>` (see [`nfs`]).
//!
//! What this module must never do: follow a symbolic link that a container may have made, remove anything
//! below a mount, or delete a directory volume when a pod ends. Everything here but [`nfs`] blocks: callers run it
//! off the async threads, with a deadline.

mod beneath;
mod directory;
mod files;
mod mounts;
pub mod nfs;
mod ownership;
mod tmpfs;
pub mod worker;

use std::path::{Path, PathBuf};

use berth_proto::volume::Source;
use berth_proto::volume_operation::{Source as Operand, Verb};
use berth_proto::{PodSecurity, Volume, VolumeOperation};

pub use nfs::{Nfs, NfsConfig};

/// Why a volume cannot be had, in words for the user.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A path and what the system said of it.
    #[error("{what}: {cause}")]
    Io { what: String, cause: std::io::Error },
    /// It cannot be, as it stands.
    #[error("{0}")]
    Refused(String),
    /// Nothing comes from that server.
    #[error("NFS server {server} has not answered since {since}")]
    Silent { server: String, since: String },
}

impl VolumeError {
    pub(crate) fn io(what: impl Into<String>, cause: impl Into<std::io::Error>) -> Self {
        VolumeError::Io { what: what.into(), cause: cause.into() }
    }
}

/// Where this host's volumes are.
#[derive(Clone, Debug)]
pub struct Volumes {
    data_dir: PathBuf,
    nfs: Nfs,
}

impl Volumes {
    /// `data_dir`: the agent's.
    pub fn new(data_dir: impl Into<PathBuf>, nfs: NfsConfig) -> Self {
        Volumes { data_dir: data_dir.into(), nfs: Nfs::new(nfs) }
    }

    /// Where shares of NFS servers are.
    pub fn nfs(&self) -> &Nfs {
        &self.nfs
    }

    /// What of the volume is bind-mounted into the containers.
    pub fn source(&self, uid: &str, volume: &Volume) -> PathBuf {
        match &volume.source {
            Some(Source::Directory(source)) => self.root(&source.root).join(&source.name),
            _ => self.place(uid, &volume.name),
        }
    }

    /// Makes the volume ready. Idempotent: what is there is kept (files are brought up to date).
    pub fn mount(
        &self,
        uid: &str,
        volume: &Volume,
        security: &PodSecurity,
        complete: bool,
    ) -> Result<(), VolumeError> {
        if !volume.error.is_empty() {
            return Err(VolumeError::Refused(volume.error.clone()));
        }
        let place = self.place(uid, &volume.name);
        match &volume.source {
            Some(Source::EmptyDir(empty)) => {
                make_directory(&place)?;
                if empty.medium == "Memory" {
                    tmpfs::mount(&place, empty.size_limit, 0o777)?;
                }
                ownership::set_mode(&place, 0o777)?;
                ownership::apply(&place, security, false)
            }
            Some(Source::Files(files)) => {
                if !complete {
                    return match files::present(&place) {
                        true => Ok(()),
                        false => Err(VolumeError::Refused(
                            "its content is not kept on this host and comes again from the controller".into(),
                        )),
                    };
                }
                make_directory(&place)?;
                if files.secret {
                    tmpfs::mount(&place, 0, 0o755)?;
                }
                files::write(&place, files, security)
            }
            Some(Source::Directory(source)) => {
                let directory = directory::make(&self.root(&source.root), source)?;
                if volume.read_only {
                    return Ok(());
                }
                ownership::apply(&directory, security, false)
            }
            Some(Source::Nfs(_)) => {
                Err(VolumeError::Refused("a bug in the agent: not a volume of this host".into()))
            }
            None => Err(VolumeError::Refused("the assignment names no source for it".into())),
        }
    }

    /// Undoes [`Volumes::mount`]; the content of an emptyDir and of files goes, a directory volume stays.
    pub fn unmount(&self, uid: &str, name: &str) -> Result<(), VolumeError> {
        let place = self.place(uid, name);
        tmpfs::unmount(&place)?;
        remove_tree(&place)
    }

    /// Makes, archives or removes a directory volume.
    pub fn operate(&self, operation: &VolumeOperation) -> Result<(), VolumeError> {
        let source = match &operation.source {
            Some(Operand::Directory(source)) => source,
            Some(Operand::Nfs(_)) => {
                return Err(VolumeError::Refused("a bug in the agent: not a volume of this host".into()));
            }
            None => return Err(VolumeError::Refused("the operation names no volume".into())),
        };
        let root = self.root(&source.root);
        match operation.verb() {
            Verb::Make => directory::make(&root, source).map(|_| ()),
            Verb::Archive => directory::archive(&root, source),
            Verb::Remove => directory::remove(&root, source),
        }
    }

    /// Where a pod has a volume that is not a directory of this host.
    pub fn place(&self, uid: &str, name: &str) -> PathBuf {
        self.data_dir.join("pods").join(uid).join("volumes").join(name)
    }

    /// Where directory volumes are.
    pub fn root(&self, root: &str) -> PathBuf {
        if root.is_empty() { self.data_dir.join("volumes") } else { PathBuf::from(root) }
    }
}

fn make_directory(path: &Path) -> Result<(), VolumeError> {
    std::fs::create_dir_all(path).map_err(|cause| VolumeError::io(path.display().to_string(), cause))
}

/// Removes a directory and all in it; fine when it is not there. Symbolic links are removed, not followed, and
/// nothing is removed while something is mounted in it: that would be somebody's data.
pub fn remove_tree(path: &Path) -> Result<(), VolumeError> {
    if let Some(mounted) = mounts::Mounted::read()?.below(path).next() {
        return Err(VolumeError::Refused(format!(
            "{} is not removed: {} is still mounted",
            path.display(),
            mounted.point.display()
        )));
    }
    match std::fs::remove_dir_all(path) {
        Err(cause) if cause.kind() != std::io::ErrorKind::NotFound => {
            Err(VolumeError::io(format!("removing {}", path.display()), cause))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
