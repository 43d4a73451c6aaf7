//! `containerd.services.images.v1`

use api::grpc::images::images_client::ImagesClient;
use api::grpc::images::{
    CreateImageRequest, DeleteImageRequest, GetImageRequest, Image, ListImagesRequest, UpdateImageRequest,
};
use api::grpc::types::Descriptor;
use prost_types::Timestamp;
use tonic::Code;

use super::walk::{
    BAD_FILTERS, BROKEN, BROKEN_THERE, Difference, Side, There, ask, covers, differs, differs_in, in_lease,
    map, mask, within,
};

const DIFFERENCES: &[Difference] = &[
    differs_in(1, "delete with another target", There::Code(Code::Ok), "it has no target in the request"),
    differs("a label without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    differs("an annotation without a key", There::Code(Code::Unknown), "the same refusal, without a class"),
    BROKEN_THERE,
];

fn target(number: u64) -> Descriptor {
    Descriptor {
        media_type: "application/vnd.oci.image.manifest.v1+json".into(),
        digest: format!("sha256:{number:064x}"),
        size: 10,
        annotations: map(&[("origin", "here")]),
    }
}

fn image(name: &str) -> Image {
    Image { name: name.into(), target: Some(target(1)), ..Image::default() }
}

fn create(image: Image) -> CreateImageRequest {
    CreateImageRequest { image: Some(image), source_date_epoch: None }
}

fn get(name: &str) -> GetImageRequest {
    GetImageRequest { name: name.into() }
}

fn delete(name: &str) -> DeleteImageRequest {
    DeleteImageRequest { name: name.into(), ..DeleteImageRequest::default() }
}

#[test]
fn images_walked() {
    let methods = &["Images.Get", "Images.List", "Images.Create", "Images.Update", "Images.Delete"];
    covers(methods).walk(DIFFERENCES, async |side| {
        namespaces_are_asked_for(side).await;
        what_is_made_is_checked(side).await;
        masks_say_what_changes(side).await;
        filters_choose(side).await;
        what_is_deleted_is_gone(side).await;
    });
}

async fn namespaces_are_asked_for(side: &Side<'_>) {
    let mut images = ImagesClient::new(side.channel());
    let required = "namespace is required";
    let answer = images.get(within(None, get("a")));
    side.refused("get without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = images.list(within(None, ListImagesRequest::default()));
    side.refused("list without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = images.create(within(None, create(image("a"))));
    side.refused("create without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = images.delete(within(None, delete("a")));
    side.refused("delete without a namespace", answer, Code::FailedPrecondition, required).await;
    let answer = images.create(within(Some("../up"), create(image("a"))));
    side.refused("create in a namespace that is none", answer, Code::InvalidArgument, "../up").await;
    let long = "n".repeat(77);
    let answer = images.create(within(Some(&long), create(image("a"))));
    side.refused("create in a namespace with too long a name", answer, Code::InvalidArgument, &long).await;
}

async fn what_is_made_is_checked(side: &Side<'_>) {
    let mut images = ImagesClient::new(side.channel());
    let wrong_targets: &[(&'static str, Descriptor, &str)] = &[
        ("a target without a digest", Descriptor { digest: String::new(), ..target(1) }, ""),
        ("a target with no digest of a kind", Descriptor { digest: "sha256:12".into(), ..target(1) }, ""),
        ("a target with an unknown algorithm", Descriptor { digest: "md5:12".into(), ..target(1) }, ""),
        ("a target without bytes", Descriptor { size: 0, ..target(1) }, "arget.Size"),
        ("a target with fewer bytes than none", Descriptor { size: -1, ..target(1) }, ""),
        ("a target without a type", Descriptor { media_type: String::new(), ..target(1) }, "arget.MediaType"),
    ];
    for (case, target, words) in wrong_targets {
        let wrong = Image { target: Some(target.clone()), ..image("wrong") };
        side.refused(case, images.create(ask(create(wrong))), Code::InvalidArgument, words).await;
    }
    let answer = images.create(ask(create(image(""))));
    side.refused("an image without a name", answer, Code::InvalidArgument, "mage").await;
    // What is not there breaks 2.3 down.
    if side.is_ours() {
        let answer = images.create(ask(create(Image { target: None, ..image("a") })));
        side.refused("an image without a target", answer, Code::InvalidArgument, "").await;
        let answer = images.create(ask(CreateImageRequest::default()));
        side.refused("a creation of nothing", answer, Code::InvalidArgument, "image is required").await;
    }
    let long = Image { labels: map(&[("key", &"v".repeat(4094))]), ..image("a") };
    let answer = images.create(ask(create(long)));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;

    let keyless = Image { labels: map(&[("", "v")]), ..image("a") };
    let answer = images.create(ask(create(keyless)));
    side.refused("a label without a key", answer, Code::InvalidArgument, "key").await;
    let keyless = Descriptor { annotations: map(&[("", "v")]), ..target(1) };
    let answer = images.create(ask(create(Image { target: Some(keyless), ..image("a") })));
    side.refused("an annotation without a key", answer, Code::InvalidArgument, "key").await;

    let clock = Some(Timestamp { seconds: 1, nanos: 0 });
    let own_clock =
        Image { created_at: clock, labels: map(&[("kept", "yes"), ("none", "")]), ..image("first") };
    let made = side.ok("create", images.create(ask(create(own_clock)))).await.image.expect("an image");
    side.is("the time is the daemon's", made.created_at.is_some_and(|time| time.seconds > 1), true);
    let found = side.ok("get", images.get(ask(get("first")))).await.image.expect("an image");
    side.is("labels without a value are not kept", found.labels, map(&[("kept", "yes")]));
    side.is("the target is kept", found.target, Some(target(1)));
    let answer = images.create(ask(create(image("first"))));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "image \"first\"").await;
    let answer = images.get(within(Some("other"), get("first")));
    side.refused("an image of another namespace", answer, Code::NotFound, "image \"first\"").await;
    side.refused("get what is not there", images.get(ask(get("none"))), Code::NotFound, "image \"none\"")
        .await;
    side.refused("get without a name", images.get(ask(get(""))), Code::NotFound, "image \"\"").await;
    if side.is_modern() {
        // Only an image that may expire needs its lease.
        let labels = map(&[("containerd.io/gc.expire", "2100-01-01T00:00:00Z")]);
        let answer = images.create(in_lease("none", create(Image { labels, ..image("leaseless") })));
        side.refused("create in a lease that is not there", answer, Code::NotFound, "lease does not exist")
            .await;
        side.ok("create what needs none", images.create(in_lease("none", create(image("leaseless"))))).await;
        side.ok("delete it", images.delete(ask(delete("leaseless")))).await;
        let epoch = CreateImageRequest { source_date_epoch: clock, ..create(image("old")) };
        let made = side.ok("create at an epoch", images.create(ask(epoch))).await.image.expect("an image");
        side.is("the epoch is the time of both", (made.created_at, made.updated_at), (clock, clock));
        side.ok("delete the old one", images.delete(ask(delete("old")))).await;
    }
}

async fn masks_say_what_changes(side: &Side<'_>) {
    let mut images = ImagesClient::new(side.channel());
    let update = |image: Image, paths: Option<&[&str]>| {
        let update_mask = paths.and_then(mask);
        ask(UpdateImageRequest { image: Some(image), update_mask, ..UpdateImageRequest::default() })
    };
    let labelled = |labels: &[(&str, &str)]| Image { labels: map(labels), ..image("masked") };
    let first = labelled(&[("a", "1"), ("b.c/d", "2")]);
    let made = side.ok("create", images.create(ask(create(first)))).await.image.expect("an image");

    let one = update(labelled(&[("a", "9"), ("b.c/d", "9")]), Some(&["labels.b.c/d"]));
    let changed = side.ok("update one label", images.update(one)).await.image.expect("an image");
    side.is("one label changed", changed.labels, map(&[("a", "1"), ("b.c/d", "9")]));
    side.is("the time of making stays", changed.created_at == made.created_at, true);
    let gone = update(labelled(&[]), Some(&["labels.a"]));
    let changed = side.ok("update away a label", images.update(gone)).await.image.expect("an image");
    side.is("one label went", changed.labels, map(&[("b.c/d", "9")]));
    let all = update(labelled(&[("x", "1"), ("y", "")]), Some(&["labels"]));
    let changed = side.ok("update all labels", images.update(all)).await.image.expect("an image");
    side.is("all labels changed", changed.labels, map(&[("x", "1")]));

    let other = Image { target: Some(target(2)), ..labelled(&[("z", "1")]) };
    let changed = side.ok("update the target", images.update(update(other, Some(&["target"])))).await;
    let changed = changed.image.expect("an image");
    side.is("the target changed", changed.target, Some(target(2)));
    side.is("and no label did", changed.labels, map(&[("x", "1")]));
    let noted = Descriptor { annotations: map(&[("origin", "there"), ("new", "1")]), ..target(2) };
    let noted = Image { target: Some(noted), ..labelled(&[]) };
    let changed = side.ok("update a note", images.update(update(noted, Some(&["annotations.new"])))).await;
    let found = changed.image.and_then(|image| image.target).map(|target| target.annotations);
    side.is("one note came", found, Some(map(&[("origin", "here"), ("new", "1")])));
    let changed = side.ok("update all", images.update(update(labelled(&[("w", "1")]), None))).await;
    let changed = changed.image.expect("an image");
    side.is(
        "without a mask all changes",
        (changed.target, changed.labels),
        (Some(target(1)), map(&[("w", "1")])),
    );

    for path in ["name", "created_at", "target.size", "label", ""] {
        let answer = images.update(update(labelled(&[]), Some(&[path])));
        side.refused("update a field that does not change", answer, Code::InvalidArgument, "field on image")
            .await;
    }
    let answer = images.update(update(image("none"), None));
    side.refused("update what is not there", answer, Code::NotFound, "image \"none\"").await;
    let answer = images.update(update(image("none"), Some(&["labels"])));
    side.refused("update labels of what is not there", answer, Code::NotFound, "image \"none\"").await;
    let sizeless = Image { target: Some(Descriptor { size: 0, ..target(1) }), ..image("none") };
    let answer = images.update(update(sizeless, Some(&["target"])));
    side.refused("update to no target what is not there", answer, Code::NotFound, "image \"none\"").await;
    let digestless = Descriptor { digest: "sha256:12".into(), ..target(1) };
    let answer = images.update(update(Image { target: Some(digestless), ..image("none") }, None));
    side.refused("update to no digest what is not there", answer, Code::NotFound, "image \"none\"").await;
    let answer = images.update(update(image(""), None));
    side.refused("update without a name", answer, Code::InvalidArgument, "ame").await;
    if side.is_ours() {
        let answer = images.update(ask(UpdateImageRequest::default()));
        side.refused("update nothing", answer, Code::InvalidArgument, "image is required").await;
    }
    let sizeless = Image { target: Some(Descriptor { size: 0, ..target(1) }), ..labelled(&[]) };
    let answer = images.update(update(sizeless, Some(&["target"])));
    side.refused("update to a target without bytes", answer, Code::InvalidArgument, "arget.Size").await;
    side.ok("delete", images.delete(ask(delete("masked")))).await;
}

async fn filters_choose(side: &Side<'_>) {
    let mut images = ImagesClient::new(side.channel());
    let labelled = Image { labels: map(&[("tier", "gold"), ("a.b/c", "x,y")]), ..image("labelled") };
    let other =
        Image { target: Some(Descriptor { annotations: map(&[]), ..target(7) }), ..image("plain/name:1") };
    for image in [labelled, other] {
        side.ok("create", images.create(ask(create(image)))).await;
    }
    let digest = format!("target.digest==sha256:{:064x}", 7);
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["first", "labelled", "plain/name:1"]),
        (&[""], &["first", "labelled", "plain/name:1"]),
        (&["name==first"], &["first"]),
        (&["name==\"plain/name:1\""], &["plain/name:1"]),
        (&["name~=/^plain\\//"], &["plain/name:1"]),
        (&["name!=first"], &["labelled", "plain/name:1"]),
        (&["name==first", "name==labelled"], &["first", "labelled"]),
        (&["name==first,name==labelled"], &[]),
        (&["labels.tier"], &["labelled"]),
        (&["labels.tier!=gold"], &["first", "plain/name:1"]),
        (&["labels.\"a.b/c\"==\"x,y\""], &["labelled"]),
        (&[&digest], &["plain/name:1"]),
        (&["target.mediatype~=manifest"], &["first", "labelled", "plain/name:1"]),
        (&["annotations.origin==here"], &["first", "labelled"]),
        (&["nothing.of==this"], &[]),
        // What is not there is empty to expressions.
        (&["labels.tier~=/^$/"], &["first", "plain/name:1"]),
        (&["labels.tier~=/g?/,name!=first"], &["labelled", "plain/name:1"]),
        (&["nothing.of~=/.*/"], &["first", "labelled", "plain/name:1"]),
        // Expressions are Go's, and behind quotes the signs of its strings come first.
        (&["name~=[[p]lain"], &["plain/name:1"]),
        (&["name~=/[p&&x]lain/"], &["plain/name:1"]),
        (&["name~={|^first$"], &["first"]),
        (&[r"name~=\Qplain/\Ename"], &["plain/name:1"]),
        (&[r"name~=\bname\b"], &["plain/name:1"]),
        (&[r"name~=/\bname\b/"], &[]),
        (&[r"name~=/^\146i\x72st\u0024/"], &["first"]),
    ];
    for (filters, expected) in cases {
        let list = ListImagesRequest { filters: filters.iter().map(ToString::to_string).collect() };
        let found = side.ok("list", images.list(ask(list))).await.images;
        let found: Vec<String> = found.into_iter().map(|image| image.name).collect();
        side.is(
            "filters choose",
            (filters, found),
            (filters, expected.iter().map(ToString::to_string).collect::<Vec<_>>()),
        );
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let answer = images.list(ask(ListImagesRequest { filters: vec![(*filter).into()] }));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
    side.ok("delete", images.delete(ask(delete("labelled")))).await;
}

async fn what_is_deleted_is_gone(side: &Side<'_>) {
    let mut images = ImagesClient::new(side.channel());
    side.ok("create", images.create(ask(create(image("aimed"))))).await;
    let aimed = |number| DeleteImageRequest { target: Some(target(number)), ..delete("aimed") };
    let answer = images.delete(ask(aimed(3)));
    side.refused("delete with another target", answer, Code::NotFound, "image \"aimed\"").await;
    let nameless = |digest: &str| DeleteImageRequest {
        target: Some(Descriptor { digest: digest.into(), ..target(1) }),
        ..delete("aimed")
    };
    if side.is_modern() {
        let answer = images.delete(ask(nameless("no digest")));
        let words = "image \"aimed\" has target sha256:0000000000000000000000000000000000000000000000000000000000000001, not no digest";
        side.refused("delete with a target that is none", answer, Code::NotFound, words).await;
        side.ok("delete with its target", images.delete(ask(aimed(1)))).await;
        side.ok("create once more", images.create(ask(create(image("aimed"))))).await;
        side.ok("delete with a target without a digest", images.delete(ask(nameless("")))).await;
    }
    let answer = images.get(ask(get("aimed")));
    side.refused("get what was deleted", answer, Code::NotFound, "image \"aimed\"").await;
    let answer = images.delete(ask(delete("aimed")));
    side.refused("delete what is not there", answer, Code::NotFound, "image \"aimed\"").await;
    side.refused("delete without a name", images.delete(ask(delete(""))), Code::NotFound, "image \"\"").await;
    let answer = images.delete(within(Some("other"), delete("first")));
    side.refused("delete in another namespace", answer, Code::NotFound, "image \"first\"").await;
    let at_once = DeleteImageRequest { sync: true, ..delete("first") };
    side.ok("delete and wait", images.delete(ask(at_once))).await;
}
