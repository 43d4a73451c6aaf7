//! Images made from Debian's packages, without a registry of images to fetch them from.
//!
//! `apt-get` finds and downloads a package with all that it depends on, `dpkg-deb` unpacks them side
//! by side, `umoci` makes an OCI image of the tree. No maintainer script runs, so the few files that
//! scripts would write (users, directories) are written here.
//!
//! Layouts are kept under `target/testkit/images`, named by what they are made of: the second run
//! of the tests finds them there.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use stdx::Mutex;

use crate::{cache_dir, run};

/// The tag of the one image in each layout.
pub const TAG: &str = "test";

/// The ingredients of an image.
pub struct Recipe<'a> {
    /// The name of the layout in the cache. Change it when the recipe changes.
    pub name: &'a str,
    /// Debian packages; all that they depend on is installed too.
    pub packages: &'a [&'a str],
    /// Makes the last changes to the root file system.
    pub finish: fn(&Path),
    /// Arguments of `umoci config`, such as `--config.cmd=redis-server`.
    pub config: &'a [&'a str],
}

/// The layout of an image [`TAG`] with one static program: a shell and its tools.
pub fn busybox() -> PathBuf {
    layout(&Recipe {
        name: "busybox-3",
        packages: &[],
        finish: busybox_root,
        config: &["--config.cmd=sh", "--config.env=PATH=/usr/bin:/bin"],
    })
}

pub fn redis() -> PathBuf {
    layout(&Recipe {
        name: "redis-2",
        packages: &["redis-server"],
        finish: |root| users(root, "redis:x:999:999::/data:/bin/false\n", "redis:x:999:\n"),
        config: &[
            "--config.entrypoint=redis-server",
            "--config.cmd=--protected-mode",
            "--config.cmd=no",
            "--config.cmd=--save",
            "--config.cmd=",
            "--config.exposedports=6379/tcp",
            "--config.workingdir=/data",
        ],
    })
}

pub fn nginx() -> PathBuf {
    layout(&Recipe {
        name: "nginx-2",
        packages: &["nginx-light"],
        finish: |root| {
            users(root, "www-data:x:33:33::/var/www:/bin/false\n", "www-data:x:33:\n");
            for dir in ["var/log/nginx", "var/lib/nginx", "run", "var/www/html"] {
                fs::create_dir_all(root.join(dir)).expect("a writable root");
            }
            fs::write(root.join("var/www/html/index.html"), "served by nginx\n").expect("a writable root");
            // The packaged site file is a symlink that a maintainer script would make.
            let site = "server { listen 80; root /var/www/html; }\n";
            fs::create_dir_all(root.join("etc/nginx/sites-enabled")).expect("a writable root");
            fs::write(root.join("etc/nginx/sites-enabled/default"), site).expect("a writable root");
        },
        config: &[
            "--config.cmd=nginx",
            "--config.cmd=-g",
            "--config.cmd=daemon off;",
            "--config.exposedports=80/tcp",
            "--config.stopsignal=SIGQUIT",
        ],
    })
}

pub fn python() -> PathBuf {
    layout(&Recipe {
        name: "python-3",
        packages: &["python3-minimal", "busybox-static"],
        finish: |root| {
            users(root, "", "");
            install_shell(root);
        },
        config: &["--config.cmd=python3"],
    })
}

/// One layer of 50,000 small files in 500 directories.
pub fn many_files() -> PathBuf {
    layout(&Recipe {
        name: "many-files-2",
        packages: &[],
        finish: |root| {
            busybox_root(root);
            for dir in 0..500 {
                let dir = root.join(format!("tree/{dir}"));
                fs::create_dir_all(&dir).expect("a writable root");
                for file in 0..100 {
                    fs::write(dir.join(file.to_string()), file.to_string()).expect("a writable root");
                }
            }
        },
        config: &["--config.cmd=sh"],
    })
}

