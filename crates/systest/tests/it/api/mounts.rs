//! `containerd.services.mounts.v1`: mounts that are activated ahead of their use. Not in containerd 1.6. What tasks and
//! leases do with them is tested in [`crate::mounts`].

use std::fs;

use api::grpc::mounts::mounts_client::MountsClient;
use api::grpc::mounts::{
    ActivateRequest, DeactivateRequest, InfoRequest, ListMessage, ListRequest, UpdateRequest,
};
use api::grpc::types::{ActivationInfo, Mount};
use testkit::is_root;
use tonic::Code;

use super::walk::{
    BAD_FILTERS, BROKEN, Difference, Entries, Side, There, all, ask, covers, differs_in, map, mask, within,
};
use crate::mounts::{is_mounted, mount, shown};
use crate::typed::code;

const NOT_FILTERED: &str = "it does not look at the filter";
const NOT_CHANGED: &str = "what was made is never changed";
const NO_CLASS: &str = "the same refusal, without a class";

const DIFFERENCES: &[Difference] = &[
    differs_in(2, "a name that is none", There::Code(Code::Unknown), NO_CLASS),
    differs_in(2, "an expression that is none", There::Code(Code::Unknown), NO_CLASS),
    differs_in(2, "a mount that is not before it", There::Code(Code::Unknown), NO_CLASS),
    differs_in(2, "what is not there cannot be mounted", There::Code(Code::Unknown), NO_CLASS),
    differs_in(
        2,
        "a label that is too long",
        There::Code(Code::Ok),
        "labels of mounts are not checked there",
    ),
    differs_in(
        2,
        "it is found as it was made",
        There::Value("false"),
        "of what is mounted it keeps the kind and place",
    ),
    differs_in(2, "filters choose", There::Value("\"other\""), NOT_FILTERED),
    differs_in(2, "a filter that is none", There::Code(Code::Ok), NOT_FILTERED),
    differs_in(2, "a filter with a broken expression", There::Code(Code::Ok), NOT_FILTERED),
    differs_in(2, "labels are changed", There::Value("Unimplemented"), NOT_CHANGED),
    differs_in(2, "a field that does not change", There::Code(Code::Unimplemented), NOT_CHANGED),
    differs_in(2, "update what is not there", There::Code(Code::Unimplemented), NOT_CHANGED),
];

fn activate(name: &str, mounts: &[Mount]) -> ActivateRequest {
    activate_with(name, mounts, &[])
}

fn activate_with(name: &str, mounts: &[Mount], labels: Entries<'_>) -> ActivateRequest {
    ActivateRequest { name: name.into(), mounts: mounts.to_vec(), labels: map(labels), temporary: false }
}

fn deactivate(name: &str) -> DeactivateRequest {
    DeactivateRequest { name: name.into() }
}

fn info(name: &str) -> InfoRequest {
    InfoRequest { name: name.into() }
}

fn list(filters: &[&str]) -> ListRequest {
    ListRequest { filters: filters.iter().map(ToString::to_string).collect() }
}

fn update(name: &str, labels: Entries<'_>, paths: &[&str]) -> UpdateRequest {
    let info = ActivationInfo { name: name.into(), labels: map(labels), ..ActivationInfo::default() };
    UpdateRequest { info: Some(info), update_mask: mask(paths) }
}

#[test]
fn mounts_walked() {
    if !is_root("mounts") {
        return;
    }
    let methods = &["Mounts.Activate", "Mounts.Deactivate", "Mounts.Info", "Mounts.Update", "Mounts.List"];
    covers(methods).walk_since(2, DIFFERENCES, async |side| {
        what_is_no_activation_is_refused(side).await;
        activations_come_and_go(side).await;
    });
}

async fn what_is_no_activation_is_refused(side: &Side<'_>) {
    let mut mounts = MountsClient::new(side.channel());
    let (code, words) = (Code::FailedPrecondition, "namespace is required");
    let wanted = shown(side.dir());
    let answer = mounts.activate(within(None, activate("one", &wanted)));
    side.refused("activate without a namespace", answer, code, words).await;
    let answer = mounts.deactivate(within(None, deactivate("one")));
    side.refused("deactivate without a namespace", answer, code, words).await;
    let answer = mounts.info(within(None, info("one")));
    side.refused("ask without a namespace", answer, code, words).await;
    let answer = all(mounts.list(within(None, list(&[]))));
    side.refused("list without a namespace", answer, code, words).await;

    for nothing in [&[][..], &[mount("bind", "/", &["rbind"])]] {
        let answer = mounts.activate(ask(activate("one", nothing)));
        side.refused("there is nothing to do", answer, Code::Unimplemented, "").await;
    }
    let answer = mounts.activate(ask(activate("", &wanted)));
    side.refused("a name that is none", answer, Code::InvalidArgument, "").await;
    let first = [mount("format/bind", "{{ mount 0 }}", &["rbind"])];
    let answer = mounts.activate(ask(activate("one", &first)));
    side.refused("a mount that is not before it", answer, Code::InvalidArgument, "index out of bounds").await;
    let [base, _] = &wanted;
    for wrong in ["{{ nothing 0 }}", "{{ mount }}", "{{ mount 0"] {
        let answer =
            mounts.activate(ask(activate("one", &[base.clone(), mount("format/bind", wrong, &["rbind"])])));
        side.refused("an expression that is none", answer, Code::InvalidArgument, "").await;
    }
    let outside = ["X-containerd.mkdir.path=/no/such/place", "rbind"];
    let answer = mounts.activate(ask(activate("one", &[base.clone(), mount("mkdir/bind", "/", &outside)])));
    side.refused("a directory outside of the root", answer, Code::Unimplemented, "").await;
    let missing = [mount("bind", "/no/such", &["rbind"]), wanted[1].clone()];
    let answer = mounts.activate(ask(activate("one", &missing)));
    side.refused("what is not there cannot be mounted", answer, Code::NotFound, "/no/such").await;
    let long = [("key", &*"v".repeat(4094))];
    let answer = mounts.activate(ask(activate_with("long", &wanted, &long)));
    side.refused("a label that is too long", answer, Code::InvalidArgument, "label key and value").await;
    if !side.is_ours() {
        side.ok("deactivate what it made", mounts.deactivate(ask(deactivate("long")))).await;
    }
    for name in ["one", ""] {
        side.refused("ask for what is not there", mounts.info(ask(info(name))), Code::NotFound, "").await;
        let answer = mounts.deactivate(ask(deactivate(name)));
        side.refused("deactivate what is not there", answer, Code::NotFound, "").await;
        let answer = mounts.update(ask(update(name, &[("a", "b")], &["labels"])));
        side.refused("update what is not there", answer, Code::NotFound, "").await;
    }
    let found = side.ok("list", all(mounts.list(ask(list(&[]))))).await;
    side.is("what was refused left nothing", found.len(), 0);
}

