//! The API over plain HTTP on loopback, through `kubectl proxy`: for what has to be timed without a process for
//! each request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kubectl::Kubectl;

const PATIENCE: Duration = Duration::from_secs(30);

/// Ends with this value.
pub struct Proxy {
    child: Child,
    address: String,
}

impl Proxy {
    pub fn start(kubectl: &Kubectl) -> Result<Proxy> {
        let mut command = kubectl.command();
        let mut child = command.args(["proxy", "--port=0"]).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("stdout")?;
        let mut proxy = Proxy { child, address: String::new() };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        // "Starting to serve on 127.0.0.1:40923"
        proxy.address = line.trim().rsplit(' ').next().context("kubectl proxy says nothing")?.to_owned();
        Ok(proxy)
    }

    /// Makes an object; what the API answered.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let mut stream = TcpStream::connect(&self.address).context("kubectl proxy")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let created = head.lines().next().is_some_and(|status| status.contains(" 201 "));
        if !created {
            bail!("POST {path}: {answer}");
        }
        serde_json::from_str(body).with_context(|| answer.clone())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
