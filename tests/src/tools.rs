//! Where the programs are that the harness runs. `tests/prepare` has installed what was missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The directory of the build this program belongs to: `target/debug` or `target/release`.
pub fn build_dir() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("where am I?")?;
    let dir = exe.parent().context("an executable is in a directory")?;
    // Test binaries are in target/<profile>/deps.
    let dir = if dir.ends_with("deps") { dir.parent().unwrap_or(dir) } else { dir };
    Ok(dir.to_owned())
}

/// `target/`.
pub fn target_dir() -> Result<PathBuf> {
    Ok(build_dir()?.parent().context("target/<profile>")?.to_owned())
}

/// A binary of this workspace, built beforehand in the same profile.
pub fn own(name: &str) -> Result<PathBuf> {
    let path = build_dir()?.join(name);
    if !path.exists() {
        bail!("{} is not built: run `cargo build --workspace` first", path.display());
    }
    Ok(path)
}

/// A program of the machine.
pub fn find(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(extra)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
        .with_context(|| format!("{name} is not installed: run tests/prepare"))
}

/// Runs a command to its end; its standard output if it succeeded.
pub fn output(mut command: Command) -> Result<String> {
    let out = command.output().with_context(|| format!("{command:?}"))?;
    if !out.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&out.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// The kubectl to use: $KUBECTL, the one `tests/prepare` chose, or the first in PATH.
pub fn kubectl() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBECTL") {
        return Ok(path.into());
    }
    let chosen = target_dir()?.join("tools/kubectl");
    if chosen.exists() { Ok(chosen) } else { find("kubectl") }
}

/// Where the CNI plugins are.
pub fn cni_dir() -> Result<PathBuf> {
    ["/opt/cni/bin", "/usr/lib/cni"]
        .map(PathBuf::from)
        .into_iter()
        .find(|d| d.join("ptp").exists())
        .context("the CNI plugins are not installed: run tests/prepare")
}

/// Debian's docker-registry, installed or unpacked by `tests/prepare test`.
pub fn registry() -> Result<PathBuf> {
    let unpacked = target_dir()?.join("tools/docker-registry/usr/bin/docker-registry");
    if unpacked.exists() { Ok(unpacked) } else { find("docker-registry") }
}

/// The last lines of a file, for error messages.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = std::fs::read(path).map(|b| String::from_utf8_lossy(&b).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
