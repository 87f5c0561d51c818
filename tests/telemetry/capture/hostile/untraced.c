/* Tries to have a child that nobody traces. argv[1]: the way; argv[2]: how often. Ends with 1 when a
 * child found no tracer of its own. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { UNTRACED = 0x00800000 };
static struct { uint64_t flags, more[10]; } volatile args;
static volatile int stop;

static void *flip(void *unused)
{
    while (!stop)
        args.flags ^= UNTRACED;
    return unused;
}

/* 0: traced, 1: not, 2: it cannot be told */
static int look(void)
{
    char line[256];
    int tracer = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "TracerPid: %d", &tracer) == 1)
            break;
    return tracer < 0 ? 2 : tracer == 0;
}

#ifdef __x86_64__
static long int80(long number, long a)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(number), "b"(a), "c"(0), "d"(0), "S"(0), "D"(0)
                     : "r8", "r9", "r10", "r11", "memory");
    return (int)result;
}
#else
static long int80(long number, long a) { return (void)number, (void)a, -1; }
#endif

int main(int argc, char **argv)
{
    int times = argc > 2 ? atoi(argv[2]) : 1, found = 0, made = 0;
    const char *way = argv[1];
    pthread_t thread;
    args.flags = 0;
    args.more[3] = SIGCHLD; /* exit_signal */
    if (!strcmp(way, "clone3-race"))
        pthread_create(&thread, NULL, flip, NULL);
    for (int i = 0; i < times; i++) {
        long pid;
        if (!strcmp(way, "clone"))
            pid = syscall(SYS_clone, (long)UNTRACED | SIGCHLD, 0, 0, 0, 0);
        else if (!strcmp(way, "int80-clone"))
            pid = int80(120, UNTRACED | SIGCHLD);
        else {
            if (!strcmp(way, "clone3"))
                args.flags = UNTRACED;
            pid = syscall(SYS_clone3, &args, 88);
        }
        if (pid == 0)
            _exit(look());
        if (pid < 0)
            continue;
        made++;
        int status;
        waitpid(pid, &status, 0);
        found += !WIFEXITED(status) || WEXITSTATUS(status) == 1;
    }
    stop = 1;
    printf("%d made, %d untraced\n", made, found);
    return found > 0;
}
