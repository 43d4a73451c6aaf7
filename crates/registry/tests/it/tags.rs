//! Lists of tags: in pages, incomplete on mirrors, malformed, and endless.

use types::ErrorKind;

use crate::hosts::Configured;
use crate::server::{Reply, Server};

fn page(tags: &str) -> Reply {
    Reply::new(200, format!(r#"{{"name":"some/image","tags":{tags}}}"#))
}

#[tokio::test]
async fn the_tags_of_all_pages_are_listed_once() {
    let registry = Server::start(|request, before| match (request.path.as_str(), before) {
        ("/v2/some/image/tags/list", 0) => {
            page(r#"["1","2"]"#).header("Link", "</v2/some/image/tags/list?last=2>; rel=\"next\"")
        }
        ("/v2/some/image/tags/list?last=2", 1) => page(r#"["2","latest"]"#),
        _ => Reply::new(404, ""),
    });
    assert_eq!(crate::remote(&registry, None).tags().await.unwrap(), ["1", "2", "latest"]);
    let empty = Server::start(|_, _| page("null"));
    assert!(crate::remote(&empty, None).tags().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_mirror_is_asked_where_the_registry_does_not_answer() {
    let mirror = Server::start(|_, _| page(r#"["1"]"#));
    let configured = |own: &Server| {
        let text = format!("server = \"http://{}\"\n[host.\"http://{}\"]", own.host(), mirror.host());
        Configured::new(&text)
    };
    let own = Server::start(|_, _| page(r#"["1","2"]"#));
    assert_eq!(configured(&own).remote().tags().await.unwrap(), ["1", "2"]);
    assert_eq!(mirror.seen().len(), 0);
    let closed = Server::start(|_, _| Reply::new(403, ""));
    assert_eq!(configured(&closed).remote().tags().await.unwrap(), ["1"]);
}

#[tokio::test]
async fn a_malformed_list_of_tags_is_refused() {
    let with_digest = format!(r#"["1@sha256:{}"]"#, "0".repeat(64));
    for tags in [r#"["../x"]"#, &with_digest, r#"[""]"#, "{}"] {
        let own = tags.to_owned();
        let registry = Server::start(move |_, _| page(&own));
        let remote = Configured::new(&format!("server = \"http://{}\"", registry.host())).remote();
        let error = remote.tags().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DataLoss, "{tags}: {}", error.chain());
        assert!(error.chain().contains("list the tags of "), "{}", error.chain());
    }
    let endless = Server::start(|_, before| {
        let tags: Vec<String> = (0..5000).map(|at| format!("\"{before}-{at}\"")).collect();
        page(&format!("[{}]", tags.join(","))).header("Link", "<?last=x>; rel=\"next\"")
    });
    let remote = Configured::new(&format!("server = \"http://{}\"", endless.host())).remote();
    assert_eq!(remote.tags().await.unwrap_err().kind(), ErrorKind::ResourceExhausted);
    assert_eq!(endless.seen().len(), 4);
}
