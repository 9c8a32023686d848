//! As much of an HTTP client as probes need: one GET, its status, redirects on the same host followed.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use berth_proto::handler::HttpGet;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::{Scheme, dial, plain, url};
use crate::tls;

/// More than this of headers is no answer to a probe.
const HEADERS: usize = 64 << 10;
/// So much of a body is read, so that servers need not complain of a client gone.
const BODY: usize = 10 << 10;
const REDIRECTS: usize = 10;

/// The status code of the (last) answer, or what went wrong in the words the kubelet uses. A redirect to
/// another host counts as the answer itself, as it does there.
pub async fn get(get: &HttpGet, ip: &str, limit: Duration) -> Result<u16, String> {
    let mut current = get.clone();
    let shown = url(get, ip);
    let deadline = Instant::now() + limit;
    for _ in 0..=REDIRECTS {
        let left = deadline.saturating_duration_since(Instant::now());
        let answer = match timeout(left, once(&current, ip, left)).await {
            Ok(answer) => answer.map_err(|error| format!("Get \"{shown}\": {error}"))?,
            Err(_) => {
                return Err(format!("Get \"{shown}\": context deadline exceeded while awaiting headers"));
            }
        };
        if !matches!(answer.status, 301 | 302 | 303 | 307 | 308) {
            return Ok(answer.status);
        }
        match answer.location.and_then(|location| redirected(&current, ip, &location)) {
            Some(next) => current = next,
            None => return Ok(answer.status),
        }
    }
    Err(format!("Get \"{shown}\": stopped after {REDIRECTS} redirects"))
}

struct Answer {
    status: u16,
    location: Option<String>,
}

async fn once(get: &HttpGet, ip: &str, limit: Duration) -> Result<Answer, String> {
    let host = if get.host.is_empty() { ip } else { &get.host };
    let stream = dial(host, get.port, limit).await?;
    if get.is_https() {
        let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
        let mut stream =
            TlsConnector::from(unverified()?).connect(name, stream).await.map_err(|e| plain(&e))?;
        exchange(&mut stream, get, host).await
    } else {
        let mut stream = stream;
        exchange(&mut stream, get, host).await
    }
}

async fn exchange(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    get: &HttpGet,
    host: &str,
) -> Result<Answer, String> {
    let request = request(get, host);
    stream.write_all(request.as_bytes()).await.map_err(|e| plain(&e))?;
    stream.flush().await.map_err(|e| plain(&e))?;
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let read = stream.read(&mut chunk).await.map_err(|e| plain(&e))?;
        if read == 0 {
            return Err(if bytes.is_empty() { "EOF" } else { "unexpected EOF" }.to_owned());
        }
        bytes.extend_from_slice(&chunk[..read]);
        while let Some(end) =
            find(&bytes, b"\r\n\r\n").map(|at| at + 4).or_else(|| find(&bytes, b"\n\n").map(|at| at + 2))
        {
            let answer = parse(&bytes[..end])?;
            bytes.drain(..end);
            if answer.status >= 200 {
                let rest = BODY.saturating_sub(bytes.len());
                let drain = async {
                    let mut body = stream.take(rest as u64);
                    let mut sink = [0; 2048];
                    while body.read(&mut sink).await.is_ok_and(|read| read > 0) {}
                };
                // A server that keeps the connection open is not waited for.
                let _ = timeout(Duration::from_millis(100), drain).await;
                return Ok(answer);
            }
        }
        if bytes.len() > HEADERS {
            break Err("the answer's headers are too long".to_owned());
        }
    }
}

fn request(get: &HttpGet, host: &str) -> String {
    let clean = |text: &str| text.replace(['\r', '\n', '\0'], "");
    let slash = if get.path.starts_with('/') { "" } else { "/" };
    let mut request = format!("GET {slash}{} HTTP/1.1\r\n", clean(&get.path).replace(' ', "%20"));
    let given = |name: &str| get.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if !given("Host") {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        request.push_str(&format!("Host: {host}:{}\r\n", get.port));
    }
    if !given("User-Agent") {
        request.push_str("User-Agent: kube-probe/1.36\r\n");
    }
    if !given("Accept") {
        request.push_str("Accept: */*\r\n");
    }
    for header in &get.headers {
        request.push_str(&format!("{}: {}\r\n", clean(&header.name), clean(&header.value)));
    }
    request.push_str("Connection: close\r\n\r\n");
    request
}

fn parse(head: &[u8]) -> Result<Answer, String> {
    let head = String::from_utf8_lossy(head);
    let mut lines = head.lines();
    let first = lines.next().unwrap_or_default();
    let malformed = || format!("malformed HTTP response {first:?}");
    let mut words = first.split_whitespace();
    if !words.next().is_some_and(|version| version.starts_with("HTTP/")) {
        return Err(malformed());
    }
    let status = words.next().and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    let location = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("Location").then(|| value.trim().to_owned())
    });
    Ok(Answer { status, location })
}

