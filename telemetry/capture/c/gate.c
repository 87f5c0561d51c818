/* The exec gate: what an exec would run, before it happens, and whether that is what runs then
 * (policy.md §4).
 *
 * The first look reads memory and files that other threads can change before the kernel reads
 * them, so by itself it holds nobody. The second look, at PTRACE_EVENT_EXEC, is at what the kernel
 * has taken: the name (AT_EXECFN), the argument vector on the new stack, the file that is mapped.
 * Nothing of the program has run by then. What a path names is found as the process would find
 * it: in its root, from its directory, symbolic links included (openat2(2) RESOLVE_IN_ROOT). */
#include "engine.h"
#include <fcntl.h>
#include <linux/openat2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { AT_THE_CWD = -100, HEAD_OF_SCRIPT = 256 };

/* --- the table */

static uint32_t hash_of(const unsigned char *path, size_t length)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ path[i]) * 16777619u;
    return hash;
}

int gate_load(struct gate *gate, const unsigned char *bytes, size_t length, enum decision otherwise)
{
    /* entries: u8 decision, u8 zero, u16 length, path */
    size_t count = 0;
    for (size_t at = 0; at < length; count++) {
        uint16_t size;
        if (length - at < 4)
            return EINVAL;
        memcpy(&size, bytes + at + 2, 2);
        if (bytes[at] < ALLOW || bytes[at] > ASK || size > length - at - 4)
            return EINVAL;
        at += 4 + size;
    }
    size_t places = 16;
    while (places < 2 * count)
        places *= 2;
    gate->bytes = malloc(length + 1);
    gate->entries = calloc(places, sizeof *gate->entries);
    if (!gate->bytes || !gate->entries)
        return ENOMEM;
    memcpy(gate->bytes, bytes, length);
    gate->mask = places - 1;
    for (size_t at = 0; at < length;) {
        uint16_t size;
        memcpy(&size, gate->bytes + at + 2, 2);
        const unsigned char *path = gate->bytes + at + 4;
        uint32_t place = hash_of(path, size) & gate->mask;
        while (gate->entries[place].path &&
               !(gate->entries[place].length == size &&
                 !memcmp(gate->entries[place].path, path, size)))
            place = (place + 1) & gate->mask;
        if (!gate->entries[place].path || gate->bytes[at] != ALLOW)
            gate->entries[place] =
                (struct gate_entry){.length = size, .decision = gate->bytes[at], .path = path};
        at += 4 + size;
    }
    gate->otherwise = otherwise;
    gate->armed = true;
    return 0;
}

void gate_free(struct gate *gate)
{
    free(gate->bytes);
    free(gate->entries);
    memset(gate, 0, sizeof *gate);
}

static enum decision find_entry(const struct gate *gate, const unsigned char *path, size_t length)
{
    uint32_t place = hash_of(path, length) & gate->mask;
    for (; gate->entries[place].path; place = (place + 1) & gate->mask)
        if (gate->entries[place].length == length &&
            !memcmp(gate->entries[place].path, path, length))
            return gate->entries[place].decision;
    return 0;
}

/* The stricter of what is said of the whole path and of its last name. */
static enum decision ask_table(const struct gate *gate, const unsigned char *path, size_t length)
{
    size_t name = length;
    while (name && path[name - 1] != '/')
        name--;
    enum decision whole = find_entry(gate, path, length),
                  last = find_entry(gate, path + name, length - name);
    if (!whole && !last)
        return gate->otherwise;
    if (whole == DENY || last == DENY)
        return DENY;
    if (whole == ASK || last == ASK)
        return ASK;
    return ALLOW;
}

/* --- files, as the process would find them */

static int open_proc(pid_t tid, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)tid, name);
    return open(path, O_PATH | O_CLOEXEC);
}

static int open_in_root(int root, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    return syscall(SYS_openat2, root, path, &how, sizeof how);
}

static bool begins(const unsigned char *name, size_t length, const char *with, size_t *rest)
{
    *rest = strlen(with);
    return length > *rest && !memcmp(name, with, *rest);
}

