/* Making processes, each in its own way. argv[1]: which; argv[2]: how often. */
#include "tell.h"
#include <linux/sched.h>
#include <spawn.h>

static char *target_words[] = {"./target", "open=target", NULL};

static void open_here(const char *name) {
    long fd = DO(openat, P(name), NULL, AT_FDCWD, name, O_WRONLY | O_CREAT, 0600);
    if (fd >= 0) close((int)fd);
}

static void child_by_fork(const char *name) {
    pid_t pid = fork();
    if (!pid) {
        open_here(name);
        leave(3);
    }
    forked(pid);
    ended(pid, 3 << 8);
}

static void child_that_execs(void) {
    pid_t pid = fork();
    if (!pid) become("./target", target_words);
    forked(pid);
    ended(pid, 0);
}

static void child_by_vfork(void) {
    pid_t pid = vfork();
    if (!pid) {
        /* the parent's memory: nothing is changed here that it reads */
        TELL(.kind = "exec", .path = P("./target"), .argv = target_words);
        execve("./target", target_words, environ);
        _exit(BROKEN);
    }
    forked(pid);
    ended(pid, 0);
    pid = vfork();
    if (!pid) {
        TELL(.kind = "exit", .result = 7 << 8);
        _exit(7);
    }
    forked(pid);
    ended(pid, 7 << 8);
}

/* Not the words: the child's lines must lie between, and a parent waits only for the exec. */
static void child_by_spawn(void) {
    pid_t pid;
    WANT(0, posix_spawn(&pid, "./mute", NULL, NULL, (char *[]){"./mute", NULL}, environ));
    ended(pid, 5 << 8);
    forked(pid);
    TELL(.kind = "exec", .tid = pid, .path = P("./mute"), .argv = (char *[]){"./mute", NULL});
    TELL(.kind = "exit", .tid = pid, .result = 5 << 8);
}

static void child_by_clone3(void) {
    struct clone_args args = {.exit_signal = SIGCHLD};
    long pid = syscall(SYS_clone3, &args, sizeof args);
    if (!pid) {
        open_here("clone3");
        leave(0);
    }
    if (pid < 0) {
        TELL(.kind = "call", .call = "clone3", .result = -errno);
        if (errno != ENOSYS) broken("clone3", -errno);
        return;
    }
    forked(pid);
    ended(pid, 0);
    /* one that the kernel refuses */
    args.flags = CLONE_THREAD;
    WANT(-EINVAL, DO(clone3, NULL, NULL, &args, sizeof args));
}

static void child_by_clone(unsigned long flags, const char *name) {
    long pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (!pid) {
        open_here(name);
        leave(0);
    }
    forked(pid);
    ended(pid, 0);
}

/* Its tracer is told to look away: what it does is to be recorded nevertheless. */
static void child_untraced(void) {
    long pid = syscall(SYS_clone, CLONE_UNTRACED | SIGCHLD, 0, 0, 0, 0);
    if (!pid) {
        long fd = syscall(SYS_openat, AT_FDCWD, "untraced", O_WRONLY | O_CREAT, 0600);
        TELL(.kind = "call", .call = "openat", .path = P("untraced"),
             .result = fd < 0 ? -errno : fd, .spot = "untraced");
        TELL(.kind = "exit", .result = 0, .spot = "untraced");
        _exit(0);
    }
    TELL(.kind = "fork", .result = must("clone", pid));
    ended(pid, 0);
}

/* The child goes on only when its parent has seen it continue: an end would hide that. */
static void stopped(void) {
    int ends[2], status;
    char byte;
    WANT(0, DO(pipe2, NULL, NULL, ends, 0));
    pid_t pid = fork();
    if (!pid) {
        /* a group of its own, with a parent in the session: an orphan ignores SIGTSTP */
        if (setpgid(0, 0)) broken("setpgid", -errno);
        open_here("before the stop");
        raise(SIGSTOP);
        WANT(1, read(ends[0], &byte, 1));
        open_here("after the stop");
        raise(SIGTSTP);
        WANT(1, read(ends[0], &byte, 1));
        leave(0);
    }
    forked(pid);
    for (int round = 0; round < 2; round++) {
        WANT(pid, waitpid(pid, &status, WUNTRACED));
        if (!WIFSTOPPED(status) || WSTOPSIG(status) != (round ? SIGTSTP : SIGSTOP))
            broken("stop", status);
        open_here("while it is stopped");
        WANT(0, kill(pid, SIGCONT));
        WANT(pid, waitpid(pid, &status, WCONTINUED));
        if (!WIFCONTINUED(status)) broken("continue", status);
        WANT(1, write(ends[1], "c", 1));
    }
    ended(pid, 0);
    close(ends[0]);
    close(ends[1]);
}

