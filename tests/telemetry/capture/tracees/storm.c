/* A signal every 50 µs while calls are made: none may be lost, doubled or change its result.
 * argv[1]: `restart` (SA_RESTART) or `interrupt`; argv[2]: how many opens.
 *
 * Under a tracer a signal takes longer than the timer's period, so that nothing would move any
 * more: the timer stops after a number of signals. */
#include "tell.h"
#include <sys/time.h>

static volatile sig_atomic_t signals;
static void counted(int number) {
    (void)number;
    if (++signals >= 3000) setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL);
}

static void every_us(int us) {
    struct itimerval every = {{0, us}, {0, us}};
    signals = 0;
    setitimer(ITIMER_REAL, &every, NULL);
}

/* Blocks until the writer comes, many signals later; each end that the program sees is told. */
static void slow_open(int restart) {
    int ends[2];
    WANT(0, DO(mknodat, P("fifo"), NULL, AT_FDCWD, "fifo", S_IFIFO | 0600, 0));
    WANT(0, DO(pipe2, NULL, NULL, ends, 0));
    pid_t pid = fork();
    if (!pid) { /* a timer is not inherited */
        char byte;
        close(ends[1]);
        usleep(20000);
        long fd = DO(openat, P("fifo"), NULL, AT_FDCWD, "fifo", O_WRONLY);
        must("fifo", fd);
        WANT(0, read(ends[0], &byte, 1));
        leave(0);
    }
    forked(pid);
    close(ends[0]);
    long fd, interrupted = -1;
    every_us(1000); /* not before the fork: it is begun again at each signal */
    do {
        fd = DO(openat, P("fifo"), NULL, AT_FDCWD, "fifo", O_RDONLY);
        interrupted++;
    } while (fd == -EINTR);
    every_us(0);
    must("fifo", fd);
    if (restart ? interrupted : !interrupted) broken("interruptions", interrupted);
    close(ends[1]);
    ended(pid, 0);
}

int main(int argc, char **argv) {
    BEGIN();
    int restart = argc > 1 && !strcmp(argv[1], "restart");
    long times = argc > 2 ? atol(argv[2]) : 200;
    struct sigaction action = {.sa_handler = counted, .sa_flags = restart ? SA_RESTART : 0};
    sigaction(SIGALRM, &action, NULL);
    every_us(50);
    for (long i = 0; i < times; i++) {
        char name[32];
        snprintf(name, sizeof name, "storm-%ld", i % 11);
        long fd = DO(openat, P(name), NULL, AT_FDCWD, name, O_RDWR | (i & 1 ? 0 : O_CREAT), 0600);
        if (fd >= 0) close((int)fd);
        fd = DO(openat, P("."), NULL, AT_FDCWD, ".", O_RDONLY);
        close((int)must("an open that no signal interrupts", fd));
        WANT(-ENOENT, DO(unlinkat, P("absent"), NULL, AT_FDCWD, "absent", 0));
    }
    if (!signals) broken("no signal came", 0);
    every_us(0);
    slow_open(restart);
    leave(0);
}
