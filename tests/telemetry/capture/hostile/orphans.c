/* A subreaper whose child is killed in the middle of making children, argv[1] times. Each of those
 * ends at once; a child of them that is never let go keeps this from ending. argv[2]: `threads`, the
 * child makes threads as well; `exec`, who has lost its parent runs /bin/true, and is killed a moment
 * later. */
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void *nothing(void *unused) { return unused; }

static void *make(void *unused)
{
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, nothing, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return unused;
}

int main(int argc, char **argv)
{
    int times = argc > 1 ? atoi(argv[1]) : 100;
    bool threads = argc > 2 && !strcmp(argv[2], "threads"), exec = argc > 2 && !strcmp(argv[2], "exec");
    pid_t us = getpid(), pids[times];
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    for (int i = 0; i < times; i++) {
        pid_t pid = pids[i] = fork();
        if (!pid) {
            pthread_t thread;
            setpgid(0, 0);
            if (threads)
                pthread_create(&thread, NULL, make, NULL);
            for (;;) {
                pid_t child = fork();
                if (!child && exec && getppid() == us)
                    execl("/bin/true", "true", NULL);
                if (!child)
                    _exit(0);
                if (child > 0)
                    waitpid(child, NULL, 0);
            }
        }
        if (pid < 0)
            return 1;
        usleep(1000 + rand() % 3000);
        kill(pid, SIGKILL);
        while (!exec && wait(NULL) > 0)
            ;
    }
    if (exec)
        usleep(500000);
    for (int i = 0; exec && i < times; i++)
        kill(-pids[i], SIGKILL);
    while (wait(NULL) > 0)
        ;
    if (exec) /* somebody is still there */
        usleep(200000);
    return 0;
}
