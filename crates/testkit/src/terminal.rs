//! Programs on a pseudoterminal.

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pty::{self, OpenptFlags};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::DEADLINE;

/// A program on a pseudoterminal, with what it has printed, and the keyboard's end.
pub struct Terminal {
    keys: fs::File,
    command: Child,
    seen: String,
}

impl Terminal {
    /// Starts a program with the terminal as its streams, but not as its controlling terminal: keys arrive as bytes,
    /// and none becomes a signal.
    pub fn run(command: Command) -> Terminal {
        Terminal::start(command, 24, 80)
    }

    /// Starts a program in a new session with this controlling terminal, as a shell does: it gets SIGWINCH when the
    /// size changes.
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
        // Closes our descriptors of the program's side, so that reading ends when the program does.
        drop(command);
        Terminal { keys, command: child, seen: String::new() }
    }

    /// Reads until `text` has been printed.
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

    /// The output so far.
    pub fn seen(&self) -> &str {
        &self.seen
    }

    pub fn type_in(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).expect("the terminal is there");
    }

    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keys, rows, columns);
    }

    /// Waits for the program's end. Returns its exit code, and whether the terminal echoes.
    pub fn end(mut self) -> (Option<i32>, bool) {
        // A program that prints more than the terminal's buffer holds waits for a reader.
        while let Ok(1..) = self.keys.read(&mut [0; 1024]) {}
        let code = self.command.wait().expect("a child of ours").code();
        let modes = tcgetattr(&self.keys).expect("a terminal").local_modes;
        (code, modes.contains(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Reaps the program; it may have ended.
        let _ = self.command.kill();
        let _ = self.command.wait();
    }
}

fn set_size(keys: &fs::File, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(keys, size).expect("a terminal");
}
