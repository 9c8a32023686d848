//! The configuration file of a daemon: TOML, each of whose keys is a setting of the daemon's own type.
//!
//! That type is to refuse a key it does not know (`deny_unknown_fields`): a setting that is misspelt must not be
//! ignored.

use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

/// Why a daemon cannot start with what it was given.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("{path}: {error}", path = .path.display())]
    Read { path: PathBuf, error: io::Error },
    /// Not TOML, or not of that type.
    #[error("{path}: {reason}", path = .path.display())]
    Parse { path: PathBuf, reason: String },
    /// `what` names the flag, which is also the file's key.
    #[error("{what}: {reason}")]
    Invalid { what: String, reason: String },
}

impl ConfigError {
    pub fn invalid(what: impl Into<String>, reason: impl Into<String>) -> ConfigError {
        ConfigError::Invalid { what: what.into(), reason: reason.into() }
    }
}

/// Reads a configuration file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|error| ConfigError::Read { path: path.to_owned(), error })?;
    // The parser's words show the line and, for an unknown key, which ones there are.
    toml::from_str(&text).map_err(|e| ConfigError::Parse { path: path.to_owned(), reason: e.to_string() })
}

/// For tests: what is wrong with an example of a configuration file, which is to show every key of the type and of
/// its `tables` (`[[table]]`), set or commented out (`#key = value`, no blank behind the sign).
pub fn faults_of_example<T: DeserializeOwned>(example: &str, tables: &[&str]) -> Vec<String> {
    let set = |line: &str| match line.strip_prefix('#') {
        Some(setting) if !setting.starts_with(' ') => format!("{setting}\n"),
        _ => format!("{line}\n"),
    };
    let all: String = example.lines().map(set).collect();
    let fault = |text: &str| toml::from_str::<T>(text).err().map(|error| error.to_string());
    let mut faults: Vec<String> = [example, &all].into_iter().filter_map(fault).collect();
    let heads = std::iter::once(String::new()).chain(tables.iter().map(|table| format!("[[{table}]]\n")));
    for head in heads {
        // The parser's own words name all keys there are.
        let refused = fault(&format!("{head}no-such-key = 1")).unwrap_or_default();
        let Some((_, keys)) = refused.split_once("expected") else {
            faults.push(format!("a key that is not known is not refused with those there are: {refused}"));
            continue;
        };
        let missing = keys.split('`').skip(1).step_by(2).filter(|key| {
            !tables.contains(key) && !all.lines().any(|line| line.starts_with(&format!("{key} = ")))
        });
        faults.extend(missing.map(|key| format!("{key} is not explained")));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields, default)]
    struct Given {
        size: Option<u8>,
        shelf: Vec<Shelf>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Shelf {
        #[serde(rename = "books")]
        _books: u8,
    }

    #[test]
    fn a_file_that_cannot_be_read_or_understood_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.toml");
        let refused = read::<Given>(&path).unwrap_err().to_string();
        assert!(refused.contains("x.toml: No such file"), "{refused}");
        std::fs::write(&path, "size = 1\nsizes = 2").unwrap();
        let refused = read::<Given>(&path).unwrap_err().to_string();
        assert!(refused.contains("x.toml: ") && refused.contains("line 2"), "{refused}");
        assert!(refused.contains("unknown field `sizes`") && refused.contains("`size`"), "{refused}");
        std::fs::write(&path, "size = 1").unwrap();
        assert_eq!(read::<Given>(&path).unwrap(), Given { size: Some(1), shelf: Vec::new() });
    }

    #[test]
    fn an_example_that_says_too_little_or_what_is_not_so_is_found_out() {
        let faults = |example: &str| faults_of_example::<Given>(example, &["shelf"]);
        assert!(faults("# How big.\n#size = 1\n#[[shelf]]\n#books = 1").is_empty());
        assert_eq!(faults("size = 1"), ["books is not explained"]);
        assert_eq!(faults("# size = 1\n[[shelf]]\nbooks = 1"), ["size is not explained"]);
        assert!(faults("size = 1\n#[[shelf]]\n#books = -1")[0].contains("books = -1"));
    }
}