/* The name here of a path to one of the kernel's own links, which openat2(2) does not follow:
 * `self` would be us. False where it is none. Should the process have something else there, then
 * what runs differs from what was found. */
static bool own_link(pid_t tid, const unsigned char *name, size_t length, char *into, size_t room)
{
    const char *format = NULL;
    size_t rest;
    if (begins(name, length, "/proc/self/", &rest) ||
        begins(name, length, "/proc/thread-self/", &rest))
        format = "/proc/%d/%.*s";
    else if (begins(name, length, "/dev/fd/", &rest))
        format = "/proc/%d/fd/%.*s";
    else if (begins(name, length, "/proc/", &rest) && name[rest] >= '0' && name[rest] <= '9') {
        format = "/proc/%d/root%.*s";
        rest = 0;
    }
    return format && snprintf(into, room, format, (int)tid, (int)(length - rest), name + rest) <
                         (int)room;
}

/* A directory's name from the root of the process, where it is below that. */
static ssize_t below_root(pid_t tid, unsigned char *link, ssize_t length)
{
    unsigned char root[MOST_PATH];
    ssize_t size = read_link(tid, "root", root, sizeof root);
    if (size <= 1)
        return size < 0 ? -1 : length;
    if (length < size || memcmp(link, root, size) || (length > size && link[size] != '/'))
        return -1;
    memmove(link, link + size, length - size);
    return length - size;
}

/* O_PATH of what `name` means to the process, relative to `dir`; -1 and errno. */
static int open_target(pid_t tid, int dir, const unsigned char *name, size_t length, bool follow)
{
    char path[2 * MOST_PATH + 2];
    size_t at = 0;
    if (own_link(tid, name, length, path, sizeof path))
        return open(path, O_PATH | O_CLOEXEC);
    if (!length || name[0] != '/') { /* names of the kernel: from the root of the tree */
        char link[MOST_PATH + 1], base[32];
        if (dir == AT_THE_CWD)
            snprintf(base, sizeof base, "cwd");
        else
            snprintf(base, sizeof base, "fd/%d", dir);
        if (!length) /* AT_EMPTY_PATH: the descriptor itself */
            return open_proc(tid, base);
        ssize_t got = read_link(tid, base, (unsigned char *)link, MOST_PATH);
        if (got < 0)
            return -1;
        /* a directory is opened by itself, in case its name is not what it seems; what leads up
         * from it and through absolute links is found in the root */
        int directory = open_proc(tid, base);
        if (directory < 0)
            return -1;
        char text[MOST_PATH + 1];
        memcpy(text, name, length);
        text[length] = 0;
        struct open_how how = {
            .flags = O_PATH | O_CLOEXEC | (follow ? 0 : O_NOFOLLOW), .resolve = RESOLVE_BENEATH,
        };
        int found = syscall(SYS_openat2, directory, text, &how, sizeof how);
        int number = errno;
        close(directory);
        if (found >= 0 || (number != EXDEV && number != EAGAIN)) {
            errno = number;
            return found;
        }
        got = below_root(tid, (unsigned char *)link, got);
        if (got < 0) {
            errno = ENOENT;
            return -1;
        }
        memcpy(path, link, got);
        at = got;
        path[at++] = '/';
    }
    memcpy(path + at, name, length);
    path[at + length] = 0;
    int root = open_proc(tid, "root");
    if (root < 0)
        return -1;
    int found = open_in_root(root, path);
    int number = errno;
    close(root);
    errno = number;
    return found;
}

static bool is_program(int target, struct stat *status)
{
    return fstat(target, status) == 0 && S_ISREG(status->st_mode) && status->st_mode & 0111;
}

/* What a script's first line names (execve(2)); 0: it is none. -1: it cannot be read. */
static ssize_t interpreter_of(int target, unsigned char *into, size_t room)
{
    char path[64], head[HEAD_OF_SCRIPT];
    snprintf(path, sizeof path, "/proc/self/fd/%d", target);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -1;
    ssize_t got = pread(fd, head, sizeof head, 0);
    close(fd);
    if (got < 2 || head[0] != '#' || head[1] != '!')
        return got < 0 ? -1 : 0;
    ssize_t from = 2, to;
    while (from < got && (head[from] == ' ' || head[from] == '\t'))
        from++;
    for (to = from; to < got; to++)
        if (head[to] == ' ' || head[to] == '\t' || head[to] == '\n' || head[to] == 0)
            break;
    if ((size_t)(to - from) > room)
        return -1;
    memcpy(into, head + from, to - from);
    return to - from;
}

