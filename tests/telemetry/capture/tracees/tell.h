/* How a tracee says what it did: one JSON object a line on stdout, in the order in which it was
 * done, each a fact that a complete record of the run must hold (tracees.py compares).
 *
 * A line is told *after* the call, with the result that the program itself got; an exec and an
 * exit are told right before, and whoever tells them ends the run as broken if they fail. A text
 * is bytes: a byte above 126 or below 32 is the code point \u00XX. Paths are joined to the
 * directory that they are relative to, as the host sees it, and not simplified. Nothing here makes
 * a call that is traced, so that what a tracee tells is all that it does; calls are made by
 * syscall(2), because a libc makes others than it is asked for.
 *
 * Sources: syscall(2), clone(2), wait(2); the names and levels are those of capture/calls.py.
 */
#ifndef TELL_H
#define TELL_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BROKEN 99 /* exit status: a step did not go as the program needs it */
#define MISSING 77 /* exit status: this host does not have what the program is about */

struct fact {
    const char *kind, *call, *path, *path2;
    long result;
    int tid;             /* 0: the caller */
    char **argv;         /* of an exec: as the call was given it */
    char **got_argv;     /* as the new program got it, where the kernel puts other words there */
    const char *address[8];
    const char *data;    /* what was sent */
    size_t data_size;
    const char *abi;     /* NULL: native */
    const char *spot;    /* required, unless the capture declares this blind spot */
    int pathless;        /* the path could not be read: null is told */
    int writes;          /* an open for writing: its result is never left out */
};

struct line {
    char *at;
    size_t used, room;
};

static inline int my_tid(void) { return (int)syscall(SYS_gettid); }

static void line_grow(struct line *line, size_t more) {
    if (line->room - line->used > more) return;
    size_t room = (line->room + more) * 2;
    char *at = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) _exit(BROKEN);
    memcpy(at, line->at, line->used);
    if (line->room) munmap(line->at, line->room);
    line->at = at;
    line->room = room;
}

static void line_add(struct line *line, const char *text) {
    size_t size = strlen(text);
    line_grow(line, size);
    memcpy(line->at + line->used, text, size);
    line->used += size;
}

static void line_text(struct line *line, const char *text, size_t size) {
    line_grow(line, size * 6 + 2);
    char *to = line->at + line->used;
    *to++ = '"';
    for (size_t i = 0; i < size; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '"' || c == '\\') {
            *to++ = '\\';
            *to++ = (char)c;
        } else if (c < 32 || c > 126) {
            static const char digits[] = "0123456789abcdef";
            memcpy(to, "\\u00", 4);
            to += 4;
            *to++ = digits[c >> 4];
            *to++ = digits[c & 15];
        } else {
            *to++ = (char)c;
        }
    }
    *to++ = '"';
    line->used = (size_t)(to - line->at);
}

static void line_member(struct line *line, const char *name, const char *text, size_t size) {
    line_add(line, ", \"");
    line_add(line, name);
    line_add(line, "\": ");
    line_text(line, text, size);
}

static void line_number(struct line *line, const char *name, long number) {
    char text[96];
    snprintf(text, sizeof text, ", \"%s\": %ld", name, number);
    line_add(line, text);
}

static void line_words(struct line *line, const char *name, char **words) {
    if (!words) return;
    line_add(line, ", \"");
    line_add(line, name);
    line_add(line, "\": [");
    for (char **word = words; *word; word++) {
        if (word != words) line_add(line, ", ");
        line_text(line, *word, strlen(*word));
    }
    line_add(line, "]");
}

/* One write each: stdout is a file opened for appending, lines of many tasks never mix. */
static void tell_fact(struct fact fact) {
    int saved = errno;
    struct line line = {0};
    line_add(&line, "{\"kind\": ");
    line_text(&line, fact.kind, strlen(fact.kind));
    line_number(&line, "tid", fact.tid ? fact.tid : my_tid());
    if (fact.call) line_member(&line, "call", fact.call, strlen(fact.call));
    if (fact.path && !fact.pathless) line_member(&line, "path", fact.path, strlen(fact.path));
    if (fact.pathless) line_add(&line, ", \"path\": null");
    if (fact.path2) line_member(&line, "path2", fact.path2, strlen(fact.path2));
    line_number(&line, "result", fact.result);
    line_words(&line, "argv", fact.argv);
    line_words(&line, "got_argv", fact.got_argv);
    if (fact.address[0]) {
        line_add(&line, ", \"addresses\": [");
        for (int i = 0; i < 8 && fact.address[i]; i++) {
            if (i) line_add(&line, ", ");
            line_text(&line, fact.address[i], strlen(fact.address[i]));
        }
        line_add(&line, "]");
    }
    if (fact.data) line_member(&line, "data", fact.data, fact.data_size);
    if (fact.abi) line_member(&line, "abi", fact.abi, strlen(fact.abi));
    if (fact.writes) line_add(&line, ", \"writes\": true");
    if (fact.spot) line_member(&line, "spot", fact.spot, strlen(fact.spot));
    line_add(&line, "}\n");
    for (size_t done = 0; done < line.used;) {
        ssize_t n = write(1, line.at + done, line.used - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) _exit(BROKEN);
        done += (size_t)n;
    }
    munmap(line.at, line.room);
    errno = saved;
}
#define TELL(...) tell_fact((struct fact){__VA_ARGS__})

