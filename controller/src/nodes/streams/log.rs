//! `pods/log`: a container's log as plain text, streamed.

use axum::body::Body;
use axum::response::Response;
use berth_controller_core::field::{FieldError, Path};
use berth_controller_core::status::Status;
use berth_proto::stream_request::Request;
use berth_proto::stream_up::Message as Up;
use berth_proto::{LogRequest, StreamUp};
use bytes::Bytes;
use futures_util::stream;
use jiff::Timestamp;

use super::{AgentStream, failure, target};
use crate::api::{Connection, Query};
use crate::nodes::Nodes;

/// Serves one request.
pub async fn serve(nodes: Nodes, connection: Connection) -> Result<Response, Status> {
    let pod = connection.object.value();
    let container = target::container(&pod, connection.query.get("container"))?;
    let request = request(&connection.query, Timestamp::now())?;
    let Some((node, life)) = nodes.life_of(&pod) else {
        // As Kubernetes: what has not been placed has said nothing yet.
        return text(Body::empty());
    };
    let mut stream = nodes.open_stream(&node, life, &container, Request::Log(request)).await?;
    // The first message tells whether there is a log at all.
    let first = match stream.next().await? {
        Up::Stdout(data) => Bytes::from(data),
        Up::End(end) => match failure(&end) {
            Some(status) => return Err(status),
            None => return text(Body::empty()),
        },
        Up::Open(_) | Up::Stderr(_) => Bytes::new(),
    };
    let rest = stream::unfold(Some(stream), |stream| async {
        let mut stream = stream?;
        match stream.next().await {
            Ok(Up::Stdout(data)) => Some((Ok(Bytes::from(data)), Some(stream))),
            Ok(Up::End(end)) => {
                let status = failure(&end)?;
                Some((Err(std::io::Error::other(status.message)), None))
            }
            Ok(Up::Open(_) | Up::Stderr(_)) => Some((Ok(Bytes::new()), Some(stream))),
            Err(status) => Some((Err(std::io::Error::other(status.message)), None)),
        }
    });
    let first = stream::once(async move { Ok::<Bytes, std::io::Error>(first) });
    text(Body::from_stream(futures_util::StreamExt::chain(first, rest)))
}

fn text(body: Body) -> Result<Response, Status> {
    Response::builder()
        .header(http::header::CONTENT_TYPE, "text/plain")
        .body(body)
        .map_err(|e| Status::internal(e.to_string()))
}

/// `PodLogOptions` out of the query.
fn request(query: &Query, now: Timestamp) -> Result<LogRequest, Status> {
    let mut errors = Vec::new();
    let mut at_least = |name: &str, least: i64| -> Result<Option<i64>, Status> {
        let number = query.number(name)?;
        if let Some(number) = number.filter(|n| *n < least) {
            let detail =
                if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            errors.push(FieldError::invalid(&Path::new(name), number, detail));
        }
        Ok(number)
    };
    let tail_lines = at_least("tailLines", 0)?;
    let since_seconds = at_least("sinceSeconds", 1)?;
    let limit_bytes = at_least("limitBytes", 1)?;
    let since_time = match query.get("sinceTime").filter(|t| !t.is_empty()) {
        None => None,
        Some(text) => Some(text.parse::<Timestamp>().map_err(|e| {
            Status::bad_request(format!("sinceTime: {text:?} is not a time in RFC 3339: {e}"))
        })?),
    };
    if since_seconds.is_some() && since_time.is_some() {
        let path = Path::new("sinceSeconds");
        errors.push(FieldError::forbidden(
            &path,
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        ));
    }
    if let Some(stream) = query.get("stream").filter(|s| !matches!(*s, "" | "All")) {
        errors.push(FieldError::not_supported(&Path::new("stream"), stream, &["All"]));
    }
    if !errors.is_empty() {
        return Err(Status::invalid("PodLogOptions", "", "", &errors));
    }
    let nanoseconds = |t: Timestamp| i64::try_from(t.as_nanosecond()).unwrap_or(0).max(1);
    let since =
        since_seconds.and_then(|s| now.checked_sub(jiff::SignedDuration::from_secs(s)).ok()).or(since_time);
    Ok(LogRequest {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: tail_lines.unwrap_or(-1),
        since_ns: since.map(nanoseconds).unwrap_or(0),
        limit_bytes: limit_bytes.unwrap_or(0),
    })
}

impl AgentStream {
    /// The next message; an Err if the agent is gone without a last word.
    pub(super) async fn next(&mut self) -> Result<Up, Status> {
        loop {
            match self.up.message().await {
                Ok(Some(StreamUp { message: Some(message) })) => return Ok(message),
                Ok(Some(StreamUp { message: None })) => {}
                Ok(None) => return Err(Status::internal("the node has ended the stream")),
                Err(status) => {
                    return Err(Status::internal(format!("the node has gone: {}", status.message())));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(query: &str) -> Result<LogRequest, Status> {
        request(&Query::parse(query), "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn options_are_read_as_kubernetes_names_them() {
        let all = parse("").unwrap();
        assert_eq!((all.follow, all.tail_lines, all.since_ns, all.limit_bytes), (false, -1, 0, 0));
        let some = parse("follow=true&tailLines=5&sinceSeconds=60&timestamps=true&limitBytes=9").unwrap();
        assert!(some.follow && some.timestamps && !some.previous);
        let since: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        assert_eq!((some.tail_lines, some.limit_bytes), (5, 9));
        assert_eq!(i128::from(some.since_ns), since.as_nanosecond());
        let at = parse("sinceTime=2026-01-01T00:00:00.5Z").unwrap();
        assert_eq!(i128::from(at.since_ns), since.as_nanosecond() + 500_000_000);
    }

    #[test]
    fn wrong_options_are_refused_with_their_name() {
        for (query, code, part) in [
            ("tailLines=-1", 422, "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", 422, "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceTime=yesterday", 400, "sinceTime"),
            ("sinceSeconds=1&sinceTime=2026-01-01T00:00:00Z", 422, "at most one of"),
            ("stream=Stderr", 422, "stream"),
        ] {
            let status = parse(query).unwrap_err();
            assert!(status.code == code && status.message.contains(part), "{query}: {status:?}");
        }
    }
}
