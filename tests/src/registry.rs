//! A real registry on a host's loopback: Debian's docker-registry.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::host::{self, Host};
use crate::{tools, wait};

/// Where a host's registry listens, in the host's own network namespace.
pub const ADDRESS: &str = "127.0.0.1:5000";
const PORT: u16 = 5000;
pub const USER: &str = "sailor";
pub const PASSWORD: &str = "berth";
/// bcrypt of [`PASSWORD`], as docker-registry's htpasswd wants it.
const HASH: &str = "$2y$04$abcdefghijklmnopqrstuuSMffXuQG3uO/6Y4rItKWVIUNEP6McsC";

impl Host {
    /// Starts a registry; with `private` it wants [`USER`] and [`PASSWORD`].
    pub fn start_registry(&self, private: bool) -> Result<()> {
        let dir = self.dir.join("registry");
        std::fs::create_dir_all(&dir)?;
        let mut config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {ADDRESS}}}\n",
            dir.join("data").display()
        );
        if private {
            let passwords = dir.join("htpasswd");
            std::fs::write(&passwords, format!("{USER}:{HASH}\n"))?;
            config
                .push_str(&format!("auth: {{htpasswd: {{realm: tests, path: {}}}}}\n", passwords.display()));
        }
        let file = dir.join("config.yml");
        std::fs::write(&file, config)?;
        self.daemon("registry", &tools::registry()?, &["serve", &file.display().to_string()])?;
        wait::until_true("the registry", Duration::from_secs(20), || {
            if !host::running(&self.dir.join("registry.pid")) {
                bail!("the registry ended:\n{}", tools::tail(&self.dir.join("registry.log"), 10));
            }
            self.listens(PORT)
        })
    }

    /// Pushes an image that containerd holds under another name (`repository:tag` in the registry).
    pub fn push(&self, image: &str, name: &str) -> Result<()> {
        let target = format!("{ADDRESS}/{name}");
        let user = format!("{USER}:{PASSWORD}");
        self.ctr(&["images", "push", "--plain-http", "--user", &user, &target, image]).map(drop)
    }
}
