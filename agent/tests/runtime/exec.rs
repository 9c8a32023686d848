//! Processes run beside a container's own: probes, and what kubectl exec asks for.

use std::time::Duration;

use berth_agent::runtime::{CaptureLimits, ContainerSpec, ExecSpec, RuntimeError};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::host::{Host, Pod, on_a_host};

async fn sleeper<'a>(
    host: &'a Host,
    image: &std::sync::Arc<berth_agent::runtime::Image>,
) -> (Pod<'a>, ContainerSpec) {
    let pod = host.pod("exec").await;
    let mut spec = pod.container("main", image, "sleep 1000");
    spec.env = vec![("OWN".into(), "container".into())];
    host.runtime.create(&spec).await.unwrap();
    host.runtime.start(&spec.id).await.unwrap();
    (pod, spec)
}

async fn end(host: &Host, pod: Pod<'_>, spec: &ContainerSpec) {
    host.runtime.remove(&spec.id).await.unwrap();
    pod.end().await;
    let fifos = std::fs::read_dir(host.dir.path().join("exec")).unwrap().count();
    assert_eq!(fifos, 0, "no FIFO is left");
    assert_eq!(host.leftovers(), Vec::<String>::new());
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(String::from).to_vec()
}

#[test]
fn a_probe_gets_exit_code_and_bounded_output() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let limits = CaptureLimits { timeout: Duration::from_secs(20), output: 10_000 };
        let run =
            async |script: &str| host.runtime.exec_captured(&spec.id, &shell(script), limits).await.unwrap();

        let good = run("echo $OWN; echo two >&2").await;
        let said = String::from_utf8(good.output).unwrap();
        assert!(
            good.exit_code == Some(0) && said.contains("container\n") && said.contains("two\n"),
            "{said}"
        );
        assert_eq!(run("exit 9").await.exit_code, Some(9));
        let much = run("yes | head -c 1000000; exit 1").await;
        assert_eq!((much.exit_code, much.output.len()), (Some(1), 10_000));
        // A child that keeps the pipe is not waited for.
        let begun = Instant::now();
        assert_eq!(run("sleep 100 & exit 4").await.exit_code, Some(4));
        assert!(begun.elapsed() < Duration::from_secs(15));

        let missing = host.runtime.exec_captured(&spec.id, &["/nope".into()], limits).await;
        assert!(
            matches!(&missing, Err(RuntimeError::Failed { message, .. }) if message.contains("/nope")),
            "{missing:?}"
        );
        let gone = host.runtime.exec_captured("no-such-container", &["true".into()], limits).await;
        assert!(matches!(&gone, Err(RuntimeError::NotFound(_))), "{gone:?}");
        end(&host, pod, &spec).await;
    });
}

#[test]
fn a_probe_ends_at_its_deadline() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let limits = CaptureLimits { timeout: Duration::from_millis(300), output: 100 };
        let begun = Instant::now();
        let command = ["sleep", "1000"].map(String::from);
        let late = host.runtime.exec_captured(&spec.id, &command, limits).await.unwrap();
        assert_eq!(late.exit_code, None);
        assert!(begun.elapsed() < Duration::from_secs(10));
        let still = host.containerd.ctr(&["-n", "berth", "tasks", "ps", &spec.id]);
        assert_eq!(still.lines().count(), 2, "only the container's own process is left: {still}");
        end(&host, pod, &spec).await;
    });
}

#[test]
fn stdin_reaches_the_process_and_so_does_its_end() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let exec = ExecSpec {
            command: shell("cat; echo done >&2; exit 5"),
            stdin: true,
            stdout: true,
            stderr: true,
            ..ExecSpec::default()
        };
        let mut exec = host.runtime.exec(&spec.id, exec).await.unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        // More than all the pipes on the way hold together.
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let feed = sent.clone();
        let control = exec.control.clone();
        let writer = tokio::spawn(async move {
            stdin.write_all(&feed).await.unwrap();
            drop(stdin);
            control.close_stdin().await.unwrap();
        });
        let mut got = Vec::new();
        exec.stdout.take().unwrap().read_to_end(&mut got).await.unwrap();
        assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
        writer.await.unwrap();
        assert_eq!(exec.control.wait().await.unwrap().code, 5);
        let mut errors = String::new();
        exec.stderr.take().unwrap().read_to_string(&mut errors).await.unwrap();
        assert_eq!(errors, "done\n");
        drop(exec);
        end(&host, pod, &spec).await;
    });
}

#[test]
fn a_process_that_does_not_read_breaks_the_pipe() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let exec = ExecSpec { command: shell("sleep 0.2"), stdin: true, ..ExecSpec::default() };
        let mut exec = host.runtime.exec(&spec.id, exec).await.unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        let block = vec![0u8; 65536];
        let broken = async { while stdin.write_all(&block).await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(20), broken).await.expect("writing ends with the process");
        assert_eq!(exec.control.wait().await.unwrap().code, 0);
        end(&host, pod, &spec).await;
    });
}

#[test]
fn a_terminal_has_a_size_and_takes_control_characters() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let exec = ExecSpec {
            command: shell("stty size; echo $TERM; cat; stty size"),
            stdin: true,
            tty: true,
            ..ExecSpec::default()
        };
        let mut exec = host.runtime.exec(&spec.id, exec).await.unwrap();
        exec.control.resize(123, 45).await.unwrap();
        let mut stdin = exec.stdin.take().unwrap();
        stdin.write_all(b"hello\n\x04").await.unwrap();
        let mut said = String::new();
        exec.stdout.take().unwrap().read_to_string(&mut said).await.unwrap();
        assert!(
            said.contains("xterm\r\n") && said.contains("hello\r\n") && said.ends_with("45 123\r\n"),
            "{said:?}"
        );
        assert!(exec.stderr.is_none());
        assert_eq!(exec.control.wait().await.unwrap().code, 0);
        drop((exec, stdin));
        end(&host, pod, &spec).await;
    });
}

#[test]
fn an_exec_that_is_dropped_is_forgotten_when_it_ends() {
    on_a_host(|| async {
        let (host, image) = Host::with_image().await;
        let (pod, spec) = sleeper(&host, &image).await;
        let exec = host
            .runtime
            .exec(&spec.id, ExecSpec { command: shell("sleep 1000"), stdout: true, ..ExecSpec::default() });
        let control = exec.await.unwrap().control.clone();
        control.kill(9).await.unwrap();
        assert_eq!(control.wait().await.unwrap().code, 137);
        control.kill(9).await.unwrap();
        end(&host, pod, &spec).await;
    });
}