/// One layer with a file of 1 GiB that compresses to about half its size.
pub fn large_layer() -> PathBuf {
    layout(&Recipe {
        name: "large-layer-2",
        packages: &[],
        finish: |root| {
            busybox_root(root);
            let mut file = fs::File::create(root.join("large")).expect("a writable root");
            let mut state = 0x9e37_79b9_7f4a_7c15_u64;
            let mut chunk = vec![0; 1 << 20];
            for _ in 0..1024 {
                for word in chunk[..1 << 19].chunks_exact_mut(8) {
                    word.copy_from_slice(&xorshift(&mut state).to_le_bytes());
                }
                file.write_all(&chunk).expect("room for a gigabyte");
            }
        },
        config: &["--config.cmd=sh"],
    })
}

/// A hundred and one layers.
pub fn hundred_layers() -> PathBuf {
    layers("hundred-layers-2", 100)
}

/// Four layers.
pub fn four_layers() -> PathBuf {
    layers("four-layers-1", 3)
}

/// Layers of one image: a shell, then a file `/layer/n` each up to `count`, then the file `/last`.
fn layers(name: &str, count: usize) -> PathBuf {
    once(&dir(), name, |layout, work| {
        new_layout(layout);
        let root = work.join("root");
        fs::create_dir(&root).expect("a writable directory");
        busybox_root(&root);
        insert(layout, &root, "/");
        for layer in 1..count {
            let added = work.join(layer.to_string());
            fs::create_dir_all(added.join("layer")).expect("a writable directory");
            fs::write(added.join("layer").join(layer.to_string()), "").expect("a writable directory");
            fs::write(added.join("last"), layer.to_string()).expect("a writable directory");
            insert(layout, &added.join("layer"), "/layer");
            if layer == count - 1 {
                insert(layout, &added.join("last"), "/last");
            }
        }
        configure(layout, &["--config.cmd=sh"]);
    })
}

/// Makes an image, or finds it in the cache, and returns its OCI layout.
pub fn layout(recipe: &Recipe<'_>) -> PathBuf {
    once(&dir(), recipe.name, |layout, work| {
        let root = work.join("root");
        fs::create_dir(&root).expect("a writable directory");
        unpack_packages(work, &root, recipe.packages);
        (recipe.finish)(&root);
        new_layout(layout);
        insert(layout, &root, "/");
        configure(layout, recipe.config);
    })
}

/// An archive of a layout's image in the form of `docker save` or of an OCI layout, by skopeo's
/// name for it (`docker-archive`, `oci-archive`).
pub fn archive(layout: &Path, form: &str, name: &str, to: &Path) {
    run(Command::new("skopeo")
        .args(["--insecure-policy", "copy", "--quiet"])
        .arg(format!("oci:{}:{TAG}", layout.display()))
        .arg(format!("{form}:{}:{name}", to.display())))
    .ok();
}

/// The image of [`busybox`] as `docker save` writes it, under the name `busybox:latest`.
pub fn busybox_archive() -> PathBuf {
    let layout = busybox();
    let made = once(&cache_dir().join("archives"), "busybox-3", |made, _| {
        fs::create_dir(made).expect("a writable target directory");
        archive(&layout, "docker-archive", "busybox:latest", &made.join("busybox.tar"));
    });
    made.join("busybox.tar")
}

fn dir() -> PathBuf {
    cache_dir().join("images")
}

/// The directory `name` below `kept`. If it is missing, `make` fills it: it gets the directory's temporary path and a
/// scratch directory.
pub(crate) fn once(kept: &Path, name: &str, make: impl FnOnce(&Path, &Path)) -> PathBuf {
    // Tests of one program run in threads: the first makes the directory, others that need the same one wait for it. Each
    // has a lock of its own, since some take minutes.
    static LOCKS: Mutex<BTreeMap<PathBuf, Arc<Mutex<()>>>> = Mutex::new(BTreeMap::new());
    let finished = kept.join(name);
    let lock = Arc::clone(LOCKS.lock().entry(finished.clone()).or_default());
    let _locked = lock.lock();
    if finished.is_dir() {
        return finished;
    }
    fs::create_dir_all(kept).expect("a writable target directory");
    let work = tempfile::TempDir::with_prefix_in("making-", kept).expect("a writable target directory");
    let making = work.path().join("made");
    make(&making, work.path());
    // Another test program may have made the same directory meanwhile, which is as good.
    if let Err(error) = fs::rename(&making, &finished) {
        assert!(finished.is_dir(), "{}: {error}", finished.display());
    }
    finished
}

