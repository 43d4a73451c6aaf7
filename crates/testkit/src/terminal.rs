//! A terminal with somebody at it.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::DEADLINE;

/// A program on a terminal, and who looks at it and types.
pub struct Terminal {
    keys: fs::File,
    command: Child,
    seen: String,
}

impl Terminal {
    /// Starts a program that has the terminal for its streams, and no more of it: what is typed are bytes, and nothing
    /// is a signal.
    pub fn run(command: Command) -> Terminal {
        Terminal::start(command, 24, 80)
    }

    /// Starts a program in a session of its own whose terminal this is, as a shell on it would: it hears of a change
    /// of its size.
    pub fn run_session(command: &Command, rows: u16, columns: u16) -> Terminal {
        let mut session = Command::new("setsid");
        session
            .args(["--ctty", "--wait"].map(OsStr::new))
            .arg(command.get_program())
            .args(command.get_args());
        session.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        Terminal::start(session, rows, columns)
    }

    fn start(mut command: Command, rows: u16, columns: u16) -> Terminal {
        let keys = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        pty::grantpt(&keys).and_then(|()| pty::unlockpt(&keys)).expect("a terminal of our own");
        let name = pty::ptsname(&keys, Vec::new()).expect("it has a name");
        let name = name.to_str().expect("ASCII");
        let open = || fs::File::options().read(true).write(true).open(name).expect("its other end");
        command.stdin(open()).stdout(open()).stderr(open());
        let keys = fs::File::from(keys);
        set_size(&keys, rows, columns);
        let child = command.spawn().expect("the program starts");
        // Ours of the other end are closed with the command: it ends when the program does.
        drop(command);
        Terminal { keys, command: child, seen: String::new() }
    }

    /// Reads until this is on the screen.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let mut piece = [0; 1024];
        let end = Instant::now() + DEADLINE;
        while !self.seen.contains(text) {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).expect("a minute at most");
            let ready = poll(&mut [PollFd::new(&self.keys, PollFlags::IN)], Some(&left));
            assert!(ready != Ok(0), "not within {DEADLINE:?}: {text:?}: {:?}", self.seen);
            let len = self.keys.read(&mut piece).unwrap_or(0);
            assert!(len > 0, "the program ended before it said {text:?}: {:?}", self.seen);
            self.seen.push_str(&String::from_utf8_lossy(&piece[..len]));
        }
    }

    /// What was on the screen so far.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    pub fn type_in(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).expect("the terminal is there");
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keys, rows, columns);
    }

    /// The program's exit code, and whether the terminal shows what is typed.
    pub fn end(mut self) -> (Option<i32>, bool) {
        // Who says more than a terminal holds waits for somebody to read it.
        while let Ok(1..) = self.keys.read(&mut [0; 1024]) {}
        let code = self.command.wait().expect("a child of ours").code();
        let modes = tcgetattr(&self.keys).expect("a terminal").local_modes;
        (code, modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // One that has ended is a child of ours until it is waited for.
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

fn set_size(keys: &fs::File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(keys, size).expect("a terminal");
}