static bool keep(unsigned char **into, size_t *length, const unsigned char *bytes, size_t size)
{
    *into = malloc(size + 1);
    if (!*into)
        return false;
    memcpy(*into, bytes, size);
    *length = size;
    return true;
}

enum decision gate_look(struct gate *gate, struct record *record, const struct call *call,
                        const struct shape *shape, struct approval *approval, enum reason *reason)
{
    static __thread unsigned char name[MOST_PATH + 1], argv[MOST_ARGV];
    approval_clear(approval);
    approval->there = true;
    int dir = shape->dir == NO_ARGUMENT ? AT_THE_CWD : (int)call->args[shape->dir];
    bool cut;
    *reason = IS_UNREADABLE;
    ssize_t length = read_text(call->tid, call->args[shape->path], name, MOST_PATH, &cut);
    if (length < 0 || cut)
        return DENY;
    ssize_t words = read_argv(call->tid, call->args[shape->path + 1], call->abi, argv, MOST_ARGV,
                              &approval->argv_cut);
    if (words < 0)
        return DENY;
    if (!keep(&approval->name, &approval->name_length, name, length) ||
        !keep(&approval->argv, &approval->argv_length, argv, words))
        return DENY;
    record_item(record, ARGV, approval->argv_cut, argv, words);
    *reason = BY_TABLE;
    int target = open_target(call->tid, dir, name, length, true);
    enum decision decision = ALLOW;
    for (int depth = 0;; depth++) {
        struct stat status;
        if (target < 0 || !is_program(target, &status)) {
            /* missing, or no program: the kernel says so; if it runs all the same it is killed */
            if (target >= 0)
                close(target);
            approval->left = true;
            return ALLOW;
        }
        unsigned char found[MOST_PATH];
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", target);
        ssize_t size = readlink(link, (char *)found, sizeof found);
        if (size <= 0) {
            close(target);
            *reason = IS_UNREADABLE;
            return DENY;
        }
        record_item(record, depth ? OPENED : EXE, depth, found, size);
        enum decision said = ask_table(gate, found, size);
        if (said == DENY || said == KILL) {
            close(target);
            return DENY;
        }
        if (said == ASK)
            decision = ASK;
        approval->image = (struct file_id){status.st_dev, status.st_ino};
        ssize_t next = interpreter_of(target, name, MOST_PATH);
        close(target);
        if (next < 0) {
            /* it may be run and not be read: no script then, the kernel could not read it either
             * as the caller; as ourselves we might not be allowed to */
            break;
        }
        if (next == 0 || depth == MOST_INTERPRETERS)
            break;
        approval->is_script = true;
        target = open_target(call->tid, AT_THE_CWD, name, next, true);
    }
    return decision;
}

/* --- the second look */

/* Whether what is left of the words, from `now` on, is what is left of those that were told. */
static bool same_rest(const unsigned char *now, size_t length, bool now_cut,
                      const unsigned char *told, size_t told_length, bool told_cut)
{
    if (now_cut || told_cut) { /* too long to be had whole: what was had of both */
        size_t shorter = length < told_length ? length : told_length;
        return shorter && (now_cut || length >= told_length) && !memcmp(now, told, shorter - 1);
    }
    return length == told_length && !memcmp(now, told, length);
}

