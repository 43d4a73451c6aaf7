/* The minimum that a container costs the kernel: a clone into new namespaces, an overlay, three mounts, pivot_root,
 * the masks of /proc and /sys, exec, exit, wait. Prints the microseconds of each round.
 *
 * usage: floor ROUNDS with-network|without-network LOWER SCRATCH PROGRAM [mask:PATH|readonly:PATH]...
 *
 * Paths that do not exist are skipped, as by the runtime.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        _exit(9);
    }
}

static double now_us(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1e6 + time.tv_nsec / 1e3;
}

/* A file is covered by the null device, a directory by an empty file system: one, bound to all of them. */
static void mask(const char *path) {
    static const char *empty;
    struct stat found;
    if (stat(path, &found)) return;
    if (!S_ISDIR(found.st_mode)) {
        must(mount("/dev/null", path, 0, MS_BIND, 0), path);
    } else if (empty) {
        must(mount(empty, path, 0, MS_BIND, 0), path);
    } else {
        must(mount("tmpfs", path, "tmpfs", MS_RDONLY, "size=0k"), path);
        empty = path;
    }
}

static void make_read_only(const char *path) {
    if (access(path, F_OK)) return;
    must(mount(path, path, 0, MS_BIND | MS_REC, 0), path);
    must(mount(0, path, 0, MS_REMOUNT | MS_BIND | MS_RDONLY, 0), path);
}

static void hide(char **what) {
    if (*what) must(mknod("/dev/null", S_IFCHR | 0666, makedev(1, 3)), "null");
    for (; *what; what++) {
        char *path = strchr(*what, ':') + 1;
        if (**what == 'm') mask(path);
        else make_read_only(path);
    }
}

static void contain(const char *scratch, const char *options, char *program, char **hidden) {
    must(chdir(scratch), "chdir");
    must(mount(0, "/", 0, MS_SLAVE | MS_REC, 0), "slave");
    must(mount("overlay", "merged", "overlay", 0, options), "overlay");
    must(mount("proc", "merged/proc", "proc", 0, 0), "proc");
    must(mount("tmpfs", "merged/dev", "tmpfs", 0, "size=64k"), "tmpfs");
    must(mount("sysfs", "merged/sys", "sysfs", MS_RDONLY, 0), "sysfs");
    must(chdir("merged"), "chdir");
    must(syscall(SYS_pivot_root, ".", "."), "pivot_root");
    must(umount2(".", MNT_DETACH), "umount");
    must(chdir("/"), "chdir");
    hide(hidden);
    char *args[] = {program, 0};
    must(execv(program, args), "exec");
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    long flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | SIGCHLD;
    if (!strcmp(argv[2], "with-network")) flags |= CLONE_NEWNET;
    for (int round = 0; round < atoi(argv[1]); round++) {
        /* Directories are not part of what is measured. */
        char name[64], upper[4096], work[4096], options[16384];
        snprintf(name, sizeof name, "%d", round);
        snprintf(upper, sizeof upper, "%s/upper%s", argv[4], name);
        snprintf(work, sizeof work, "%s/work%s", argv[4], name);
        must(mkdir(upper, 0755), upper);
        must(mkdir(work, 0755), work);
        snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s,workdir=%s", argv[3], upper, work);
        double begin = now_us();
        long pid = syscall(SYS_clone, flags, 0, 0, 0, 0);
        must(pid, "clone");
        if (!pid) contain(argv[4], options, argv[5], argv + 6);
        int status;
        must(waitpid(pid, &status, 0), "wait");
        double end = now_us();
        if (status) return 1;
        printf("%.0f\n", end - begin);
    }
    return 0;
}
