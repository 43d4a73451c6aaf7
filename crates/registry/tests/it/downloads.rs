//! Downloads by URL: along redirects, and complete or not at all.

use registry::Connections;
use types::{ErrorKind, Result};

use crate::server::{Reply, Server};

async fn fetch(address: &str) -> Result<Vec<u8>> {
    let mut download = Connections::default().download(address).await?;
    let mut all = Vec::new();
    while let Some(bytes) = download.next().await? {
        all.extend_from_slice(&bytes);
    }
    Ok(all)
}

#[tokio::test]
async fn a_file_comes_whole_or_not_at_all() {
    let server = Server::start(|request, _| match request.path.as_str() {
        "/file" => Reply::new(200, "the file"),
        "/old" => Reply::new(302, "").header("Location", "/file"),
        "/broken" => Reply::new(200, "the file").cut_after(3),
        "/closed" => Reply::new(403, "members only"),
        _ => Reply::new(404, ""),
    });
    let at = |path: &str| format!("http://{}{path}", server.host());
    for path in ["/file", "/old"] {
        assert_eq!(fetch(&at(path)).await.unwrap(), b"the file", "{path}");
    }
    for (path, kind, words) in [
        ("/broken", ErrorKind::Unavailable, "broke off"),
        ("/closed", ErrorKind::PermissionDenied, "members only"),
        ("/none", ErrorKind::NotFound, "/none"),
    ] {
        let error = fetch(&at(path)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{path}: {}", error.chain());
        assert!(error.chain().contains(words), "{path}: {}", error.chain());
    }
    for address in ["ftp://r.test/file", "file:///etc/passwd", "https://", "http://u:p@127.0.0.1/file"] {
        let error = fetch(address).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{address}: {}", error.chain());
    }
    assert!(server.seen().iter().all(|request| request.header("authorization").is_none()));
}
