/* Threads. argv[1]: `open`: argv[2] threads, each opens a file of its own; `cwd`: one changes the
 * directory of all; `exec`: one that is not the leader becomes another program, argv[2] others
 * wait; `leader`: the leader ends first, another thread goes on. */
#include "tell.h"
#include <malloc.h>
#include <semaphore.h>

struct thread {
    pthread_t handle;
    int number, tid;
    sem_t has_tid;
};
static pthread_barrier_t all_are_there;

static void born(struct thread *thread, int number, void *(*run)(void *)) {
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 128 * 1024);
    thread->number = number;
    sem_init(&thread->has_tid, 0, 0);
    int failed = pthread_create(&thread->handle, &attributes, run, thread);
    if (failed) broken("pthread_create", failed);
    pthread_attr_destroy(&attributes);
    while (sem_wait(&thread->has_tid)) continue;
    TELL(.kind = "fork", .result = thread->tid);
}
static void arrived(struct thread *thread) {
    thread->tid = my_tid();
    sem_post(&thread->has_tid);
}
static void *left(void) {
    TELL(.kind = "exit", .result = 0);
    return NULL;
}

static void *opens(void *given) {
    struct thread *thread = given;
    char name[32];
    arrived(thread);
    pthread_barrier_wait(&all_are_there);
    snprintf(name, sizeof name, "thread-%d", thread->number);
    for (int i = 0; i < 3; i++) {
        long fd = DO(openat, P(name), NULL, AT_FDCWD, name, O_RDWR | O_CREAT, 0600);
        close((int)must("open", fd));
    }
    WANT(0, DO(unlinkat, P(name), NULL, AT_FDCWD, name, 0));
    return left();
}

static void *moves(void *given) {
    arrived(given);
    WANT(0, DO(mkdirat, P("moved"), NULL, AT_FDCWD, "moved", 0700));
    WANT(0, DO(chdir, P("moved"), NULL, "moved"));
    return left();
}

static void *__attribute__((noreturn)) waits(void *given) {
    arrived(given);
    pthread_barrier_wait(&all_are_there);
    for (;;) pause();
}

static void *becomes(void *given) {
    static char *words[] = {"./target", "open=target", NULL};
    arrived(given);
    pthread_barrier_wait(&all_are_there);
    DO(openat, P("absent"), NULL, AT_FDCWD, "absent", O_RDONLY);
    WANT(-ENOENT, DO(execve, P("./absent"), NULL, "./absent", words, environ));
    /* whoever calls is gone afterwards: the new program has the leader's number */
    TELL(.kind = "exec", .tid = getpid(), .path = P("./target"), .argv = words);
    execve("./target", words, environ);
    broken("execve", -errno);
}

static void *goes_on(void *given) {
    arrived(given);
    pthread_barrier_wait(&all_are_there);
    /* until the leader is a zombie */
    char name[64], state[512];
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", getpid());
    for (;;) {
        int fd = (int)must("stat", syscall(SYS_openat, AT_FDCWD, name, O_RDONLY));
        TELL(.kind = "call", .call = "openat", .path = name, .result = fd);
        ssize_t size = read(fd, state, sizeof state - 1);
        close(fd);
        state[size > 0 ? size : 0] = 0;
        char *end = strrchr(state, ')');
        if (end && end[2] == 'Z') break;
        usleep(1000);
    }
    DO(openat, P("late"), NULL, AT_FDCWD, "late", O_WRONLY | O_CREAT, 0600);
    /* the status of the process is told by its leader's number, when the last thread is gone */
    TELL(.kind = "exit", .result = 4 << 8);
    TELL(.kind = "exit", .tid = getpid(), .result = 4 << 8);
    syscall(SYS_exit_group, 4);
    broken("exit_group", 0);
}

int main(int argc, char **argv) {
    BEGIN();
    mallopt(M_ARENA_MAX, 1); /* a second arena is sized by a file of /sys, which would be opened */
    const char *which = argc > 1 ? argv[1] : "";
    int count = argc > 2 ? atoi(argv[2]) : 1;
    struct thread *threads = calloc((size_t)count + 1, sizeof *threads);
    if (!strcmp(which, "open")) {
        pthread_barrier_init(&all_are_there, NULL, (unsigned)count);
        for (int i = 0; i < count; i++) born(&threads[i], i, opens);
        for (int i = 0; i < count; i++) pthread_join(threads[i].handle, NULL);
    } else if (!strcmp(which, "cwd")) {
        born(threads, 0, moves);
        pthread_join(threads->handle, NULL);
        strcat(here, "/moved");
        DO(openat, P("x"), NULL, AT_FDCWD, "x", O_WRONLY | O_CREAT, 0600);
    } else if (!strcmp(which, "exec")) {
        pthread_barrier_init(&all_are_there, NULL, (unsigned)count + 2);
        for (int i = 0; i < count; i++) born(&threads[i], i, waits);
        born(&threads[count], count, becomes);
        pthread_barrier_wait(&all_are_there);
        for (;;) pause();
    } else if (!strcmp(which, "leader")) {
        pthread_barrier_init(&all_are_there, NULL, 2);
        born(threads, 0, goes_on);
        pthread_barrier_wait(&all_are_there);
        syscall(SYS_exit, 0);
    } else {
        broken("no such way", 0);
    }
    leave(0);
}