static void killed(void) {
    pid_t pid = fork();
    if (!pid) {
        open_here("before the kill");
        raise(SIGSTOP);
        broken("a stopped process runs", 0);
    }
    forked(pid);
    int status;
    WANT(pid, waitpid(pid, &status, WUNTRACED));
    WANT(0, kill(pid, SIGKILL));
    ended(pid, SIGKILL);
    TELL(.kind = "exit", .tid = pid, .result = SIGKILL);
    pid = fork();
    if (!pid) {
        signal(SIGSEGV, SIG_DFL);
        TELL(.kind = "exit", .result = SIGTERM);
        raise(SIGTERM);
        broken("a killed process runs", 0);
    }
    forked(pid);
    ended(pid, SIGTERM);
}

/* Double fork and setsid; what is left opens a file when all its forebears are gone. */
static void __attribute__((noreturn)) daemonised(void) {
    int ends[2];
    WANT(0, DO(pipe2, NULL, NULL, ends, 0));
    pid_t pid = fork();
    if (!pid) {
        if (setsid() < 0) broken("setsid", -errno);
        pid = fork();
        if (!pid) {
            char byte;
            close(ends[1]);
            WANT(0, read(ends[0], &byte, 1)); /* until no forebear is left */
            open_here("daemon");
            leave(0);
        }
        forked(pid);
        leave(0);
    }
    forked(pid);
    ended(pid, 0);
    leave(0);
}

static void many(long times) {
    for (long i = 0; i < times; i++) {
        pid_t pid = fork();
        if (!pid) leave(i & 63);
        forked(pid);
        ended(pid, (int)(i & 63) << 8);
    }
}

/* All at once, so that tasks are born and die on every processor at a time. */
static void crowd(long times) {
    for (long i = 0; i < times; i++) {
        pid_t pid = fork();
        if (!pid) {
            char name[32];
            snprintf(name, sizeof name, "crowd-%ld", i);
            open_here(name);
            leave(0);
        }
        forked(pid);
    }
    for (long i = 0; i < times; i++) WANT(1, wait(NULL) > 0);
}

/* A chain: each makes the next and ends without waiting for it. */
static void __attribute__((noreturn)) chain(long times) {
    for (long i = 0; i < times; i++) {
        pid_t pid = fork();
        if (pid) {
            forked(pid);
            leave(0);
        }
        open_here("chain");
    }
    leave(0);
}

int main(int argc, char **argv) {
    BEGIN();
    const char *which = argc > 1 ? argv[1] : "";
    long times = argc > 2 ? atol(argv[2]) : 1;
    for (long i = 0; i < times; i++) {
        if (!strcmp(which, "fork")) child_by_fork("fork");
        else if (!strcmp(which, "exec")) child_that_execs();
        else if (!strcmp(which, "vfork")) child_by_vfork();
        else if (!strcmp(which, "spawn")) child_by_spawn();
        else if (!strcmp(which, "clone3")) child_by_clone3();
        else if (!strcmp(which, "clone")) child_by_clone(0, "clone");
        else if (!strcmp(which, "parent")) child_by_clone(CLONE_FS | CLONE_FILES, "shares");
        else if (!strcmp(which, "untraced")) child_untraced();
        else if (!strcmp(which, "stop")) stopped();
        else if (!strcmp(which, "kill")) killed();
        else if (!strcmp(which, "daemon")) daemonised();
        else if (!strcmp(which, "many")) { many(times); break; }
        else if (!strcmp(which, "crowd")) { crowd(times); break; }
        else if (!strcmp(which, "chain")) chain(times);
        else broken("no such way", 0);
    }
    leave(0);
}
