//! The images of the lab: a registry on our side of the network, which no machine has to fill.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{LAN, Lab, outside};
use crate::image::{self, Config};
use crate::{host, tools};

/// Where the images of the lab are to be had, in place of docker.io, which the machines cannot reach.
pub const PORT: u16 = 5000;

impl Lab {
    pub(super) fn start_registry(&self) -> Result<()> {
        let dir = self.dir.join("run");
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {LAN}.1:{PORT}}}\n",
            dir.join("registry").display()
        );
        std::fs::write(dir.join("registry.yml"), config)?;
        let mut registry = Command::new(tools::registry()?);
        registry.args(["serve", &dir.join("registry.yml").display().to_string()]);
        host::spawn_daemon(registry, &dir, "registry")
    }

    /// The image httpd of the tutorials.
    pub fn publish_web(&self) -> Result<()> {
        let archives = image::web(&images()?)?;
        let httpd = archives.iter().find(|path| path.ends_with("web-httpd.tar"));
        self.publish(httpd.context("the image httpd")?, "library/httpd", "latest")
    }

    /// Redis and PostgreSQL in one image, whose name is answered; kept until `lab/databases` changes.
    pub fn publish_databases(&self) -> Result<String> {
        let digest = Sha256::digest(std::fs::read("lab/databases")?);
        let tag = format!("{:02x}{:02x}{:02x}", digest[0], digest[1], digest[2]);
        let name = format!("databases-{tag}");
        let archive = image::kept(&self.dir.join("base"), &name, |root, out| {
            if !outside("lab/databases")?.arg(root).status()?.success() {
                bail!("lab/databases failed");
            }
            let config = Config {
                cmd: vec!["sh".into()],
                env: vec!["PATH=/usr/lib/postgresql/17/bin:/usr/bin".into()],
                ..Config::default()
            };
            image::archive(root, &["docker.io/library/databases:latest"], &config, out)
        })?;
        self.publish(&archive, "library/databases", &tag)?;
        Ok(format!("databases:{tag}"))
    }

    /// Lays an archive's image where the registry keeps what it was given.
    fn publish(&self, archive: &Path, repository: &str, tag: &str) -> Result<()> {
        let root = self.dir.join("run/registry/docker/registry/v2");
        let mut entries = BTreeMap::new();
        let mut tar = tar::Archive::new(std::fs::File::open(archive)?);
        for entry in tar.entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut data = Vec::new();
            entry.read_to_end(&mut data)?;
            entries.insert(name, data);
        }
        let index: Value = serde_json::from_slice(entries.get("index.json").context("no index")?)?;
        let manifest = index["manifests"][0]["digest"].as_str().context("no manifest")?;
        let repository = root.join("repositories").join(repository);
        for (name, data) in &entries {
            let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
            put(&root.join(format!("blobs/sha256/{}/{hex}/data", &hex[..2])), data)?;
            put(&repository.join(format!("_layers/sha256/{hex}/link")), format!("sha256:{hex}").as_bytes())?;
        }
        let hex = manifest.trim_start_matches("sha256:");
        for link in [
            format!("revisions/sha256/{hex}/link"),
            format!("tags/{tag}/current/link"),
            format!("tags/{tag}/index/sha256/{hex}/link"),
        ] {
            put(&repository.join("_manifests").join(link), manifest.as_bytes())?;
        }
        Ok(())
    }
}

/// The images that other tests use too.
fn images() -> Result<PathBuf> {
    Ok(tools::target_dir()?.join("images"))
}

fn put(path: &Path, data: &[u8]) -> Result<()> {
    std::fs::create_dir_all(path.parent().context("a file is in a directory")?)?;
    std::fs::write(path, data).with_context(|| path.display().to_string())
}
