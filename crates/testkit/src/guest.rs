//! Virtual machines with hosts of other kinds than most machines that run tests: Debian's kernel, mostly the one for
//! clouds, systemd as the first process, and what else [`GuestKind`] says.
//!
//! ```text
//! Debian packages ─▶ base.cpio (kept) ─┐
//! hoist, test program, images ─────────┴▶ initramfs ─▶ /init ─▶ systemd ─▶ test.service
//!                                                                             │ test program
//! outcome ◀── second serial port ◀────────────────────────────────────────────┘ power off
//! ```
//!
//! The processor is emulated, so that it works wherever QEMU does. The root file system is memory: a
//! guest leaves nothing, and one that hangs is ended by [`GuestKind::life_s`].

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

use crate::{cache_dir, hoist_program, images, run};

/// Part of the cache's name: raise it when [`base`] changes, so that no older base is used.
const BASE: &str = "guest-11";

/// Packages of every guest: systemd with its bus, runtimes and file systems to compare with, and what loads modules.
const PACKAGES: &[&str] = &[
    "systemd",
    "dbus",
    "kmod",
    "runc",
    "busybox-static",
    "nftables",
    "iproute2",
    "util-linux",
    "strace",
    "apparmor",
    "checkpolicy",
    // With the programs that it calls.
    "criu",
    "iptables",
    "tar",
    "gzip",
    "perl-base",
    "cryptsetup-bin",
    "erofs-utils",
    "e2fsprogs",
];

/// More packages for the whole set of tests: runtimes and daemons of others, a compiler, and Debian's own tools in
/// place of busybox's.
const PEERS: &[&str] = &[
    "bash",
    "containerd",
    "coreutils",
    "crun",
    "docker-registry",
    "findutils",
    "gcc",
    "grep",
    "hostname",
    "libc6-dev",
    "openssl",
    "podman",
    "procps",
    "sed",
    "skopeo",
    "uidmap",
    "umoci",
];

/// Debian's packages of its current kernel, for clouds and with all drivers.
const KERNEL: &str = "linux-image-cloud-amd64";
const WHOLE_KERNEL: &str = "linux-image-amd64";

/// The source of kernels younger than the release's.
const BACKPORTS: &str = "deb http://deb.debian.org/debian bookworm-backports main\n";

/// Kernel modules that containers and tests need, as files and directories.
const MODULES: &[&str] = &[
    "arch/x86/crypto",
    "block/bfq.ko",
    "crypto",
    "drivers/block/loop.ko",
    "drivers/block/virtio_blk.ko",
    "drivers/block/zram",
    "drivers/md",
    "drivers/net/veth.ko",
    "drivers/virtio",
    "fs/erofs",
    "fs/fuse",
    "fs/overlayfs",
    "lib",
    "mm",
    "net/802",
    "net/bridge",
    "net/core",
    "net/ipv4",
    "net/ipv6/netfilter",
    "net/llc",
    "net/netfilter",
    "net/netlink",
    "net/packet",
    "net/sched",
    "net/unix",
];

/// Modules of RDMA by software (`rdma_rxe`), which the cloud kernel lacks.
const RDMA_MODULES: &[&str] = &[
    "drivers/infiniband/core",
    "drivers/infiniband/sw/rxe",
    "net/ipv4/udp_tunnel.ko",
    "net/ipv6/ip6_udp_tunnel.ko",
];

/// Busybox commands that scripts in the guest call by name.
const APPLETS: &str = "sh cat echo grep awk sed head tail cut sort wc sleep true false find kill mkdir rm ln ls dd mount \
                       umount test env id seq stat touch readlink basename dirname uname hostname ps chmod \
                       chown mkfifo mknod mv cp sha256sum tr od";

/// A kind of guest, by what differs from the host and from other guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestKind {
    /// Cgroups of version 2 only, AppArmor.
    Usual,
    /// SELinux instead of AppArmor, without a policy until a test loads one.
    SeLinux,
    /// Cgroups of version 1, with an empty tree of version 2 beside them, all in systemd's hands.
    CgroupsV1,
    /// As `Usual`, with a kernel that mounts EROFS images from files, and with many processors.
    Younger,
    /// As `Usual`, with a kernel that has RDMA by software.
    Rdma,
    /// As `Usual`, with [`PEERS`], and with the time that the whole set of tests takes.
    Furnished,
}

