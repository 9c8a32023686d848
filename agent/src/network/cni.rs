//! A CNI runtime: finds the configuration, runs the plugins, and remembers with what, so that undoing uses the
//! same. (https://www.cni.dev/docs/spec/, versions 0.3.1 to 1.1.0.)

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Attached, Attachment, NetworkConfig, NetworkError};

/// Some plugins ask a server for an address.
const DEADLINE: Duration = Duration::from_secs(30);
const MAX_OUTPUT: u64 = 1 << 20;
const INTERFACE: &str = "eth0";

/// A network: its plugins in order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct NetworkList {
    name: String,
    version: String,
    plugins: Vec<Map<String, Value>>,
}

/// What was done for a pod; kept beside its namespaces. Without a result, the attempt did not get to its end.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    list: NetworkList,
    attachment: Attachment,
    result: Option<Value>,
}

impl Record {
    pub fn of(list: NetworkList, attachment: &Attachment) -> Record {
        Record { list, attachment: attachment.clone(), result: None }
    }

    /// None when there is none.
    pub async fn load(path: &Path) -> Result<Option<Record>, NetworkError> {
        match tokio::fs::read(path).await {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|e| NetworkError::Config(format!("{}: {e}", path.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(NetworkError::system(path.display().to_string(), error)),
        }
    }

    pub async fn store(&self, path: &Path) -> Result<(), NetworkError> {
        let failed = |e: io::Error| NetworkError::system(path.display().to_string(), e);
        let bytes = serde_json::to_vec(self).map_err(|e| failed(e.into()))?;
        let fresh = path.with_extension("new");
        tokio::fs::write(&fresh, bytes).await.map_err(failed)?;
        tokio::fs::rename(&fresh, path).await.map_err(failed)
    }

    /// What it came to, if it was for this and got to its end.
    pub fn attached(&self, attachment: &Attachment) -> Option<Attached> {
        let result = self.result.as_ref()?;
        (self.attachment == *attachment)
            .then(|| Attached { addresses: addresses(result), network: self.list.name.clone() })
    }

    /// ADD through all plugins.
    pub async fn add(&mut self, config: &NetworkConfig, netns: &Path) -> Result<Attached, NetworkError> {
        let mut result = None;
        for plugin in &self.list.plugins {
            let input = self.input(plugin, result.as_ref());
            let output = run(config, plugin, &input, "ADD", &self.environment(netns)).await?;
            // A plugin without output passes on what it got.
            if let Some(output) = output {
                result = Some(output);
            }
        }
        let result = result.unwrap_or_else(|| json!({}));
        let addresses = addresses(&result);
        self.result = Some(result);
        Ok(Attached { addresses, network: self.list.name.clone() })
    }

    /// DEL through all plugins, in reverse. All are tried; the first error is answered.
    pub async fn del(&self, config: &NetworkConfig, netns: Option<&Path>) -> Result<(), NetworkError> {
        let mut first = None;
        let environment = self.environment(netns.unwrap_or(Path::new("")));
        for plugin in self.list.plugins.iter().rev() {
            let input = self.input(plugin, self.result.as_ref());
            match run(config, plugin, &input, "DEL", &environment).await {
                Ok(_) => {}
                // A plugin that is not installed (any more) cannot undo anything: what it made goes with the
                // namespace, and the pod must not be held up for ever.
                Err(NetworkError::Config(cause)) => tracing::warn!(cause, "CNI DEL is left out"),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        first.map_or(Ok(()), Err)
    }

    fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Vec<u8> {
        let mut input = plugin.clone();
        input.insert("name".into(), json!(self.list.name));
        input.insert("cniVersion".into(), json!(self.list.version));
        // Offers of the runtime (port mappings and the like), of which there are none.
        input.remove("capabilities");
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        Value::Object(input).to_string().into_bytes()
    }

    fn environment(&self, netns: &Path) -> Vec<(&'static str, String)> {
        let Attachment { uid, namespace, name, .. } = &self.attachment;
        vec![
            ("CNI_CONTAINERID", uid.clone()),
            ("CNI_NETNS", netns.display().to_string()),
            ("CNI_IFNAME", INTERFACE.into()),
            (
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};\
                     K8S_POD_INFRA_CONTAINER_ID={uid};K8S_POD_UID={uid}"
                ),
            ),
        ]
    }
}

/// The operator's network if there is one, else our own.
pub(super) async fn choose(
    config: &NetworkConfig,
    attachment: &Attachment,
    mtu: Option<u32>,
) -> Result<NetworkList, NetworkError> {
    match operators(&config.cni_conf_dir).await? {
        Some(list) => Ok(list),
        None => Ok(embedded(attachment, mtu)),
    }
}

/// The operator's configuration that counts: the first by file name. Blocks.
pub fn operators_file(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut files = Vec::new();
    match std::fs::read_dir(dir) {
        Ok(entries) => {
            for entry in entries {
                files.push(entry?.path());
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let counts =
        |path: &PathBuf| path.extension().is_some_and(|e| e == "conf" || e == "conflist" || e == "json");
    Ok(files.into_iter().filter(counts).min())
}

pub(super) async fn operators(dir: &Path) -> Result<Option<NetworkList>, NetworkError> {
    let failed = |e: io::Error| NetworkError::Config(format!("{}: {e}", dir.display()));
    let place = dir.to_owned();
    let found = tokio::task::spawn_blocking(move || operators_file(&place)).await;
    let Some(first) = found.unwrap_or_else(|panic| Err(io::Error::other(panic))).map_err(failed)? else {
        return Ok(None);
    };
    let text = tokio::fs::read(&first)
        .await
        .map_err(|e| NetworkError::Config(format!("{}: {e}", first.display())))?;
    parse(&text).map(Some).map_err(|message| NetworkError::Config(format!("{}: {message}", first.display())))
}

fn parse(text: &[u8]) -> Result<NetworkList, String> {
    let value: Value = serde_json::from_slice(text).map_err(|e| e.to_string())?;
    let Value::Object(object) = value else { return Err("not an object".into()) };
    let word = |name: &str| object.get(name).and_then(Value::as_str).map(str::to_owned);
    let name = word("name").filter(|name| !name.is_empty()).ok_or("it has no name")?;
    let version = word("cniVersion").unwrap_or_else(|| "0.3.1".into());
    let plugins = match object.get("plugins") {
        Some(Value::Array(plugins)) => plugins
            .iter()
            .map(|plugin| plugin.as_object().cloned().ok_or("a plugin is not an object"))
            .collect::<Result<Vec<_>, _>>()?,
        Some(_) => return Err("plugins is not a list".into()),
        None => vec![object.clone()],
    };
    if plugins.is_empty() {
        return Err("it has no plugins".into());
    }
    if plugins.iter().any(|plugin| kind(plugin).is_none()) {
        return Err("a plugin has no type, or one that is no file name".into());
    }
    Ok(NetworkList { name, version, plugins })
}

/// A plugin's type: the name of its binary, and never a path.
fn kind(plugin: &Map<String, Value>) -> Option<&str> {
    let kind = plugin.get("type")?.as_str()?;
    (!kind.is_empty() && !kind.contains('/') && kind != "." && kind != "..").then_some(kind)
}

/// `ptp` with `static` addresses: routed, no bridge, no masquerade; packets no larger than what reaches every
/// other host, if that is known.
pub(super) fn embedded(attachment: &Attachment, mtu: Option<u32>) -> NetworkList {
    let addresses: Vec<Value> = attachment
        .addresses
        .iter()
        .map(|address| {
            match attachment.gateway.filter(|gateway| gateway.is_ipv6() == address.contains(':')) {
                Some(gateway) => json!({"address": address, "gateway": gateway.to_string()}),
                None => json!({"address": address}),
            }
        })
        .collect();
    let has = |v6: bool| attachment.addresses.iter().any(|address| address.contains(':') == v6);
    let mut routes = Vec::new();
    if has(false) {
        routes.push(json!({"dst": "0.0.0.0/0"}));
    }
    if has(true) {
        routes.push(json!({"dst": "::/0"}));
    }
    let mut plugin = json!({
        "type": "ptp",
        "ipMasq": false,
        "ipam": {"type": "static", "addresses": addresses, "routes": routes},
    });
    if let Some(mtu) = mtu {
        plugin["mtu"] = json!(mtu);
    }
    let plugin = plugin.as_object().cloned().unwrap_or_default();
    // The newest that plugins of all living distributions speak.
    NetworkList { name: "berth".into(), version: "0.4.0".into(), plugins: vec![plugin] }
}

/// The plugins of a network that are not there, by type.
pub(super) async fn missing(config: &NetworkConfig, list: &NetworkList) -> Vec<String> {
    let mut missing = Vec::new();
    for plugin in &list.plugins {
        let ipam = plugin.get("ipam").and_then(Value::as_object).and_then(kind);
        for kind in kind(plugin).into_iter().chain(ipam) {
            if find(config, kind).await.is_none() {
                missing.push(kind.to_owned());
            }
        }
    }
    missing
}

async fn find(config: &NetworkConfig, kind: &str) -> Option<PathBuf> {
    for dir in &config.cni_bin_dirs {
        let path = dir.join(kind);
        if tokio::fs::metadata(&path).await.is_ok_and(|meta| meta.is_file()) {
            return Some(path);
        }
    }
    None
}

/// Addresses of our interface in a result of any version (they are in `ips`; interfaces of the host have none).
fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    let written = ips.into_iter().flatten().filter_map(|ip| ip.get("address").and_then(Value::as_str));
    written.filter_map(|address| address.split('/').next()?.parse().ok()).collect()
}

async fn run(
    config: &NetworkConfig,
    plugin: &Map<String, Value>,
    input: &[u8],
    command: &'static str,
    environment: &[(&'static str, String)],
) -> Result<Option<Value>, NetworkError> {
    let kind = kind(plugin).ok_or_else(|| NetworkError::Config("a plugin has no type".into()))?;
    let failed = |message: String| NetworkError::Plugin { plugin: kind.to_owned(), command, message };
    let dirs: Vec<String> = config.cni_bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let path = find(config, kind).await.ok_or_else(|| {
        NetworkError::Config(format!(
            "plugin {kind:?} is not in {}: install containernetworking-plugins",
            dirs.join(", ")
        ))
    })?;
    let mut child = tokio::process::Command::new(&path)
        .envs(environment.iter().map(|(name, value)| (*name, value)))
        .env("CNI_COMMAND", command)
        .env("CNI_PATH", dirs.join(":"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(format!("{}: {e}", path.display())))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let feed = async {
            if let Some(mut stdin) = stdin {
                // One that does not read its input says why in its answer.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(feed, all(stdout), all(stderr));
        (child.wait().await, stdout, stderr)
    };
    let (status, stdout, stderr) = tokio::time::timeout(DEADLINE, work).await.map_err(|_| {
        NetworkError::Timeout { plugin: kind.to_owned(), command, seconds: DEADLINE.as_secs() }
    })?;
    let status = status.map_err(|e| failed(e.to_string()))?;
    if !status.success() {
        return Err(failed(complaint(&stdout, &stderr, &status.to_string())));
    }
    if command == "DEL" || stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    serde_json::from_slice(&stdout).map(Some).map_err(|e| failed(format!("its result is no JSON: {e}")))
}

async fn all(source: Option<impl tokio::io::AsyncRead + Unpin>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(source) = source {
        // What was read before an error is still worth having.
        let _ = source.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    bytes
}

/// What a plugin says went wrong: its error object, or whatever it wrote.
fn complaint(stdout: &[u8], stderr: &[u8], status: &str) -> String {
    if let Ok(error) = serde_json::from_slice::<Value>(stdout) {
        let word = |name: &str| error.get(name).and_then(Value::as_str).filter(|word| !word.is_empty());
        if let Some(message) = word("msg") {
            return match word("details") {
                Some(details) => format!("{message}: {details}"),
                None => message.to_owned(),
            };
        }
    }
    let text = [stderr, stdout].into_iter().map(|text| String::from_utf8_lossy(text).trim().to_owned());
    text.into_iter().find(|text| !text.is_empty()).unwrap_or_else(|| status.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            uid: "u1".into(),
            namespace: "ns".into(),
            name: "web-0".into(),
            addresses: vec!["10.42.3.7/24".into()],
            gateway: Some("10.42.3.1".parse().unwrap()),
        }
    }

    #[test]
    fn our_own_network_is_routed_and_not_masqueraded() {
        let list = embedded(&attachment(), None);
        let plugin = &list.plugins[0];
        assert_eq!((plugin["type"].as_str(), plugin["ipMasq"].as_bool()), (Some("ptp"), Some(false)));
        assert_eq!(
            plugin["ipam"],
            json!({"type": "static", "addresses": [{"address": "10.42.3.7/24", "gateway": "10.42.3.1"}],
                "routes": [{"dst": "0.0.0.0/0"}]})
        );
        assert_eq!(plugin.get("mtu"), None);
        assert_eq!(embedded(&attachment(), Some(1450)).plugins[0]["mtu"], json!(1450));
    }

    #[test]
    fn each_family_has_its_own_default_route() {
        let mut both = attachment();
        both.addresses.push("fd00::7/64".into());
        let ipam = &embedded(&both, None).plugins[0]["ipam"];
        assert_eq!(ipam["routes"].as_array().unwrap().len(), 2);
        assert_eq!(
            ipam["addresses"][1],
            json!({"address": "fd00::7/64"}),
            "the gateway is of the other family"
        );
    }

    #[test]
    fn both_forms_of_configuration_are_read() {
        let one = parse(br#"{"cniVersion":"1.0.0","name":"n","type":"bridge"}"#).unwrap();
        assert_eq!((one.version.as_str(), one.plugins.len()), ("1.0.0", 1));
        let list = parse(br#"{"name":"n","plugins":[{"type":"a"},{"type":"b"}]}"#).unwrap();
        assert_eq!((list.version.as_str(), list.plugins.len()), ("0.3.1", 2));
    }

    #[test]
    fn a_broken_configuration_says_what_is_wrong() {
        for (text, part) in [
            ("x", "expected"),
            ("[]", "object"),
            (r#"{"type":"a"}"#, "no name"),
            (r#"{"name":"n"}"#, "no type"),
            (r#"{"name":"n","plugins":[]}"#, "no plugins"),
            (r#"{"name":"n","type":"../../bin/sh"}"#, "no file name"),
        ] {
            let message = parse(text.as_bytes()).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn addresses_are_found_in_results_of_all_versions() {
        let old = json!({"cniVersion": "0.4.0", "ips": [{"version": "4", "address": "10.0.0.2/24", "interface": 1}]});
        let new =
            json!({"cniVersion": "1.0.0", "ips": [{"address": "10.0.0.2/24"}, {"address": "fd00::2/64"}]});
        assert_eq!(addresses(&old), ["10.0.0.2".parse::<IpAddr>().unwrap()]);
        assert_eq!(addresses(&new).len(), 2);
        assert!(addresses(&json!({})).is_empty());
    }

    #[test]
    fn a_plugins_own_words_are_passed_on() {
        let said = br#"{"cniVersion":"0.4.0","code":999,"msg":"no address","details":"pool is empty"}"#;
        assert_eq!(complaint(said, b"", "exit status: 1"), "no address: pool is empty");
        assert_eq!(complaint(b"", b"panic: boom\n", "exit status: 2"), "panic: boom");
        assert_eq!(complaint(b"", b"", "signal: 9"), "signal: 9");
    }

    /// A plugin of shell: writes what it was asked into a file.
    fn script(dir: &Path, name: &str, body: &str) {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(dir: &Path) -> NetworkConfig {
        NetworkConfig { run_dir: dir.into(), cni_conf_dir: dir.join("net.d"), cni_bin_dirs: vec![dir.into()] }
    }

    #[tokio::test]
    async fn a_chain_hands_each_result_on_and_is_undone_in_reverse() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let note =
            format!("cat > {0}/$CNI_COMMAND.$1; echo \"$CNI_COMMAND $1\" >> {0}/log", dir.path().display());
        script(
            dir.path(),
            "first",
            &format!("set -- first; {note}; echo '{{\"ips\":[{{\"address\":\"10.9.0.2/16\"}}]}}'"),
        );
        script(dir.path(), "second", &format!("set -- second; {note}"));
        let list =
            parse(br#"{"name":"n","cniVersion":"1.0.0","plugins":[{"type":"first"},{"type":"second"}]}"#)
                .unwrap();
        let config = config(dir.path());
        let mut record = Record::of(list, &attachment());
        let attached = record.add(&config, Path::new("/run/ns")).await.unwrap();
        assert_eq!(attached.addresses, ["10.9.0.2".parse::<IpAddr>().unwrap()]);
        let second: Value =
            serde_json::from_slice(&std::fs::read(dir.path().join("ADD.second")).unwrap()).unwrap();
        assert_eq!(second["prevResult"]["ips"][0]["address"], "10.9.0.2/16");
        assert_eq!(second["name"], "n");

        let path = dir.path().join("cni.json");
        record.store(&path).await.unwrap();
        let again = Record::load(&path).await.unwrap().unwrap();
        assert_eq!(again.attached(&attachment()), Some(attached));
        assert_eq!(again.attached(&Attachment { name: "web-1".into(), ..attachment() }), None);
        again.del(&config, None).await.unwrap();
        assert_eq!(std::fs::read_to_string(log).unwrap(), "ADD first\nADD second\nDEL second\nDEL first\n");
    }

    #[tokio::test]
    async fn what_a_failing_plugin_says_is_the_error() {
        let dir = tempfile::tempdir().unwrap();
        script(dir.path(), "bad", "echo '{\"code\":7,\"msg\":\"no\",\"details\":\"way\"}'; exit 1");
        let list = parse(br#"{"name":"n","type":"bad"}"#).unwrap();
        let error =
            Record::of(list, &attachment()).add(&config(dir.path()), Path::new("/x")).await.unwrap_err();
        assert_eq!(error.to_string(), "CNI plugin bad failed (ADD): no: way");
    }

    #[tokio::test]
    async fn a_missing_plugin_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert_eq!(missing(&config, &embedded(&attachment(), None)).await, ["ptp", "static"]);
        let mut record = Record::of(embedded(&attachment(), None), &attachment());
        let error = record.add(&config, Path::new("/x")).await.unwrap_err().to_string();
        assert!(error.contains("\"ptp\" is not in"), "{error}");
    }

    #[tokio::test]
    async fn the_first_file_of_the_operator_wins() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(dir.path());
        assert!(operators(&config.cni_conf_dir).await.unwrap().is_none());
        std::fs::create_dir(&config.cni_conf_dir).unwrap();
        std::fs::write(config.cni_conf_dir.join("20-b.conf"), r#"{"name":"b","type":"x"}"#).unwrap();
        std::fs::write(config.cni_conf_dir.join("10-a.conflist"), r#"{"name":"a","plugins":[{"type":"x"}]}"#)
            .unwrap();
        std::fs::write(config.cni_conf_dir.join("00-readme.txt"), "hello").unwrap();
        assert_eq!(choose(&config, &attachment(), None).await.unwrap().name, "a");
    }
}
