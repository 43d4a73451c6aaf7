//! The kit itself: its images are real images, and its registry serves them.

use std::process::Command;

use testkit::{Registry, images, run};

#[test]
fn a_layout_made_from_packages_can_be_pushed_and_read_back() {
    if !testkit::is_root("making images from packages") {
        return;
    }
    let registry = Registry::start();
    let reference = registry.push(&images::redis(), images::TAG, "redis:7");
    let seen = run(Command::new("skopeo")
        .args(["inspect", "--tls-verify=false"])
        .arg(format!("docker://{reference}")))
    .ok();
    let seen: serde_json::Value = serde_json::from_str(&seen.stdout).expect("skopeo prints JSON");
    assert_eq!(seen["Os"], "linux");
    assert_eq!(seen["Layers"].as_array().map(Vec::len), Some(1), "{seen}");
}
