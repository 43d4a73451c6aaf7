//! Errors for too long messages in grpc-go's form, with `ResourceExhausted` and the text that clients of containerd
//! look for. tonic uses another code and text.

use http::{HeaderMap, Response};
use http_body_util::BodyExt;
use tonic::body::Body;
use tonic::{Code, Status};

/// Rewrites the status of a response, in its headers or trailers.
pub(crate) fn reworded(response: Response<Body>) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    reword(&mut head.headers);
    let body = body.map_frame(|mut frame| {
        if let Some(trailers) = frame.trailers_mut() {
            reword(trailers);
        }
        frame
    });
    Response::from_parts(head, Body::new(body))
}

fn reword(headers: &mut HeaderMap) {
    let Some(status) = Status::from_header_map(headers).filter(|status| status.code() == Code::OutOfRange)
    else {
        return;
    };
    let Some(words) = words(status.message()) else { return };
    let status = Status::with_metadata(Code::ResourceExhausted, words, status.metadata().clone());
    // Cannot fail: the status came from valid headers.
    let _ = status.add_header(headers);
}

/// grpc-go's text for a message of tonic; `None` for other messages.
fn words(text: &str) -> Option<String> {
    let begins = [
        ("Error, decoded message length too large: found ", "received message larger than max"),
        ("Error, encoded message length too large: found ", "trying to send message larger than max"),
    ];
    let (rest, said) = begins.iter().find_map(|(begin, said)| Some((text.strip_prefix(begin)?, said)))?;
    let (found, limit) = rest.strip_suffix(" bytes")?.split_once(" bytes, the limit is: ")?;
    Some(format!("grpc: {said} ({found} vs. {limit})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_errors_about_message_lengths_are_reworded() {
        let check =
            |text: &str, expected: Option<&str>| assert_eq!(words(text).as_deref(), expected, "{text}");
        check(
            "Error, decoded message length too large: found 17 bytes, the limit is: 16 bytes",
            Some("grpc: received message larger than max (17 vs. 16)"),
        );
        check(
            "Error, encoded message length too large: found 17 bytes, the limit is: 16 bytes",
            Some("grpc: trying to send message larger than max (17 vs. 16)"),
        );
        check("read of 17 bytes, the limit is: 16 bytes", None);
        check("Error, decoded message length too large: found 17 of 16", None);
    }

    #[test]
    fn the_status_is_reworded_and_what_is_beside_it_stays() {
        let mut headers = HeaderMap::new();
        let text = "Error, decoded message length too large: found 17 bytes, the limit is: 16 bytes";
        Status::out_of_range(text).add_header(&mut headers).unwrap();
        headers.insert("other", "1".parse().unwrap());
        reword(&mut headers);
        let status = Status::from_header_map(&headers).unwrap();
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("received message larger than max (17 vs. 16)"), "{status}");
        assert_eq!(
            (headers.get_all("grpc-status").iter().count(), headers["other"].as_bytes()),
            (1, &b"1"[..])
        );
        let mut plain = HeaderMap::new();
        Status::out_of_range("behind the end").add_header(&mut plain).unwrap();
        let before = plain.clone();
        reword(&mut plain);
        assert_eq!(plain, before);
    }
}
