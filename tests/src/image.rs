//! Images without a registry: a directory of files becomes an OCI archive that `ctr images import` takes.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// What an image's configuration says (OCI image-spec `config`).
#[derive(Clone, Debug, Default)]
pub struct Config {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
}

/// Writes `root` as a one-layer image under each of `names` (full references) to the archive `out`.
pub fn archive(root: &Path, names: &[&str], config: &Config, out: &Path) -> Result<()> {
    let layer_path = out.with_extension("layer");
    {
        let mut layer = tar::Builder::new(File::create(&layer_path)?);
        layer.follow_symlinks(false);
        layer.mode(tar::HeaderMode::Deterministic);
        layer.append_dir_all(".", root).context("packing the root file system")?;
        layer.into_inner()?.flush()?;
    }
    let layer = std::fs::read(&layer_path)?;
    std::fs::remove_file(&layer_path)?;
    let layer_digest = digest(&layer);

    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => bail!("no image architecture is known for {other}"),
    };
    let mut inner = json!({"Entrypoint": config.entrypoint, "Cmd": config.cmd, "Env": config.env});
    if !config.working_dir.is_empty() {
        inner["WorkingDir"] = config.working_dir.clone().into();
    }
    if !config.stop_signal.is_empty() {
        inner["StopSignal"] = config.stop_signal.clone().into();
    }
    let image = serde_json::to_vec(&json!({
        "architecture": architecture, "os": "linux", "config": inner,
        "rootfs": {"type": "layers", "diff_ids": [layer_digest]},
        "history": [{"created_by": "berth tests"}],
    }))?;
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest(&image), "size": image.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer_digest, "size": layer.len()}],
    }))?;
    let entries: Vec<Value> = names
        .iter()
        .map(|name| {
            json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "digest": digest(&manifest), "size": manifest.len(),
                "annotations": {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": tag(name)},
            })
        })
        .collect();
    let index = serde_json::to_vec(&json!({"schemaVersion": 2, "manifests": entries}))?;

    let mut archive = tar::Builder::new(File::create(out)?);
    let mut add = |path: &str, data: &[u8]| -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, path, data)?;
        Ok(())
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &index)?;
    for blob in [&layer, &image, &manifest] {
        add(&format!("blobs/sha256/{}", digest(blob).trim_start_matches("sha256:")), blob)?;
    }
    archive.into_inner()?.flush()?;
    Ok(())
}

fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn tag(name: &str) -> &str {
    name.rsplit_once(':').map_or("latest", |(_, tag)| tag)
}

/// A root file system with a static busybox and all its applets.
pub fn busybox_root(root: &Path) -> Result<()> {
    for dir in ["bin", "etc", "tmp", "data", "var/data", "www", "root"] {
        std::fs::create_dir_all(root.join(dir))?;
    }
    let busybox = super::tools::find("busybox")?;
    std::fs::copy(&busybox, root.join("bin/busybox")).context("copying busybox")?;
    let applets = Command::new(&busybox).arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines() {
        let link = root.join("bin").join(applet);
        if !link.exists() {
            std::os::unix::fs::symlink("/bin/busybox", link)?;
        }
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/tmp:/bin/sh\n",
    )?;
    std::fs::write(root.join("etc/group"), "root:x:0:\nweb:x:1000:\nextra:x:2000:web\n")?;
    Ok(())
}

/// The image `docker.io/library/busybox:latest`, kept in `dir` between runs.
pub fn busybox(dir: &Path) -> Result<PathBuf> {
    kept(dir, "busybox", |root, out| {
        busybox_root(root)?;
        let config = Config { cmd: vec!["sh".into()], env: vec![PATH.into()], ..Config::default() };
        archive(root, &["docker.io/library/busybox:latest", "docker.io/library/busybox:2"], &config, out)
    })
}

