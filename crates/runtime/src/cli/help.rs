//! The text of `--help`, for the program and for each command.
//!
//! It has the form of runc's help, which scripts parse: `NAME:`, `USAGE:`, `OPTIONS:`. Flags are stored as printed,
//! each with the newline before it: the shim links this, and must stay small.

/// The program's name, as it was called.
pub(super) struct Help<'a> {
    pub(super) program: &'a str,
}

struct Command {
    name: &'static str,
    about: &'static str,
    words: &'static str,
    /// Texts of flags, several of which are shared by commands.
    flags: &'static [&'static str],
}

const GLOBAL: &str = "
   --root DIR                         where states of containers are
   --log FILE                         write warnings and errors there too
   --log-format text|json             the form of these lines
   --debug                            tell each step
   --systemd-cgroup                   have systemd make the cgroups; cgroupsPath is SLICE:PREFIX:NAME
   --version, -v                      print the version
   --help, -h                         print this; behind a command, its flags";
const BUNDLE: &str = "
   --bundle, -b DIR                   the directory that has config.json (default: the working directory)";
const HAND_OVER: &str = "
   --console-socket PATH              a Unix socket that gets the terminal's master
   --pidfd-socket PATH                a Unix socket that gets a pidfd of the process
   --pid-file PATH                    write the process's number there";
const FDS: &str = "
   --preserve-fds N                   so many descriptors, from 3 on, go to the program (with those of LISTEN_FDS)";
const DETACH: &str = "
   --detach, -d                       do not wait for the process to end";
const CREATE: &str = "
   --no-pivot                         chroot into the root file system, for one on a ramdisk: what is below it is not shut away
   --no-new-keyring                   stay in the caller's session keyring";
const RUN: &str = "
   --keep                             keep the state of a container that has ended";
const EXEC: &str = "
   --tty, -t                          a terminal for the process
   --process, -p FILE                 a process.json that describes it; the other flags below do not count then
   --user, -u UID[:GID]               whom it runs as
   --additional-gids, -g GID          a further group; may be repeated
   --env, -e NAME=VALUE               a variable; may be repeated
   --cwd DIR                          its working directory
   --cap, -c NAME                     a further capability; may be repeated
   --no-new-privs                     it cannot get privileges by executing programs
   --apparmor PROFILE                 its AppArmor profile
   --process-label LABEL              its SELinux label
   --cgroup [CONTROLLER,…:]PATH       a cgroup below the container's to put it into; may be repeated
   --ignore-paused                    start it in a paused container too, where it stops at once";
const FORMAT: &str = "
   --format, -f table|json            how to print (default: table)";
const LIST: &str = "
   --quiet, -q                        print ids alone";
const KILL: &str = "
   --all, -a                          signal all processes of the container";
const DELETE: &str = "
   --force, -f                        kill what runs; no error if there is no such container";
const UPDATE: &str = "
   --resources, -r FILE               limits as in linux.resources, and no others; - is standard input
   --memory N                         bytes of memory; k, m, g and t count, -1 is no limit
   --memory-swap N                    bytes of memory and swap together; -1 is no limit
   --memory-reservation N             bytes that it is cut back to when memory gets scarce
   --cpu-quota N                      microseconds of each period
   --cpu-period N                     microseconds of a period
   --cpu-burst N                      microseconds that may be saved up
   --cpu-share N                      its share among others (1024 is one)
   --cpu-idle N                       1: run when nobody else wants to
   --cpu-rt-period N                  microseconds of a period of realtime
   --cpu-rt-runtime N                 microseconds of realtime in each
   --cpuset-cpus LIST                 processors, such as 0-2,5
   --cpuset-mems LIST                 memory nodes
   --blkio-weight N                   its share of the disks, from 10 to 1000
   --pids-limit N                     processes and threads; -1 is no limit
   --l3-cache-schema TEXT             parts of the cache, as resctrl has them
   --mem-bw-schema TEXT               parts of the memory's bandwidth, as resctrl has them";
const EVENTS: &str = "
   --interval DURATION                between two looks at the counters (default: 5s)
   --stats                            print the counters once";
const IMAGES: &str = "
   --image-path DIR                   where criu's images are (default: checkpoint)
   --work-path DIR                    where criu keeps its log and what it works with
   --tcp-established                  connections of TCP are part of it
   --ext-unix-sk                      Unix sockets to processes outside are part of it
   --shell-job                        it has the caller's terminal
   --file-locks                       locks of files are part of it
   --lazy-pages                       pages of memory come when they are used
   --auto-dedup                       pages that are in a parent's images too are freed
   --manage-cgroups-mode soft|full|strict|ignore
                                      what criu does with cgroups
   --empty-ns network                 leave out what is in this namespace";
const CHECKPOINT: &str = "
   --leave-running                    go on afterwards
   --pre-dump                         only the memory, for a checkpoint that names it as its parent
   --parent-path DIR                  images of an earlier one, relative to --image-path
   --page-server ADDRESS:PORT         send pages of memory there
   --status-fd N                      a descriptor that gets a zero byte when pages can be asked for
   --link-remap                       files that were deleted while open get a name for the time being
   --tcp-skip-in-flight               connections that are not yet accepted are left out";