impl GuestKind {
    /// The value of `HOIST_GUEST` in the guest.
    fn name(self) -> &'static str {
        match self {
            GuestKind::Usual | GuestKind::Furnished => "apparmor",
            GuestKind::SeLinux => "selinux",
            GuestKind::CgroupsV1 => "v1",
            GuestKind::Younger => "younger",
            GuestKind::Rdma => "rdma",
        }
    }

    /// The CPU model. It has no wide registers, which are slow to emulate and are saved at each context switch: without
    /// them a run takes two thirds of the time. Younger kernels allocate memory with an instruction that older versions
    /// of QEMU emulate wrongly.
    fn processor(self) -> &'static str {
        match self {
            GuestKind::Younger => "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt,cx16=off",
            _ => "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt",
        }
    }

    /// How many processors the guest has. A pull keeps two of them busy for each layer, and inflates ahead only if
    /// there are more.
    fn processors(self) -> &'static str {
        match self {
            GuestKind::Younger => "8",
            _ => "2",
        }
    }

    /// Memory in MiB, of which the files of the root file system take up to a half.
    fn memory_mib(self) -> &'static str {
        match self {
            GuestKind::Furnished => "6144",
            GuestKind::Younger => "3072",
            _ => "2048",
        }
    }

    /// Seconds after which the guest is ended, even if it runs.
    fn life_s(self) -> &'static str {
        match self {
            GuestKind::Furnished => "2700",
            _ => "1800",
        }
    }

    /// The Debian packages to install.
    fn packages(self) -> Vec<&'static str> {
        let peers = if self == GuestKind::Furnished { PEERS } else { &[] };
        [PACKAGES, peers].concat()
    }

    /// The package that depends on the guest's kernel.
    fn kernel(self) -> &'static str {
        match self {
            GuestKind::Rdma => WHOLE_KERNEL,
            _ => KERNEL,
        }
    }

    /// The modules to install from that kernel.
    fn modules(self) -> Vec<&'static str> {
        let rdma = if self == GuestKind::Rdma { RDMA_MODULES } else { &[] };
        [MODULES, rdma].concat()
    }

    /// The name of the cached base. Several kinds share one.
    fn base_name(self) -> String {
        match self {
            GuestKind::Younger => format!("{BASE}-younger"),
            GuestKind::Rdma => format!("{BASE}-rdma"),
            GuestKind::Furnished => format!("{BASE}-furnished"),
            _ => BASE.to_owned(),
        }
    }

    /// More parameters for the kernel's command line.
    fn words(self) -> &'static str {
        match self {
            GuestKind::Usual | GuestKind::Younger | GuestKind::Rdma | GuestKind::Furnished => "",
            GuestKind::SeLinux => " security=selinux",
            GuestKind::CgroupsV1 => " systemd.unified_cgroup_hierarchy=0",
        }
    }
}

/// A test program to be run in a guest.
pub struct Guest<'a> {
    pub kind: GuestKind,
    pub program: &'a Path,
    pub arguments: &'a [&'a str],
    /// Programs of this machine to copy into the guest, beside those of its packages.
    pub programs: &'a [PathBuf],
    /// Files and directories made by [`images`], which the guest has under the same paths.
    pub images: &'a [PathBuf],
}

/// The result of a guest's run.
pub struct Outcome {
    /// The exit code of the program; `None` if the guest ended before the program did.
    pub code: Option<i32>,
    /// Standard output and standard error of the program.
    pub output: String,
    /// Messages of the kernel and of systemd.
    pub console: String,
}

