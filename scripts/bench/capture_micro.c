/* Small acts, many times: what a capture costs is the slope between two counts of them.
 *
 *   open FILE N          opens FILE for reading and closes it
 *   write DIRECTORY N    makes a file there, closes it, removes it
 *   exec N               forks, and the child becomes this program (`nothing`)
 *   stat FILE N          stats FILE
 *   threads DIRECTORY N  four threads open N files there (h000000 ...), each a quarter of them
 *   peak REPORT WORD...  runs WORD..., writes its peak of memory in KiB to REPORT
 *   nothing
 *
 * With CAPTURE_MICRO_TIME=FILE in the environment it writes there how many seconds the acts took.
 * Linked statically, so that an exec of it opens nothing. Status 1: an act failed.
 * `peak`: exec keeps the mark of the memory that it leaves (getrusage(2)), so what a small program
 * forks has a mark of its own, and what a large one spawns has not.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 4 };

static const char *directory;
static long count;

static void fail(const char *what) { perror(what); _exit(1); }

static void open_and_close(const char *path, int flags) {
    int fd = open(path, flags, 0644);
    if (fd < 0) fail(path);
    close(fd);
}

static void *quarter(void *first) {
    char path[4096];
    for (long i = (long)first; i < count; i += THREADS) {
        snprintf(path, sizeof path, "%s/h%06ld", directory, i);
        open_and_close(path, O_RDONLY | O_CLOEXEC);
    }
    return NULL;
}

static void threads(void) {
    pthread_t all[THREADS];
    for (long i = 0; i < THREADS; i++)
        if (pthread_create(&all[i], NULL, quarter, (void *)i)) fail("pthread_create");
    for (int i = 0; i < THREADS; i++) pthread_join(all[i], NULL);
}

static int ended(pid_t pid, struct rusage *usage) {
    int status;
    if (pid < 0 || wait4(pid, &status, 0, usage) != pid) fail("wait4");
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static int peak(char **words) {
    struct rusage usage;
    pid_t pid = fork();
    if (pid == 0) { execvp(words[1], words + 1); fail(words[1]); }
    int status = ended(pid, &usage);
    FILE *report = fopen(words[0], "w");
    if (!report) fail(words[0]);
    fprintf(report, "%ld\n", usage.ru_maxrss);
    return fclose(report) ? 1 : status;
}

static int acts(const char *self, const char *verb, const char *where) {
    char path[4096];
    struct stat found;
    if (!strcmp(verb, "exec")) {
        for (; count; count--) {
            pid_t pid = fork();
            if (pid == 0) { execl(self, self, "nothing", (char *)NULL); fail(self); }
            if (ended(pid, NULL)) return 1;
        }
    } else if (!strcmp(verb, "threads")) {
        threads();
    } else if (!strcmp(verb, "open")) {
        while (count--) open_and_close(where, O_RDONLY | O_CLOEXEC);
    } else if (!strcmp(verb, "write")) {
        snprintf(path, sizeof path, "%s/written", where);
        while (count--) {
            open_and_close(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
            if (unlink(path)) fail(path);
        }
    } else if (!strcmp(verb, "stat")) {
        while (count--) if (stat(where, &found)) fail(where);
    } else {
        return 2;
    }
    return 0;
}

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "", *report = getenv("CAPTURE_MICRO_TIME");
    struct timespec begin, end;
    if (!strcmp(verb, "nothing")) return 0;
    if (!strcmp(verb, "peak") && argc > 3) return peak(argv + 2);
    if (argc != (strcmp(verb, "exec") ? 4 : 3)) return 2;
    directory = argv[2];
    count = atol(argv[argc - 1]);
    clock_gettime(CLOCK_MONOTONIC, &begin);
    int status = acts(argv[0], verb, argv[2]);
    clock_gettime(CLOCK_MONOTONIC, &end);
    if (report && !status) {
        FILE *file = fopen(report, "w");
        if (!file) fail(report);
        fprintf(file, "%.9f\n", (double)(end.tv_sec - begin.tv_sec)
                                    + (double)(end.tv_nsec - begin.tv_nsec) / 1e9);
        if (fclose(file)) fail(report);
    }
    return status;
}