async fn activations_come_and_go(side: &Side<'_>) {
    let mut mounts = MountsClient::new(side.channel());
    let directory = side.dir().join("shown");
    fs::create_dir(&directory).expect("a directory for the walk");
    let wanted = shown(&directory);
    let labels = [("tier", "gold"), ("none", "")];
    let request = activate_with("one", &wanted, &labels);
    let made = side.ok("activate", mounts.activate(ask(request))).await.info.unwrap_or_default();
    side.is("it has its name", made.name.as_str(), "one");
    side.is("one is made, one is left", (made.active.len(), made.system.len()), (1, 1));
    let active = made.active.first().cloned().unwrap_or_default();
    side.is("it is mounted", (is_mounted(&active.mount_point), active.mounted_at.is_some()), (true, true));
    side.is("what is made is what was asked for", active.mount.as_ref(), Some(&wanted[0]));
    // What is left is filled in, with the kind that is behind the steps.
    let expected = Mount { r#type: "bind".into(), source: active.mount_point.clone(), ..wanted[1].clone() };
    side.is("what is left shows what is made", made.system.first(), Some(&expected));
    let answer = mounts.activate(ask(activate("one", &wanted)));
    side.refused("a name that is taken", answer, Code::AlreadyExists, "one").await;

    let found = side.ok("ask", mounts.info(ask(info("one")))).await.info.unwrap_or_default();
    side.is("it is found by its name", (&found.name, &found.system), (&made.name, &made.system));
    let place = found.active.first().map(|active| (active.mount_point.clone(), active.mounted_at));
    side.is("it is where it was", place, Some((active.mount_point.clone(), active.mounted_at)));
    side.is("it is found as it was made", found.active == made.active, true);
    let answer = mounts.info(within(Some("other"), info("one")));
    side.refused("ask in another namespace", answer, Code::NotFound, "").await;

    // All of it is made here: what is left is to show the last.
    let all_of_it = ActivateRequest { temporary: true, ..activate("other", &[wanted[0].clone()]) };
    let other = side.ok("activate all", mounts.activate(ask(all_of_it))).await.info.unwrap_or_default();
    let last = other.active.last().map(|active| active.mount_point.clone()).unwrap_or_default();
    let shows = other.system.first().map(|mount| (mount.r#type.clone(), mount.source.clone()));
    side.is("what is left shows the last", shows, Some(("bind".to_owned(), last.clone())));

    let names = |found: Vec<ListMessage>| -> Vec<String> {
        found.into_iter().map(|found| found.info.unwrap_or_default().name).collect()
    };
    let found = names(side.ok("list all", all(mounts.list(ask(list(&[]))))).await);
    side.is("all are listed", found, ["one", "other"]);
    for filter in ["name==one", "labels.tier==gold", "labels.tier"] {
        let found = names(side.ok("list some", all(mounts.list(ask(list(&[filter]))))).await);
        side.is("filters choose", found, ["one"]);
    }
    for (case, filter) in BAD_FILTERS.iter().chain([&BROKEN]) {
        let answer = all(mounts.list(ask(list(&[filter]))));
        side.refused(case, answer, Code::InvalidArgument, "").await;
    }
    let changed = code(mounts.update(ask(update("one", &[("more", "1")], &["labels.more"])))).await;
    side.is("labels are changed", changed, Code::Ok);
    let answer = mounts.update(ask(update("one", &[], &["active"])));
    side.refused("a field that does not change", answer, Code::InvalidArgument, "active").await;

    for (name, point) in [("one", &active.mount_point), ("other", &last)] {
        side.ok("deactivate", mounts.deactivate(ask(deactivate(name)))).await;
        side.is("it is taken down", is_mounted(point), false);
        let answer = mounts.deactivate(ask(deactivate(name)));
        side.refused("deactivate again", answer, Code::NotFound, "").await;
    }
}
