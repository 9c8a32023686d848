//! What the harness needs as processes of their own.

use std::net::{Shutdown, TcpListener, TcpStream};

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sched::{CloneFlags, setns};

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Listens inside a network namespace, on all its addresses, and forwards to the same port on this one's
    /// loopback.
    Forward {
        /// Process whose network namespace it is.
        #[arg(long)]
        namespace: i32,
        #[arg(long)]
        port: u16,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Command::Forward { namespace, port } => forward(namespace, port),
    }
}

fn forward(namespace: i32, port: u16) -> Result<()> {
    // A socket belongs to the namespace of the thread that made it: only this thread goes inside.
    let listener = std::thread::spawn(move || -> Result<TcpListener> {
        let file = std::fs::File::open(format!("/proc/{namespace}/ns/net")).context("the namespace")?;
        setns(file, CloneFlags::CLONE_NEWNET).context("entering it")?;
        TcpListener::bind(("0.0.0.0", port)).context("listening inside")
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the listening thread panicked"))??;
    for inside in listener.incoming() {
        let inside = inside?;
        std::thread::spawn(move || {
            // A refused connection is what the one inside shall see too: dropping does that.
            let Ok(outside) = TcpStream::connect(("127.0.0.1", port)) else { return };
            let _ = inside.set_nodelay(true);
            let _ = outside.set_nodelay(true);
            let (Ok(a), Ok(b)) = (inside.try_clone(), outside.try_clone()) else { return };
            let up = std::thread::spawn(move || pump(a, b));
            pump(outside, inside);
            let _ = up.join();
        });
    }
    Ok(())
}

/// Copies until either side ends, then lets the other side know.
fn pump(mut from: TcpStream, mut to: TcpStream) {
    let _ = std::io::copy(&mut from, &mut to);
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
