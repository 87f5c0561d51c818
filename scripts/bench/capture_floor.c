/* What the kernel alone takes for a hybrid capture: the least that any one of that kind can cost here.
 *
 *   capture_floor NOTIFY TRACE WORD...   runs WORD... under two seccomp programs (struct sock_filter[] in
 *                                        files): NOTIFY has a listener, what TRACE stops is traced
 *
 * Every notification is answered and every stop is left at once: no argument is read, nothing is
 * written down, nobody is told. Stops are left as the engine leaves them, a call that was stopped at
 * its entry again at its exit, since that is where results are. Exit status: the command's, or 125.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/ptrace.h>
#include <linux/seccomp.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS _IOW('!', 4, __u64)
#endif
enum {
    MOST = 4096,
    OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
              PTRACE_O_TRACEEXEC | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL,
};

static int listener;

static void fail(const char *what) { perror(what); _exit(125); }

static int install(const char *path, unsigned flags) {
    static struct sock_filter code[MOST];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t size = file < 0 ? -1 : read(file, code, sizeof code);
    if (size <= 0) fail(path);
    close(file);
    struct sock_fprog program = {size / sizeof *code, code};
    int fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    if (fd < 0) fail("seccomp");
    return fd;
}

static void *answer(void *unused) {
    struct { struct seccomp_notif notif; char more[64]; } asked;
    struct { struct seccomp_notif_resp resp; char more[64]; } said;
    struct pollfd waiting = {listener, POLLIN, 0};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1ul);
    for (;;) {
        memset(&asked, 0, sizeof asked);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked.notif)) {
            if (errno == ENOENT && poll(&waiting, 1, 0) > 0 && waiting.revents & POLLHUP) return unused;
            continue;
        }
        memset(&said, 0, sizeof said);
        said.resp.id = asked.notif.id;
        said.resp.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &said.resp);
    }
}

/* Until nobody is left; the status of `command`. */
static int trace(pid_t command) {
    int status, last = 0;
    for (pid_t tid; (tid = wait4(-1, &status, __WALL, NULL)) > 0;) {
        if (!WIFSTOPPED(status)) {
            if (tid == command) last = status;
            continue;
        }
        int event = status >> 16, signal = WSTOPSIG(status);
        if (event == PTRACE_EVENT_SECCOMP) ptrace(PTRACE_SYSCALL, tid, NULL, NULL);
        else ptrace(PTRACE_CONT, tid, NULL, (void *)(long)(event || signal == (SIGTRAP | 0x80) ? 0 : signal));
    }
    return last;
}

int main(int argc, char **argv) {
    int ends[2], number = -1;
    pthread_t thread;
    if (argc < 4 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) fail("capture_floor");
    pid_t command = fork();
    if (!command) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        number = install(argv[1], SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
        if (write(ends[1], &number, sizeof number) != sizeof number || read(ends[1], &number, 1) != 1) _exit(125);
        install(argv[2], 0);
        execvp(argv[3], argv + 3);
        fail(argv[3]);
    }
    close(ends[1]);
    if (read(ends[0], &number, sizeof number) != sizeof number) fail("no listener");
    listener = syscall(SYS_pidfd_getfd, syscall(SYS_pidfd_open, command, 0), number, 0);
    if (listener < 0) fail("pidfd_getfd");
    if (ptrace(PTRACE_SEIZE, command, NULL, (void *)(long)OPTIONS)) fail("seize");
    if (pthread_create(&thread, NULL, answer, NULL) || write(ends[0], "g", 1) != 1) fail("start");
    int status = trace(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
