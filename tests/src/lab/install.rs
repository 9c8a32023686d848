//! docs/install.md, followed to the letter: its blocks of commands are what the lab runs. So are those of docs/operate.md,
//! by a scenario.
//!
//! A block says in its first line which machines it is for: ```` ```sh controller ````, ```` ```sh node1 node2 node3 ````.

use anyhow::{Result, bail};

/// The text itself.
pub const DOCUMENT: &str = include_str!("../../../docs/install.md");
/// What is done with an installation.
pub const OPERATION: &str = include_str!("../../../docs/operate.md");
/// As the text names the hosts.
pub const HOSTS: &str = "node1 node2 node3";

/// One block of commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The heading it is under.
    pub step: String,
    pub machines: Vec<String>,
    pub commands: String,
}

/// The blocks of a text that are for machines, in their order.
pub fn blocks(text: &str) -> Result<Vec<Block>> {
    let mut all = Vec::new();
    let (mut step, mut open) = (String::new(), None::<Block>);
    for line in text.lines() {
        match &mut open {
            Some(_) if line == "```" => all.extend(open.take().filter(|block| !block.machines.is_empty())),
            Some(block) => {
                block.commands.push_str(line);
                block.commands.push('\n');
            }
            None => {
                if let Some(heading) = line.strip_prefix("## ") {
                    step = heading.to_owned();
                } else if let Some(kind) = line.strip_prefix("```") {
                    let machines = kind.strip_prefix("sh ").unwrap_or_default();
                    let machines = machines.split_whitespace().map(str::to_owned).collect();
                    open = Some(Block { step: step.clone(), machines, commands: String::new() });
                }
            }
        }
    }
    if open.is_some() {
        bail!("a block of commands does not end");
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_name_their_machines() {
        let text =
            "## One\n```sh node1 node2\na\nb\n```\nText\n```toml\nx = 1\n```\n## Two\n```sh nfs\nc\n```\n";
        let block = |step: &str, machines: &[&str], commands: &str| Block {
            step: step.into(),
            machines: machines.iter().map(|m| (*m).to_owned()).collect(),
            commands: commands.into(),
        };
        let expected = [block("One", &["node1", "node2"], "a\nb\n"), block("Two", &["nfs"], "c\n")];
        assert_eq!(blocks(text).unwrap(), expected);
        assert!(blocks("```sh nfs\n").is_err());
    }

    #[test]
    fn the_documents_are_for_machines_of_the_lab() {
        let (installation, operation) = (blocks(DOCUMENT).unwrap(), blocks(OPERATION).unwrap());
        assert!(installation.len() > 5 && operation.len() > 5);
        for block in installation.into_iter().chain(operation) {
            for machine in block.machines {
                assert!(["controller", "nfs"].contains(&&*machine) || HOSTS.contains(&machine), "{machine}");
            }
        }
    }
}