/* `cut`: there is more than can be compared; then as far as it is there. */
static bool same_words(const unsigned char *now, size_t length, bool cut,
                       const struct approval *approval, const unsigned char *name,
                       size_t name_length)
{
    const unsigned char *told = approval->argv;
    size_t told_length = approval->argv_length;
    if (!approval->is_script) {
        if (!told_length && length == 1 && now[0] == 0)
            return true; /* no words at all: the kernel gives an empty one (Linux 5.18) */
        return same_rest(now, length, cut, told, told_length, approval->argv_cut);
    }
    /* For a script the kernel puts, in place of the first word, an interpreter, perhaps its
     * argument, for each interpreter that is a script itself, and then the script's name. Behind
     * the first place of the name come the caller's words. */
    const unsigned char *end = memchr(told, 0, told_length);
    size_t first = end ? (size_t)(end - told) + 1 : told_length;
    size_t at = 0;
    for (int word = 0; word <= 2 * MOST_INTERPRETERS && at < length; word++) {
        const unsigned char *stop = memchr(now + at, 0, length - at);
        if (!stop)
            return false;
        size_t size = stop - (now + at);
        bool is_name = word && size == name_length && !memcmp(now + at, name, size);
        at += size + 1;
        if (is_name)
            return same_rest(now + at, length - at, cut, told + first, told_length - first,
                             approval->argv_cut && told_length > first);
    }
    return false;
}

bool gate_matches(pid_t tid, const struct approval *approval, const struct record *record,
                  const struct image *image)
{
    char path[64];
    struct stat status;
    if (!approval->there || approval->left || approval->decision != ALLOW || record->failed ||
        !image->name_known || !image->argv_known)
        return false;
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    if (stat(path, &status) || status.st_dev != approval->image.dev ||
        status.st_ino != approval->image.ino)
        return false;
    const unsigned char *name = record->bytes + image->name_at,
                        *words = record->bytes + image->argv_at;
    size_t at = 0, length = image->name_length;
    /* execveat(2): /dev/fd/N, or /dev/fd/N/path, stands for a name relative to a descriptor */
    if (length >= 8 && !memcmp(name, "/dev/fd/", 8) &&
        !(approval->name_length && approval->name[0] == '/')) {
        at = 8;
        while (at < length && name[at] >= '0' && name[at] <= '9')
            at++;
        if (at < length && name[at] == '/')
            at++;
    }
    if (length - at != approval->name_length || memcmp(name + at, approval->name, length - at))
        return false;
    return same_words(words, image->argv_length, image->argv_cut, approval, name, length);
}

void approval_clear(struct approval *approval)
{
    free(approval->name);
    free(approval->argv);
    memset(approval, 0, sizeof *approval);
}

bool runs_script(pid_t tid, struct record *record, const struct image *image)
{
    if (record->failed || !image->name_known || !image->argv_known)
        return false;
    /* for a script the kernel puts its name behind the interpreter, and perhaps one argument: a
     * name that does not stand there is none, and nearly all end here */
    const unsigned char *name = record->bytes + image->name_at,
                        *words = record->bytes + image->argv_at;
    size_t at = 0;
    bool stands = false;
    for (int word = 0; word <= 2 * MOST_INTERPRETERS && at < image->argv_length; word++) {
        const unsigned char *end = memchr(words + at, 0, image->argv_length - at);
        if (!end)
            break;
        size_t size = end - (words + at);
        stands |= word && size == image->name_length && !memcmp(words + at, name, size);
        at += size + 1;
    }
    if (!stands)
        return false;
    char path[64];
    struct stat named, runs;
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    int file = open_target(tid, AT_THE_CWD, name, image->name_length, true);
    if (file < 0)
        return true; /* a name of a descriptor that is closed by now: a script's */
    bool other = fstat(file, &named) == 0 && stat(path, &runs) == 0 &&
                 (named.st_dev != runs.st_dev || named.st_ino != runs.st_ino);
    close(file);
    if (other)
        describe_file(record, &named);
    return other;
}