const RESTORE: &str = "
   --lsm-profile TYPE:NAME            the AppArmor profile or SELinux label of its processes
   --lsm-mount-context LABEL          the SELinux label of its mounts";
const SPEC: &str = "
   --rootless                         for a caller without privileges";

const COMMANDS: &[Command] = &[
    Command {
        name: "checkpoint",
        about: "write a container that runs to files, by criu",
        words: "[OPTIONS] ID",
        flags: &[IMAGES, CHECKPOINT],
    },
    Command {
        name: "create",
        about: "make a container, whose program waits for start",
        words: "[OPTIONS] ID",
        flags: &[BUNDLE, HAND_OVER, FDS, CREATE],
    },
    Command {
        name: "delete",
        about: "remove what is left of a container",
        words: "[OPTIONS] ID",
        flags: &[DELETE],
    },
    Command {
        name: "events",
        about: "print counters, and each time that memory runs out, as lines of JSON",
        words: "[OPTIONS] ID",
        flags: &[EVENTS],
    },
    Command {
        name: "exec",
        about: "run a further process in a container",
        words: "[OPTIONS] ID COMMAND [ARGUMENT…]",
        flags: &[DETACH, EXEC, HAND_OVER, FDS],
    },
    Command { name: "features", about: "print what this runtime can do, as JSON", words: "", flags: &[] },
    Command {
        name: "kill",
        about: "send a signal, SIGTERM if none is named, to a container's first process",
        words: "[OPTIONS] ID [SIGNAL]",
        flags: &[KILL],
    },
    Command { name: "list", about: "list containers", words: "[OPTIONS]", flags: &[FORMAT, LIST] },
    Command {
        name: "pause",
        about: "stop all processes of a container where they are",
        words: "ID",
        flags: &[],
    },
    Command {
        name: "ps",
        about: "show the processes of a container",
        words: "[OPTIONS] ID [ARGUMENTS OF ps]",
        flags: &[FORMAT],
    },
    Command {
        name: "restore",
        about: "make a container from what checkpoint wrote",
        words: "[OPTIONS] ID",
        flags: &[BUNDLE, DETACH, HAND_OVER, IMAGES, RESTORE],
    },
    Command { name: "resume", about: "let a paused container go on", words: "ID", flags: &[] },
    Command {
        name: "run",
        about: "make a container and start it, and wait for its end",
        words: "[OPTIONS] ID",
        flags: &[BUNDLE, DETACH, RUN, HAND_OVER, FDS, CREATE],
    },
    Command {
        name: "spec",
        about: "write a config.json to begin with",
        words: "[OPTIONS]",
        flags: &[BUNDLE, SPEC],
    },
    Command { name: "start", about: "let a created container's program begin", words: "ID", flags: &[] },
    Command { name: "state", about: "print the state of a container, as JSON", words: "ID", flags: &[] },
    Command {
        name: "update",
        about: "change limits of a container",
        words: "[OPTIONS] ID",
        flags: &[UPDATE],
    },
];

impl Help<'_> {
    /// The help of the program.
    pub(super) fn all(&self) -> String {
        let program = self.program;
        let mut text = format!(
            "NAME:\n   {program} - Open Container Initiative runtime\n\nUSAGE:\n   {program} [GLOBAL OPTIONS] COMMAND \
             [OPTIONS] [ARGUMENTS]\n\nCOMMANDS:\n"
        );
        for Command { name, about, .. } in COMMANDS {
            text.push_str(&format!("   {name:<13}{about}\n"));
        }
        text.push_str("\nGLOBAL OPTIONS:");
        text.push_str(GLOBAL);
        text
    }

    /// The help of one command; None if it is unknown.
    pub(super) fn of(&self, name: &str) -> Option<String> {
        let Command { about, words, flags, .. } = COMMANDS.iter().find(|command| command.name == name)?;
        let program = self.program;
        let mut text = format!("NAME:\n   {program} {name} - {about}\n\nUSAGE:\n   {program} {name} {words}");
        text.truncate(text.trim_end().len());
        if !flags.is_empty() {
            text.push_str("\n\nOPTIONS:");
            flags.iter().for_each(|flags| text.push_str(flags));
        }
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_has_runcs_form() {
        let help = Help { program: "runc" };
        assert!(help.all().starts_with("NAME:\n   runc - Open Container Initiative runtime\n"));
        let exec = help.of("exec").unwrap();
        assert!(exec.starts_with("NAME:\n   runc exec - "), "{exec}");
        assert!(exec.contains("USAGE:\n   runc exec [OPTIONS] ID COMMAND"), "{exec}");
        assert!(exec.contains("   --user, -u UID[:GID]               whom it runs as\n"), "{exec}");
        assert!(!help.of("features").unwrap().contains("OPTIONS"));
        assert_eq!(help.of("foo"), None);
    }
}
