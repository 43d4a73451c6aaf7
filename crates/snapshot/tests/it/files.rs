//! Makes each system call on files fail once in turn: acknowledged snapshots exist, all snapshots are whole, and
//! cleanup removes everything else.
//!
//! ```text
//! this test ─ strace ─▶ the same test, which plays one scene      counts its calls
//!           ─ strace ─▶ the same, for each call: the n-th fails   judges itself, with nothing more failing
//! ```
//!
//! The records are in memory, so that no call is theirs: what happens when they fail is in `fault`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use kv::testing::Storage;

use crate::fault::{ALL, check, open_db, run};
use crate::suite::Place;

/// What a snapshotter may ask of a file system, and a disk may refuse. strace knows them by these names.
const CALLS: &str = "open,openat,read,pread64,write,pwrite64,writev,copy_file_range,sendfile,ftruncate,fallocate,fsync,fdatasync,\
                     syncfs,sync_file_range,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,\
                     rmdir,chmod,fchmod,fchmodat,chown,fchown,lchown,fchownat,utimensat,setxattr,lsetxattr,fsetxattr,getdents64,\
                     mount,fsmount,move_mount,open_tree,umount2";
/// Says to the test that it is the one whose calls fail, with which snapshotter, and whether one does.
const SCENE: &str = "HOIST_TEST_SCENE";
const FAILS: &str = "HOIST_TEST_FAILS";
/// More calls of one name than any other thread of a test makes.
const OF_OTHERS_MAX: usize = 256;
/// Paths of missing files: a stat of one marks a position in the list of calls.
const BEGIN: &str = "/marks-the-begin-of-the-scene";
const END: &str = "/marks-the-end-of-the-scene";

#[test]
fn any_call_on_files_may_fail_once() {
    if let Ok(name) = std::env::var(SCENE) {
        play(&name, std::env::var(FAILS).is_ok());
        return;
    }
    if Command::new("strace").arg("--version").output().is_err() {
        eprintln!("skipped: no strace in PATH; try: apt-get install strace");
        return;
    }
    let mut failed = Vec::new();
    for (name, _) in ALL {
        let counted = calls_of(&traced(name, None).expect("nothing fails"));
        assert!(counted.values().map(BTreeSet::len).sum::<usize>() > 30, "{name}: {counted:?}");
        for (call, places) in counted {
            for at in places {
                if let Err(said) = traced(name, Some((&call, at))) {
                    failed.push(format!("{name}, {call} {at}:\n{said}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{} of them:\n{}", failed.len(), failed.join("\n"));
}

fn play(name: &str, fails: bool) {
    let (_, open) = *ALL.iter().find(|(known, _)| *known == name).expect("a snapshotter of these");
    let (dir, storage) = (Place::new(), Storage::default());
    drop(open_db(&storage).unwrap());
    let mut committed = BTreeSet::new();
    let db = open_db(&storage).unwrap();
    // strace counts each thread by itself: the threads of the test's frame make fewer calls than this one by now.
    for _ in 0..OF_OTHERS_MAX {
        let mut null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        null.write_all(&[0]).and_then(|()| null.read(&mut [0])).unwrap();
    }
    let mark = |path: &str| assert!(!Path::new(path).exists());
    mark(BEGIN);
    let done = run(db, dir.path(), open, &mut committed);
    mark(END);
    if !fails {
        done.as_ref().unwrap();
    }
    let again = open(dir.path(), open_db(&storage).unwrap()).unwrap();
    check(&*again, dir.path(), &committed, &format!("{done:?}"));
}

/// The list of calls of one scene, or what it said of itself if it did not end well.
fn traced(name: &str, fault: Option<(&str, usize)>) -> Result<String, String> {
    let dir = tempfile::TempDir::new().unwrap();
    let log: PathBuf = dir.path().join("calls");
    let mut command = Command::new("strace");
    command.args(["--follow-forks", "--quiet=all", "-e", &format!("trace=statx,{CALLS}"), "-o"]).arg(&log);
    if let Some((call, at)) = fault {
        command.args(["-e", &format!("inject={call}:error=EIO:when={at}")]).env(FAILS, "1");
    }
    command.arg(std::env::current_exe().unwrap()).args(["--exact", "files::any_call_on_files_may_fail_once"]);
    let output = command.env(SCENE, name).output().unwrap();
    let calls = fs::read_to_string(&log).unwrap();
    // The allocator reads a file at times, and at others does not; the call that failed is the judge's then.
    let (failed, end) = (calls.find("(INJECTED)"), calls.find(END));
    if output.status.success() || matches!((failed, end), (Some(failed), Some(end)) if failed > end) {
        return Ok(calls);
    }
    Err(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// The calls of a scene: by name, the how many-th of its thread each is. strace counts by thread as well.
fn calls_of(log: &str) -> BTreeMap<String, BTreeSet<usize>> {
    let lines: Vec<(&str, &str)> =
        log.lines().filter_map(|line| line.split_once(char::is_whitespace)).collect();
    let at =
        |mark: &str| lines.iter().position(|(_, call)| call.contains(mark)).expect("the scene is played");
    let (begin, end) = (at(BEGIN), at(END));
    let thread = lines[begin].0;
    let mut counts = BTreeMap::<(&str, &str), usize>::new();
    let mut within = BTreeMap::<String, BTreeSet<usize>>::new();
    for (place, (of, call)) in lines.iter().enumerate() {
        // What was interrupted by another thread goes on in a line of its own.
        let name = call.trim_start().split_once('(').map(|(name, _)| name);
        let Some(name) = name.filter(|_| !call.contains("resumed>")) else { continue };
        let count = counts.entry((of, name)).or_default();
        *count += 1;
        // What strace has no name for it shows in any case, and cannot have fail.
        let is_asked_for = name != "statx" && !name.starts_with("syscall_");
        if *of == thread && (begin..end).contains(&place) && is_asked_for {
            within.entry(name.to_owned()).or_default().insert(*count);
        }
    }
    let most = |(of, name): &(&str, &str)| *of != thread && within.contains_key(*name);
    assert!(counts.iter().all(|(key, count)| !most(key) || *count < OF_OTHERS_MAX), "{counts:?}");
    within
}