/// Unpacks packages and all that they depend on into one tree. No maintainer script runs.
pub(crate) fn unpack_packages(work: &Path, root: &Path, packages: &[&str]) {
    if packages.is_empty() {
        return;
    }
    let archives = work.join("archives");
    fs::create_dir_all(archives.join("partial")).expect("a writable directory");
    // An empty list of installed packages makes apt download every dependency.
    let status = work.join("status");
    fs::write(&status, "").expect("a writable directory");
    run(Command::new("apt-get")
        .args(["-qq", "-y", "-d", "--no-install-recommends", "-oAPT::Sandbox::User=root"])
        .arg(format!("-oDir::State::status={}", status.display()))
        .arg(format!("-oDir::Cache::archives={}", archives.display()))
        .arg("install")
        .args(packages))
    .ok();
    merged_usr(root);
    for entry in fs::read_dir(&archives).expect("a readable directory") {
        let package = entry.expect("a readable directory").path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            unpack(&package, root);
        }
    }
}

/// Unpacks one package over the tree; symlinks to directories stay.
fn unpack(package: &Path, root: &Path) {
    let script = "dpkg-deb --fsys-tarfile \"$0\" | tar --extract --keep-directory-symlink --directory \"$1\"";
    run(Command::new("bash").args(["-o", "pipefail", "-c", script]).arg(package).arg(root)).ok();
}

fn merged_usr(root: &Path) {
    for name in ["bin", "sbin", "lib", "lib64"] {
        fs::create_dir_all(root.join("usr").join(name)).expect("a writable root");
        symlink(format!("usr/{name}"), root.join(name)).expect("a writable root");
    }
}

fn busybox_root(root: &Path) {
    merged_usr(root);
    users(root, "", "");
    fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
    install_shell(root);
}

/// Links the commands that tests use to busybox.
fn install_shell(root: &Path) {
    let commands = "sh cat echo ls id hostname mount ip ping nc wget sleep true false env grep head tail wc touch mkdir rm \
                    mv cp ln stat ps kill pwd test dd seq find sort stty tty date uname printf chmod chown vi nslookup httpd usleep cut";
    for command in commands.split_whitespace() {
        link_applet(root, command);
    }
}

/// A command of busybox, unless the root has one of that name.
pub(crate) fn link_applet(root: &Path, command: &str) {
    let link = root.join("bin").join(command);
    if link.symlink_metadata().is_err() {
        symlink("busybox", link).expect("a writable root");
    }
}

pub(crate) fn users(root: &Path, passwd: &str, group: &str) {
    let dirs = ["etc", "root", "tmp", "proc", "sys", "dev", "run", "data", "var"];
    for dir in dirs {
        fs::create_dir_all(root.join(dir)).expect("a writable root");
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).expect("a writable root");
    let common = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n";
    fs::write(root.join("etc/passwd"), format!("{common}{passwd}")).expect("a writable root");
    fs::write(root.join("etc/group"), format!("root:x:0:\nnogroup:x:65534:\n{group}"))
        .expect("a writable root");
}

fn new_layout(layout: &Path) {
    run(Command::new("umoci").arg("init").arg("--layout").arg(layout)).ok();
    run(Command::new("umoci").arg("new").arg("--image").arg(tagged(layout))).ok();
}

fn insert(layout: &Path, tree: &Path, at: &str) {
    run(Command::new("umoci").arg("insert").arg("--image").arg(tagged(layout)).arg(tree).arg(at)).ok();
}

fn configure(layout: &Path, config: &[&str]) {
    run(Command::new("umoci").arg("config").arg("--image").arg(tagged(layout)).args(config)).ok();
}

fn tagged(layout: &Path) -> String {
    format!("{}:{TAG}", layout.display())
}

/// Marsaglia's xorshift: bytes that do not compress, the same on every run.
pub(crate) fn xorshift(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}