/// The request a redirect leads to; none if it leads to another host.
fn redirected(from: &HttpGet, ip: &str, location: &str) -> Option<HttpGet> {
    let host = if from.host.is_empty() { ip } else { &from.host };
    let (scheme, rest) = match location.split_once("://") {
        Some((scheme, rest)) => (scheme.to_uppercase(), rest),
        None if location.starts_with("//") => (from.scheme().to_owned(), &location[2..]),
        None => {
            let path = if location.starts_with('/') {
                location.to_owned()
            } else {
                let base = from.path.rsplit_once('/').map_or("", |(base, _)| base);
                format!("{base}/{location}")
            };
            return Some(HttpGet { path, ..from.clone() });
        }
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, "/"),
    };
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, port.parse().ok()?),
        _ => (authority, if scheme == "HTTPS" { 443 } else { 80 }),
    };
    let same = name.trim_matches(['[', ']']).eq_ignore_ascii_case(host);
    same.then(|| HttpGet { scheme, port, path: path.to_owned(), ..from.clone() })
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// TLS that takes any certificate: a probe asks whether something answers, not who.
fn unverified() -> Result<Arc<ClientConfig>, String> {
    static CONFIG: OnceLock<Arc<ClientConfig>> = OnceLock::new();
    if let Some(config) = CONFIG.get() {
        return Ok(config.clone());
    }
    let config = tls::client(|_| Ok(())).map_err(|error| error.to_string())?;
    Ok(CONFIG.get_or_init(|| Arc::new(config)).clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_proto::handler::Header;
    use tokio::net::TcpListener;

    /// Answers each connection with the next of `answers`; gives what was asked.
    async fn server(answers: Vec<&'static str>) -> (u32, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        let serve = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while find(&request, b"\r\n\r\n").is_none() {
                    let mut chunk = [0; 1024];
                    let read = stream.read(&mut chunk).await.unwrap();
                    request.extend_from_slice(&chunk[..read]);
                }
                asked.push(String::from_utf8(request).unwrap());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (port, serve)
    }

    fn ask(port: u32, path: &str) -> HttpGet {
        HttpGet { port, path: path.into(), ..HttpGet::default() }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn the_status_and_the_headers_are_as_asked() {
        let (port, asked) = server(vec!["HTTP/1.1 204 No Content\r\n\r\n"]).await;
        let mut request = ask(port, "/ready?x=1");
        request.headers = vec![Header { name: "X-Probe".into(), value: "yes\r\nEvil: 1".into() }];
        assert_eq!(get(&request, "127.0.0.1", SECOND).await, Ok(204));
        let asked = asked.await.unwrap().remove(0);
        assert!(asked.starts_with("GET /ready?x=1 HTTP/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nX-Probe: yesEvil: 1\r\n"));
        assert!(asked.contains(&format!("\r\nHost: 127.0.0.1:{port}\r\n")));
    }

    #[tokio::test]
    async fn redirects_on_the_same_host_are_followed() {
        let (port, asked) = server(vec![
            "HTTP/1.1 302 Found\r\nLocation: /healthz\r\n\r\n",
            "HTTP/1.0 500 Oh\r\nContent-Length: 2\r\n\r\nno",
        ])
        .await;
        assert_eq!(get(&ask(port, ""), "127.0.0.1", SECOND).await, Ok(500));
        assert!(asked.await.unwrap()[1].starts_with("GET /healthz "));
    }

    #[tokio::test]
    async fn a_redirect_to_another_host_is_the_answer() {
        let (port, _) = server(vec!["HTTP/1.1 301 Moved\r\nLocation: https://example.org/\r\n\r\n"]).await;
        assert_eq!(get(&ask(port, "/"), "127.0.0.1", SECOND).await, Ok(301));
    }

    #[tokio::test]
    async fn what_goes_wrong_is_said_in_known_words() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port: u32 = listener.local_addr().unwrap().port().into();
        let silent = get(&ask(port, "/"), "127.0.0.1", Duration::from_millis(100)).await.unwrap_err();
        assert!(silent.contains("deadline exceeded"), "{silent}");
        drop(listener);
        let refused = get(&ask(port, "/"), "127.0.0.1", SECOND).await.unwrap_err();
        let expected = format!(
            "Get \"http://127.0.0.1:{port}/\": dial tcp 127.0.0.1:{port}: connect: connection refused"
        );
        assert_eq!(refused, expected);
        let (port, _) = server(vec!["SSH-2.0-OpenSSH\r\n\r\n"]).await;
        let other = get(&ask(port, "/"), "127.0.0.1", SECOND).await.unwrap_err();
        assert!(other.contains("malformed HTTP response"), "{other}");
    }

    #[tokio::test]
    async fn https_takes_any_certificate() {
        let key = rcgen::generate_simple_self_signed(vec!["whoever".to_owned()]).unwrap();
        let chain = vec![key.cert.der().clone()];
        let secret = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(chain, secret)
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port().into();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let mut stream = acceptor.accept(stream).await.unwrap();
            let mut chunk = [0; 1024];
            let _ = stream.read(&mut chunk).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            let _ = stream.shutdown().await;
        });
        let request = HttpGet { scheme: "HTTPS".into(), ..ask(port, "/") };
        assert_eq!(get(&request, "127.0.0.1", SECOND).await, Ok(200));
    }

    #[test]
    fn where_a_redirect_leads() {
        let from = HttpGet { port: 8080, path: "/a/b".into(), ..HttpGet::default() };
        let to = |location| {
            redirected(&from, "10.0.0.1", location).map(|get| (get.scheme().to_owned(), get.port, get.path))
        };
        assert_eq!(to("/c"), Some(("HTTP".into(), 8080, "/c".into())));
        assert_eq!(to("c"), Some(("HTTP".into(), 8080, "/a/c".into())));
        assert_eq!(to("https://10.0.0.1/x"), Some(("HTTPS".into(), 443, "/x".into())));
        assert_eq!(to("http://10.0.0.1:81"), Some(("HTTP".into(), 81, "/".into())));
        assert_eq!(to("http://10.0.0.2/"), None);
    }
}