/// A web server of busybox under the names `httpd`, `nginx` and `luksa/kubia-pet`: on port 80 (8080 for the
/// last) it serves the directory where the real image keeps its pages.
pub fn web(dir: &Path) -> Result<Vec<PathBuf>> {
    let kubia = kept(dir, "web", |root, out| {
        busybox_root(root)?;
        std::fs::create_dir_all(root.join("usr/share/nginx/html"))?;
        std::fs::create_dir_all(root.join("usr/local/apache2/htdocs"))?;
        let config = Config {
            entrypoint: ["/bin/busybox", "httpd", "-f", "-p"].map(String::from).into(),
            cmd: ["80", "-h", "/usr/local/apache2/htdocs"].map(String::from).into(),
            env: vec![PATH.into()],
            ..Config::default()
        };
        archive(root, &["docker.io/library/httpd:latest"], &config, &out.with_extension("httpd"))?;
        let nginx =
            Config { cmd: ["80", "-h", "/usr/share/nginx/html"].map(String::from).into(), ..config.clone() };
        archive(root, &["docker.io/library/nginx:latest"], &nginx, &out.with_extension("nginx"))?;
        let kubia = Config { cmd: ["8080", "-h", "/var/data"].map(String::from).into(), ..config };
        archive(root, &["docker.io/luksa/kubia-pet:latest"], &kubia, out)
    })?;
    Ok(vec![dir.join("web-httpd.tar"), dir.join("web-nginx.tar"), kubia])
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Redis out of the distribution's own package as `docker.io/library/redis` with the tags of the examples.
pub fn redis(dir: &Path) -> Result<PathBuf> {
    kept(dir, "redis", |root, out| {
        busybox_root(root)?;
        unpack(&["redis-server"], root)?;
        let config = Config {
            // As the official image: everything listens, data in /data.
            cmd: ["redis-server", "--protected-mode", "no", "--bind", "0.0.0.0"].map(String::from).into(),
            env: vec![PATH.into()],
            working_dir: "/data".into(),
            ..Config::default()
        };
        let names = [
            "docker.io/library/redis:5-alpine",
            "docker.io/library/redis:7",
            "docker.io/library/redis:latest",
        ];
        archive(root, &names, &config, out)
    })
}

/// etcd and etcdctl out of the distribution's own packages, as `docker.io/library/etcd:3`.
pub fn etcd(dir: &Path) -> Result<PathBuf> {
    kept(dir, "etcd", |root, out| {
        busybox_root(root)?;
        unpack(&["etcd-server", "etcd-client"], root)?;
        let config = Config {
            cmd: vec!["etcd".into()],
            env: vec![PATH.into(), "ETCDCTL_API=3".into()],
            ..Config::default()
        };
        archive(root, &["docker.io/library/etcd:3"], &config, out)
    })
}

/// A name server out of the distribution's own package, as `docker.io/library/dnsmasq:2`.
pub fn dnsmasq(dir: &Path) -> Result<PathBuf> {
    kept(dir, "dnsmasq", |root, out| {
        busybox_root(root)?;
        unpack(&["dnsmasq-base"], root)?;
        let config = Config { cmd: vec!["dnsmasq".into()], env: vec![PATH.into()], ..Config::default() };
        archive(root, &["docker.io/library/dnsmasq:2"], &config, out)
    })
}

/// Unpacks packages and the libraries they need into `root`.
fn unpack(names: &[&str], root: &Path) -> Result<()> {
    let debs = root.with_extension("debs");
    std::fs::create_dir_all(&debs)?;
    let packages = closure(names)?;
    let fetch = || -> Result<bool> {
        let mut download = Command::new("apt-get");
        download.arg("download").args(&packages).current_dir(&debs);
        Ok(download.output().context("apt-get download")?.status.success())
    };
    if !fetch()? {
        Command::new("apt-get").arg("update").output().context("apt-get update")?;
        if !fetch()? {
            bail!("cannot download the packages of {}: {}", names.join(", "), packages.join(" "));
        }
    }
    for deb in std::fs::read_dir(&debs)? {
        let done = Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(root).output()?;
        if !done.status.success() {
            bail!("unpacking: {}", String::from_utf8_lossy(&done.stderr));
        }
    }
    std::fs::remove_dir_all(&debs)?;
    for dir in ["usr/share/doc", "usr/share/man", "usr/share/locale", "lib/systemd", "usr/lib/systemd"] {
        let path = root.join(dir);
        if path.exists() {
            std::fs::remove_dir_all(path)?;
        }
    }
    // From Debian 13 on packages hold /usr/lib64 only, and the system has a link beside it; programs name the link.
    for dir in ["bin", "sbin", "lib", "lib64"] {
        if root.join("usr").join(dir).exists() && !root.join(dir).exists() {
            std::os::unix::fs::symlink(Path::new("usr").join(dir), root.join(dir))?;
        }
    }
    Ok(())
}

/// Packages, with what they depend on that is of the same program or a library (essential tools excepted:
/// busybox stands in for those).
fn closure(packages: &[&str]) -> Result<Vec<String>> {
    let programs: Vec<&str> = packages.iter().filter_map(|name| name.split('-').next()).collect();
    let out = Command::new("apt-cache")
        .args(["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"])
        .args(["--no-replaces", "--no-enhances"])
        .args(packages)
        .output()
        .context("apt-cache depends")?;
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let wanted = |p: &&str| {
        !p.starts_with([' ', '<', '|'])
            && (p.starts_with("lib")
                || p.starts_with("zlib")
                || programs.iter().any(|program| p.starts_with(program)))
            && !["libpam", "libdb5", "libselinux", "libsemanage", "libsepol", "libaudit"]
                .iter()
                .any(|x| p.starts_with(x))
    };
    let mut names: Vec<String> =
        text.lines().filter(wanted).map(|l| l.split(':').next().unwrap_or(l).to_owned()).collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        Command::new("apt-get").arg("update").output().context("apt-get update")?;
        bail!("apt does not know {}; its lists were just updated, try again", packages.join(", "));
    }
    Ok(names)
}

/// Makes `<dir>/<name>.tar` once: concurrent makers each make their own and the last rename wins.
pub fn kept(dir: &Path, name: &str, make: impl FnOnce(&Path, &Path) -> Result<()>) -> Result<PathBuf> {
    let path = dir.join(format!("{name}.tar"));
    if path.exists() {
        return Ok(path);
    }
    std::fs::create_dir_all(dir)?;
    let work = tempfile::tempdir_in(dir)?;
    let root = work.path().join("root");
    std::fs::create_dir_all(&root)?;
    make(&root, &work.path().join("image.tar")).with_context(|| format!("making the image {name}"))?;
    for entry in std::fs::read_dir(work.path())? {
        let entry = entry?;
        let file = entry.file_name();
        let Some(rest) = file.to_str().and_then(|f| f.strip_prefix("image.")) else { continue };
        let target = if rest == "tar" { path.clone() } else { dir.join(format!("{name}-{rest}.tar")) };
        std::fs::rename(entry.path(), target)?;
    }
    Ok(path)
}
