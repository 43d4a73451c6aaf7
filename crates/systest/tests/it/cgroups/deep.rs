//! Cgroups that containers make below their own: thousands of levels, hundreds side by side.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use linux::cgroup::{Cgroup, Version};
use rustix::fs::{AtFlags, Mode, OFlags, mkdirat, openat, unlinkat};
use testkit::{Daemon, eventually};

use super::named;

/// More than the usual limit of open files, and far deeper than a path can name. Twice as many levels take the kernel
/// four times as long.
const LEVELS: usize = 1100;

/// A chain of cgroups, one inside the other.
struct Chain {
    top: PathBuf,
    bottom: OwnedFd,
    levels: usize,
}

impl Chain {
    fn below(top: &Path, levels: usize) -> Chain {
        let mut chain = Chain { top: top.to_owned(), bottom: open(rustix::fs::CWD, top).unwrap(), levels: 0 };
        for _ in 0..levels {
            mkdirat(&chain.bottom, name(), Mode::RWXU).unwrap();
            chain.bottom = open(&chain.bottom, name()).unwrap();
            chain.levels += 1;
        }
        chain
    }

    fn write(&self, file: &str, text: &str) {
        let file = openat(&self.bottom, file, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        rustix::io::write(file, text.as_bytes()).unwrap();
    }

    fn up(&mut self) -> io::Result<()> {
        self.bottom = open(&self.bottom, "..")?;
        unlinkat(&self.bottom, name(), AtFlags::REMOVEDIR)?;
        Ok(())
    }
}

/// Removes what a failed test has left.
impl Drop for Chain {
    fn drop(&mut self) {
        let _gone = fs::write(self.top.join("cgroup.kill"), "1");
        for _ in 0..self.levels {
            let _gone = self.up();
        }
        let _gone = fs::remove_dir(&self.top);
    }
}

fn open(parent: impl AsFd, name: impl rustix::path::Arg) -> io::Result<OwnedFd> {
    Ok(openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// The longest name that a cgroup can have.
fn name() -> String {
    "d".repeat(255)
}

/// The directories where tests make cgroups: in the hierarchy of version 2, and in one of version 1.
fn tops(cgroup: &Cgroup) -> Vec<PathBuf> {
    let wanted = |name: &str| ["", "freezer"].contains(&name);
    cgroup.locations().into_iter().filter(|(name, _)| wanted(name)).map(|(_, path)| path).collect()
}

/// A process that is killed when dropped.
struct Sleeper(Child);

impl Sleeper {
    fn start() -> Sleeper {
        Sleeper(Command::new("sleep").arg("1000").spawn().expect("it starts"))
    }

    fn is_killed(&mut self) -> Option<()> {
        self.0.try_wait().expect("a child of ours").map(drop)
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        let _ended = self.0.kill().and_then(|()| self.0.wait());
    }
}

#[test]
fn a_chain_of_cgroups_is_killed_and_removed() {
    let id = format!("ht-chain-{}", std::process::id());
    let cgroup = Cgroup::share(&format!("/{id}")).expect("root may make cgroups");
    let chains: Vec<Chain> = tops(&cgroup).iter().map(|top| Chain::below(top, LEVELS)).collect();
    let mut sleeper = Sleeper::start();
    for chain in &chains {
        chain.write("cgroup.procs", &sleeper.0.id().to_string());
    }
    assert_eq!(cgroup.processes().unwrap(), [sleeper.0.id()]);
    let error = cgroup.delete().expect_err("somebody lives there").to_string();
    assert!(error.contains(&sleeper.0.id().to_string()), "{error}");
    cgroup.freeze().unwrap();
    cgroup.kill().unwrap();
    eventually("the process at the bottom ends", || sleeper.is_killed());
    cgroup.delete().unwrap();
    assert_eq!(named(&id), Vec::<PathBuf>::new());
}

/// In version 1 alone a frozen process cannot be killed, and a container may freeze a cgroup by itself.
#[test]
fn what_a_container_has_frozen_of_itself_is_killed() {
    let id = format!("ht-frozen-{}", std::process::id());
    let cgroup = Cgroup::share(&format!("/{id}")).expect("root may make cgroups");
    if cgroup.version() == Version::V2 {
        cgroup.delete().unwrap();
        println!("skipped: this host has no freezer of version 1");
        return;
    }
    let freezer = cgroup.locations()["freezer"].clone();
    let cgroup = cgroup.without(&[String::new()]);
    let chain = Chain::below(&freezer, 3);
    let mut sleeper = Sleeper::start();
    cgroup.add(sleeper.0.id()).unwrap();
    chain.write("cgroup.procs", &sleeper.0.id().to_string());
    chain.write("freezer.state", "FROZEN");
    cgroup.kill().unwrap();
    eventually("the frozen process ends", || sleeper.is_killed());
    Cgroup::open(&format!("/{id}")).unwrap().delete().unwrap();
    assert_eq!(named(&id), Vec::<PathBuf>::new());
}

#[test]
fn hundreds_of_cgroups_side_by_side_are_looked_through_and_removed() {
    let id = format!("ht-wide-{}", std::process::id());
    let cgroup = Cgroup::share(&format!("/{id}")).expect("root may make cgroups");
    let tops = tops(&cgroup);
    let wide = |number: usize| {
        for top in &tops {
            fs::create_dir_all(top.join(format!("{number}/below/this"))).unwrap();
        }
    };
    (0..300).for_each(wide);
    let mut sleepers: Vec<Sleeper> = (0..10).map(|_| Sleeper::start()).collect();
    for (number, sleeper) in sleepers.iter().enumerate() {
        for top in &tops {
            let place = top.join(format!("{}/below/cgroup.procs", number * 30));
            fs::write(place, sleeper.0.id().to_string()).unwrap();
        }
    }
    let mut pids: Vec<u32> = sleepers.iter().map(|sleeper| sleeper.0.id()).collect();
    pids.sort_unstable();
    assert_eq!(cgroup.processes().unwrap(), pids);
    cgroup.kill().unwrap();
    for sleeper in &mut sleepers {
        eventually("all end", || sleeper.is_killed());
    }
    cgroup.delete().unwrap();
    assert_eq!(named(&id), Vec::<PathBuf>::new());
}

#[test]
fn a_container_at_the_bottom_of_a_chain_is_removed() {
    let mut chains = Vec::new();
    let daemon = Daemon::with_busybox();
    daemon.hoist(["run", "-d", "--network", "none", "--name", "deep", "busybox", "sleep", "1000"]).ok();
    let state = daemon.hoist(["inspect", "-f", "{{.State.Pid}} {{.Id}}", "deep"]).ok();
    let (pid, id) = state.text().split_once(' ').unwrap();
    let cgroup = Cgroup::open(&format!("{}/{id}", daemon.cgroup())).unwrap();
    for top in tops(&cgroup) {
        let chain = Chain::below(&top, LEVELS);
        chain.write("cgroup.procs", pid);
        chains.push(chain);
    }
    daemon.hoist(["pause", "deep"]).ok();
    daemon.hoist(["unpause", "deep"]).ok();
    daemon.hoist(["rm", "-f", "deep"]).ok();
    assert_eq!(daemon.hoist(["ps", "-aq"]).ok().stdout, "");
    for chain in &chains {
        assert!(!chain.top.exists(), "{}", chain.top.display());
    }
}