impl Guest<'_> {
    /// Boots, runs the program to its end, and powers off.
    pub fn run(&self) -> Outcome {
        let base = base(self.kind);
        let work = TempDir::with_prefix("hoist-guest-").expect("a temporary directory");
        let (initrd, disk) = (work.path().join("initrd"), work.path().join("disk"));
        fs::copy(base.join("base.cpio"), &initrd).expect("room for an initramfs");
        append_archive(&self.tree(work.path()), &initrd);
        // A sparse file: the block device whose transfers tests limit.
        fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a sparse file");
        let serial = |name: &str| format!("file:{}", work.path().join(name).display());
        // Before the tests beside it: most of their time they wait, and those in the guest have deadlines too.
        let mut machine = Command::new("nice");
        machine.args([
            "--adjustment=-5",
            "timeout",
            "--kill-after=5",
            self.kind.life_s(),
            "qemu-system-x86_64",
        ]);
        machine.args([
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            self.kind.processor(),
            "-smp",
            self.kind.processors(),
            "-m",
            self.kind.memory_mib(),
        ]);
        machine.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        machine.arg("-kernel").arg(base.join("vmlinuz")).arg("-initrd").arg(&initrd);
        // Without `no_timer_check` a late first tick on a busy host ends the boot in a panic.
        let words = "no_timer_check console=ttyS0 panic=-1 loglevel=4 systemd.log_target=console \
                     systemd.show_status=false";
        machine.args(["-append", &format!("{words}{}", self.kind.words())]);
        machine.args(["-serial", &serial("console"), "-serial", &serial("output")]);
        machine.args(["-drive", &format!("if=virtio,format=raw,file={}", disk.display())]);
        let ended = run(machine.stdin(Stdio::null()));
        let read = |name: &str| -> String {
            let bytes = fs::read(work.path().join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\r', "")
        };
        let (text, console) = (read("output"), read("console") + &ended.stderr);
        let (output, code) = match text.trim_end().rsplit_once(EXIT) {
            Some((output, code)) => (output.to_owned(), code.trim().parse().ok()),
            None => (text, None),
        };
        Outcome { code, output, console }
    }

    /// The part of the root file system that is made for this run.
    fn tree(&self, work: &Path) -> PathBuf {
        let root = work.join("root");
        fs::create_dir_all(root.join("usr/bin")).expect("a writable directory");
        install(&hoist_program(), &root.join("usr/bin/hoist"));
        install(self.program, &root.join("usr/bin/test-program"));
        for program in self.programs {
            install(program, &root.join("usr/bin").join(program.file_name().expect("a program has a name")));
        }
        for image in self.images {
            let place = image.strip_prefix(cache_dir()).expect("images are made in the cache");
            let place = root.join("target/testkit").join(place);
            fs::create_dir_all(place.parent().expect("a path below")).expect("a writable directory");
            run(Command::new("cp").arg("-a").arg(image).arg(&place)).ok();
        }
        let arguments = self.arguments.iter().map(|word| format!(" '{word}'")).collect::<String>();
        let script = format!(
            "#!/bin/sh\nexport CARGO_TARGET_DIR=/target HOIST_BIN=/usr/bin/hoist RUST_BACKTRACE=0 HOME=/root\n\
             export HOIST_GUEST={}\n\
             export PATH=/usr/bin:/usr/sbin TMPDIR=/tmp\ncd /root\n\
             # Nobody else loads what is asked for by device.\n\
             modprobe -a loop dm_verity fuse\ntest-program{arguments}\necho \"{EXIT}$?\"\n",
            self.kind.name()
        );
        fs::write(root.join("run-tests"), script).expect("a writable directory");
        root
    }
}

/// Precedes the exit code in the output.
const EXIT: &str = "guest: the program's exit code is ";

/// The directory with the kernel (`vmlinuz`) and the common root file system (`base.cpio`), made once.
fn base(kind: GuestKind) -> PathBuf {
    images::once(&cache_dir().join("guests"), &kind.base_name(), |base, work| {
        let root = work.join("root");
        fs::create_dir_all(base).expect("a writable target directory");
        fs::create_dir(&root).expect("a writable directory");
        images::unpack_packages(work, &root, &kind.packages());
        for folder in ["usr/share/doc", "usr/share/man", "usr/share/locale", "usr/lib/x86_64-linux-gnu/gconv"]
        {
            run(Command::new("rm").arg("-rf").arg(root.join(folder))).ok();
        }
        images::users(&root, "messagebus:x:100:100::/:/bin/false\n", "messagebus:x:100:\n");
        for applet in APPLETS.split_whitespace() {
            images::link_applet(&root, applet);
        }
        // Links that a maintainer script would make.
        for name in ["iptables", "ip6tables", "iptables-restore", "ip6tables-restore"] {
            symlink("xtables-nft-multi", root.join("usr/sbin").join(name)).expect("a writable root");
        }
        if kind == GuestKind::Furnished {
            symlink("gcc", root.join("usr/bin/cc")).expect("a writable root");
            for grants in ["etc/subuid", "etc/subgid"] {
                fs::write(root.join(grants), "").expect("a writable root");
            }
        }
        fs::create_dir_all(root.join("var/tmp")).expect("a writable root");
        // Tests give this file to containers, as hosts have it.
        fs::write(root.join("etc/hostname"), "guest\n").expect("a writable root");
        let words = if kind == GuestKind::Younger { backports(work) } else { Vec::new() };
        install_kernel(kind, work, &root, base, &words);
        install_services(&root);
        append_archive(&root, &base.join("base.cpio"));
    })
}

/// Options by which apt reads the backports alone, whatever the machine's apt is configured for.
fn backports(work: &Path) -> Vec<String> {
    let (list, state, none) = (work.join("backports.list"), work.join("lists"), work.join("none"));
    fs::write(&list, BACKPORTS).expect("a writable directory");
    for directory in [&state.join("partial"), &none] {
        fs::create_dir_all(directory).expect("a writable directory");
    }
    let word = |key: &str, path: &Path| format!("-oDir::{key}={}", path.display());
    let words = vec![
        word("Etc::SourceList", &list),
        word("Etc::SourceParts", &none),
        word("State::Lists", &state),
        word("Cache::pkgcache", Path::new("")),
        word("Cache::srcpkgcache", Path::new("")),
    ];
    run(Command::new("apt-get").args(["-qq", "-oAPT::Sandbox::User=root"]).args(&words).arg("update")).ok();
    words
}