void expect_program(struct record *record, const struct call *call, const struct shape *shape)
{
    static __thread unsigned char name[MOST_PATH + 1], argv[MOST_ARGV];
    int dir = shape->dir == NO_ARGUMENT ? AT_THE_CWD : (int)call->args[shape->dir];
    bool cut;
    ssize_t length = read_text(call->tid, call->args[shape->path], name, MOST_PATH, &cut);
    if (length < 0 || cut)
        return;
    int target = open_target(call->tid, dir, name, length, true);
    struct stat status;
    if (target < 0)
        return;
    if (is_program(target, &status)) {
        unsigned char found[MOST_PATH];
        char link[64];
        snprintf(link, sizeof link, "/proc/self/fd/%d", target);
        ssize_t size = readlink(link, (char *)found, sizeof found);
        if (size > 0) {
            record_item(record, EXE, 0, found, size);
            describe_file(record, &status);
            record_head(record)->kind = EXEC;
            /* arguments of the call stand there: of EXEC they mean other things */
            memset(record_head(record)->args, 0, sizeof record_head(record)->args);
            ssize_t words = read_argv(call->tid, call->args[shape->path + 1], call->abi, argv,
                                      MOST_ARGV, &cut);
            if (words >= 0)
                record_item(record, ARGV, cut, argv, words);
        }
    }
    close(target);
}

/* --- what both threads need of it */

void gate_tell(struct engine *engine, struct record *record, const struct call *call,
               const struct approval *approval, uint64_t hold, enum decision decision,
               enum reason reason)
{
    struct head *head = record_begin(record, GATE, call->tid);
    head->nr = call->nr;
    head->abi = call->abi;
    head->result = decision;
    head->args[0] = hold;
    head->args[1] = reason;
    if (approval->name)
        record_item(record, PATH, 0, approval->name, approval->name_length);
    if (approval->argv)
        record_item(record, ARGV, approval->argv_cut, approval->argv, approval->argv_length);
    ring_put(&engine->ring, record);
}

void gate_ask(struct engine *engine, struct record *record, uint64_t hold)
{
    struct head *head = record_head(record);
    uint64_t first = head->args[0];
    uint8_t kind = head->kind;
    head->kind = HOLD;
    head->args[0] = hold;
    ring_put(&engine->ring, record);
    head = record_head(record);
    head->kind = kind;
    head->args[0] = first;
    ring_call(&engine->ring);
}

size_t gate_answers(struct engine *engine, struct answer *into)
{
    uint64_t rung;
    ssize_t done = read(engine->bell, &rung, sizeof rung);
    (void)done; /* EAGAIN: nobody rang */
    pthread_mutex_lock(&engine->state);
    size_t count =
        engine->answered_count < ANSWERS_AT_ONCE ? engine->answered_count : ANSWERS_AT_ONCE;
    memcpy(into, engine->answered, count * sizeof *into);
    engine->answered_count -= count;
    memmove(engine->answered, engine->answered + count, engine->answered_count * sizeof *into);
    pthread_mutex_unlock(&engine->state);
    return count;
}

bool is_dying(pid_t tid)
{
    /* a signal that will end it waits: SIGKILL needs no look, it ends the stop */
    char path[64], text[4096];
    snprintf(path, sizeof path, "/proc/%d/status", (int)tid);
    FILE *file = fopen(path, "re");
    if (!file)
        return true;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    uint64_t masks[5] = {0};
    static const char *const names[] = {"\nSigPnd:", "\nShdPnd:", "\nSigBlk:", "\nSigIgn:", "\nSigCgt:"};
    for (int i = 0; i < 5; i++) {
        const char *at = strstr(text, names[i]);
        if (at)
            masks[i] = strtoull(at + strlen(names[i]), NULL, 16);
    }
    const uint64_t harmless = 1ull << (SIGCHLD - 1) | 1ull << (SIGCONT - 1) | 1ull << (SIGURG - 1) |
                              1ull << (SIGWINCH - 1) | 1ull << (SIGSTOP - 1) | 1ull << (SIGTSTP - 1) |
                              1ull << (SIGTTIN - 1) | 1ull << (SIGTTOU - 1);
    return (masks[0] | masks[1]) & ~(masks[2] | masks[3] | masks[4] | harmless);
}

bool may_wait(pid_t tid, int dir, uint64_t path)
{
    unsigned char name[MOST_PATH + 1];
    bool cut;
    struct stat status;
    ssize_t length = read_text(tid, path, name, MOST_PATH, &cut);
    if (length <= 0 || cut)
        return false;
    int target = open_target(tid, dir, name, length, true);
    if (target < 0)
        return false;
    bool waits = fstat(target, &status) || S_ISFIFO(status.st_mode) || S_ISCHR(status.st_mode);
    close(target);
    return waits;
}
