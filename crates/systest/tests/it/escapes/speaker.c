/* Speaks in place of whoever enters: takes its socket, and says that the process whose number it is told was born. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* More processes than ever are born between two looks. */
enum { AHEAD = 4, FDS = 24 };

static int is_channel(int fd) {
    int kind = 0;
    socklen_t len = sizeof kind;
    return !getsockopt(fd, SOL_SOCKET, SO_TYPE, &kind, &len) && kind == SOCK_SEQPACKET;
}

static int speak(int process, const char *word, int len) {
    for (int number = 3; number < FDS; number++) {
        int fd = syscall(SYS_pidfd_getfd, process, number, 0);
        if (fd < 0) continue;
        int spoken = is_channel(fd) && write(fd, word, len) == len;
        close(fd);
        if (spoken) return 1;
    }
    return 0;
}

int main(int argc, char **argv) {
    char word[32];
    int len = snprintf(word, sizeof word, "B%s", argv[1]);
    int spoken = open("/spoken", O_CREAT | O_WRONLY | O_APPEND, 0644);
    for (int next = 2;; ) {
        for (int pid = next; pid < next + AHEAD; pid++) {
            int process = syscall(SYS_pidfd_open, pid, 0);
            if (process < 0) continue;
            for (int tries = 0; tries < 50; tries++) {
                if (!speak(process, word, len)) continue;
                write(spoken, "x", 1);
                break;
            }
            close(process);
            next = pid + 1;
        }
    }
}