static inline long told(const char *call, const char *path, const char *path2, long result,
                        const char *arguments) {
    result = result < 0 ? -errno : result;
    TELL(.kind = "call", .call = call, .path = path, .path2 = path2, .result = result,
         .writes = strstr(arguments, "O_WRONLY") || strstr(arguments, "O_RDWR") ||
                   strstr(arguments, "O_CREAT") || strstr(arguments, "O_TRUNC"));
    return result;
}
/* Makes a call by its name and tells it; its value is the result, or minus errno. The arguments
 * as they are written here say whether an open is one for writing. */
#define DO(name, path, path2, ...)                                                               \
    told(#name, path, path2, syscall(SYS_##name, __VA_ARGS__), #__VA_ARGS__)

static void __attribute__((noreturn)) broken(const char *what, long got) {
    fprintf(stderr, "tracee is broken: %s: got %ld, errno %d\n", what, got, errno);
    _exit(BROKEN);
}
static inline long must(const char *what, long result) {
    if (result < 0) broken(what, result);
    return result;
}
/* A step whose result the program counts on. */
#define WANT(wanted, expression)                                                                 \
    do {                                                                                         \
        long got_ = (expression);                                                                \
        if (got_ != (wanted)) broken(#expression, got_);                                         \
    } while (0)

/* Where this process stands, as the host sees it. */
static char here[2 * PATH_MAX], top[2 * PATH_MAX];

static char *joined(const char *directory, const char *raw) {
    size_t size = strlen(top) + strlen(directory) + strlen(raw) + 2;
    char *path = malloc(size);
    if (!path) _exit(BROKEN);
    if (raw[0] == '/') snprintf(path, size, "%s%s", top, raw);
    else if (!raw[0]) snprintf(path, size, "%s", directory);
    else snprintf(path, size, "%s%s%s", directory,
                  directory[strlen(directory) - 1] == '/' ? "" : "/", raw);
    return path;
}
static inline char *P(const char *raw) { return joined(here, raw); }

static inline void began_as(char **argv) {
    if (!getcwd(here, PATH_MAX)) broken("getcwd", -1);
    if (getenv("TRACEE_BEGAN")) return; /* whoever made the exec has told it */
    setenv("TRACEE_BEGAN", "1", 1);
    TELL(.kind = "exec", .path = P(argv[0]), .argv = argv);
}
#define BEGIN() began_as(argv)

static void __attribute__((noreturn)) leave(int status) {
    TELL(.kind = "exit", .result = status << 8);
    _exit(status);
}
/* An exec that succeeds. */
static void __attribute__((noreturn)) become_script(const char *path, char **argv, char **got) {
    TELL(.kind = "exec", .path = P(path), .argv = argv, .got_argv = got);
    execve(path, argv, environ);
    broken("execve", -errno);
}
static inline void __attribute__((noreturn)) become(const char *path, char **argv) {
    become_script(path, argv, NULL);
}
static void forked(long child) {
    TELL(.kind = "fork", .result = must("fork", child));
}
/* Waits for a child, and wants that status of it. */
static void ended(long child, int wanted) {
    int status;
    long got;
    do got = waitpid((pid_t)child, &status, __WALL);
    while (got < 0 && errno == EINTR);
    if (got != child) broken("waitpid", -errno);
    if (status != wanted) broken("status of a child", status);
}

static inline char *address_of(const void *data, socklen_t size) {
    const struct sockaddr *any = data;
    char *text = malloc(256), ip[64];
    if (size < sizeof any->sa_family || any->sa_family == AF_UNSPEC) {
        snprintf(text, 256, "unspec");
    } else if (any->sa_family == AF_INET) {
        const struct sockaddr_in *in = data;
        inet_ntop(AF_INET, &in->sin_addr, ip, sizeof ip);
        snprintf(text, 256, "inet:%s:%d", ip, ntohs(in->sin_port));
    } else if (any->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = data;
        inet_ntop(AF_INET6, &in->sin6_addr, ip, sizeof ip);
        snprintf(text, 256, "inet6:[%s]:%d", ip, ntohs(in->sin6_port));
    } else if (any->sa_family == AF_UNIX) {
        const struct sockaddr_un *un = data;
        int length = (int)size - (int)offsetof(struct sockaddr_un, sun_path);
        if (length <= 0) snprintf(text, 256, "unix:");
        else if (!un->sun_path[0]) snprintf(text, 256, "unix:@%.*s", length - 1, un->sun_path + 1);
        else snprintf(text, 256, "unix:%.*s", length, un->sun_path);
    } else {
        broken("family", any->sa_family);
    }
    return text;
}
#endif
