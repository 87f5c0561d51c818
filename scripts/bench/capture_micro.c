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

int main(int argc, char **argv) {
    const char *verb = argc > 1 ? argv[1] : "";
    if (!strcmp(verb, "nothing")) return 0;
    if (!strcmp(verb, "peak") && argc > 3) return peak(argv + 2);
    if (!strcmp(verb, "exec") && argc == 3) {
        for (count = atol(argv[2]); count; count--) {
            pid_t pid = fork();
            if (pid == 0) { execl(argv[0], argv[0], "nothing", (char *)NULL); fail(argv[0]); }
            if (ended(pid, NULL)) return 1;
        }
        return 0;
    }
    if (argc != 4) return 2;
    directory = argv[2];
    count = atol(argv[3]);
    if (!strcmp(verb, "threads")) { threads(); return 0; }
    if (!strcmp(verb, "open")) {
        while (count--) open_and_close(argv[2], O_RDONLY | O_CLOEXEC);
        return 0;
    }
    if (!strcmp(verb, "write")) {
        char path[4096];
        snprintf(path, sizeof path, "%s/written", directory);
        while (count--) {
            open_and_close(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC);
            if (unlink(path)) fail(path);
        }
        return 0;
    }
    if (!strcmp(verb, "stat")) {
        struct stat found;
        while (count--) if (stat(argv[2], &found)) fail(argv[2]);
        return 0;
    }
    return 2;
}
