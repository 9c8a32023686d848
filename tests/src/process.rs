//! What a process takes of the machine.

use anyhow::{Context, Result};

/// Proportional set size, MiB.
pub fn pss_mib(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find(|l| l.starts_with("Pss:")).context("no Pss")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no Pss")?.parse()?;
    Ok(kib / 1024.0)
}

/// CPU seconds used so far, user and system.
pub fn cpu_seconds(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = text.rsplit(") ").next().context("stat")?;
    let fields: Vec<&str> = after.split(' ').collect();
    let ticks: f64 =
        fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?;
    // USER_HZ is 100 on every Linux this runs on.
    Ok(ticks / 100.0)
}