/// Unpacks the kernel that apt finds with these options.
fn install_kernel(kind: GuestKind, work: &Path, root: &Path, base: &Path, words: &[String]) {
    // The package itself has no files: it depends on the package of the current version.
    let of_the_day = kind.kernel();
    let depends = run(Command::new("apt-cache").args(words).args(["depends", of_the_day])).ok();
    let package = depends.stdout.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let version = package.unwrap_or_else(|| panic!("{of_the_day} depends on no kernel\n{depends}"));
    let package = format!("linux-image-{version}");
    run(Command::new("apt-get")
        .args(words)
        .args(["-qq", "-oAPT::Sandbox::User=root", "download", &package])
        .current_dir(work))
    .ok();
    let kernel = work.join("kernel");
    fs::create_dir(&kernel).expect("a writable directory");
    run(Command::new("sh").args(["-c", "dpkg-deb -x linux-image-*.deb kernel"]).current_dir(work)).ok();
    fs::copy(kernel.join("boot").join(format!("vmlinuz-{version}")), base.join("vmlinuz"))
        .unwrap_or_else(|error| panic!("the kernel of {package}: {error}"));
    let (from, to) = (kernel.join("lib/modules").join(version), root.join("lib/modules").join(version));
    // Some kernels have compressed modules.
    let modules = kind.modules();
    let names = modules.iter().flat_map(|module| ["", ".xz"].map(|end| format!("kernel/{module}{end}")));
    for name in names.filter(|name| from.join(name).exists()) {
        let parent = to.join(&name).parent().expect("a path below").to_owned();
        fs::create_dir_all(&parent).expect("a writable directory");
        run(Command::new("cp").arg("-a").arg(from.join(&name)).arg(parent)).ok();
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        fs::copy(from.join(list), to.join(list)).expect("Debian's kernels have this list");
    }
    run(Command::new("chroot").arg(root).args(["depmod", version])).ok();
}

/// Installs systemd with one service, which powers off when the test program ends.
fn install_services(root: &Path) {
    let units = root.join("etc/systemd/system");
    fs::create_dir_all(units.join("test.target.wants")).expect("a writable root");
    let write = |path: &Path, text: &str| fs::write(path, text).expect("a writable root");
    write(&units.join("test.target"), "[Unit]\nDescription=Tests\n");
    write(
        &units.join("test.service"),
        "[Unit]\nDescription=Tests\nDefaultDependencies=no\nRequires=dbus.socket\nAfter=dbus.socket\n\
         [Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sh /run-tests\n\
         StandardOutput=file:/dev/ttyS1\nStandardError=file:/dev/ttyS1\nExecStopPost=/bin/busybox poweroff -f\n",
    );
    // The bus alone: by itself it waits for the rest of the system.
    for unit in ["dbus.socket", "dbus.service"] {
        fs::create_dir_all(units.join(format!("{unit}.d"))).expect("a writable root");
        write(&units.join(format!("{unit}.d/early.conf")), "[Unit]\nDefaultDependencies=no\n");
    }
    symlink("test.target", units.join("default.target")).expect("a writable root");
    symlink("../test.service", units.join("test.target.wants/test.service")).expect("a writable root");
    write(&root.join("etc/machine-id"), "");
    write(&root.join("init"), INIT);
    fs::set_permissions(root.join("init"), fs::Permissions::from_mode(0o755)).expect("a file of ours");
}

/// The kernel's own root cannot be moved by pivot_root(2), which containers use; a mount of it can.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t tmpfs run /run
/bin/busybox mkdir /run/root
/bin/busybox mount -o bind / /run/root
for dir in proc sys dev; do /bin/busybox mount --move /$dir /run/root/$dir; done
cd /run/root
/bin/busybox mount --move . /
/bin/busybox chroot . /sbin/modprobe -a virtio_pci virtio_blk
exec /bin/busybox chroot . /lib/systemd/systemd
";

/// Appends a tree as another archive: the kernel unpacks all archives of an initramfs, one after the other.
fn append_archive(root: &Path, archive: &Path) {
    let script = "find . | busybox cpio -o -H newc 2>/dev/null";
    let tree = Command::new("bash").args(["-o", "pipefail", "-c", script]).current_dir(root).output();
    let tree = tree.expect("bash and busybox are installed");
    assert!(tree.status.success(), "archive {}: {}", root.display(), tree.status);
    let mut file = fs::File::options().create(true).append(true).open(archive).expect("a writable directory");
    file.write_all(&tree.stdout).expect("room for an archive");
}

fn install(program: &Path, to: &Path) {
    fs::copy(program, to).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    // Debug information is the larger part of the program.
    run(Command::new("strip").arg(to));
}
