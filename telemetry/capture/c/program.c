/* What a program is as it begins: its words, its name, its ids, its file, what it has inherited.
 *
 * Right after an exec that is what the kernel has made of it, on its stack and in /proc; where an
 * exec is seen at its entry only, what the call asks for. */
#include "engine.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FEW_FDS = 16, AUX_UID = 11, AUX_SECURE = 23, AUX_EXECFN = 31 };

/* --- descriptors */

/* How a file is open, for an item FD. */
static void add_fd(struct record *record, uint32_t number, uint32_t flags, const void *text,
                   size_t length)
{
    unsigned char *into = record_open(record, length + 8);
    if (!into)
        return;
    memcpy(into, &number, 4);
    memcpy(into + 4, &flags, 4);
    memcpy(into + 8, text, length);
    record_close(record, FD, length >= MOST_PATH, length + 8);
}

/* What /proc says that a descriptor of ours is. */
static ssize_t own_descriptor(int fd, char *into, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return readlink(path, into, room);
}

/* The filesystem of pipes without a name, which nothing else lies on. */
static dev_t pipes_device(void)
{
    static _Atomic dev_t known;
    dev_t device = known;
    int ends[2];
    struct stat status;
    if (!device && pipe2(ends, O_CLOEXEC) == 0) {
        if (fstat(ends[0], &status) == 0)
            known = device = status.st_dev;
        close(ends[0]);
        close(ends[1]);
    }
    return device;
}

/* The name of a device, of which programs inherit the same ones again and again: a terminal, /dev/null.
 * Its link in /proc is made anew for each copy, 8 us each. Other files are not kept: a directory
 * above one can be renamed, and nothing about the file says so. */
static ssize_t device_name(int fd, const struct file_status *status, char *into, size_t room)
{
    enum { KEPT = 4, MOST_NAME = 64 };
    static _Thread_local struct {
        struct file_status status;
        size_t length;
        char name[MOST_NAME];
    } known[KEPT];
    static _Thread_local unsigned next;
    for (unsigned i = 0; i < KEPT; i++)
        if (known[i].length && known[i].status.mount == status->mount &&
            known[i].status.dev == status->dev && known[i].status.ino == status->ino &&
            known[i].status.changed_ns == status->changed_ns) {
            memcpy(into, known[i].name, known[i].length);
            return known[i].length;
        }
    ssize_t length = own_descriptor(fd, into, room);
    if (status->mount && length > 0 && length <= MOST_NAME) {
        known[next % KEPT].status = *status;
        known[next % KEPT].length = length;
        memcpy(known[next++ % KEPT].name, into, length);
    }
    return length;
}

/* One descriptor, by a copy of it: what it is needs no look into /proc but for the name of a
 * file. False where there is none. */
static bool add_copied_fd(struct record *record, int process, uint32_t number)
{
    int fd = syscall(SYS_pidfd_getfd, process, number, 0);
    if (fd < 0)
        return false;
    struct file_status status;
    char text[MOST_PATH];
    int flags = fcntl(fd, F_GETFL);
    ssize_t length = -1;
    if (flags >= 0 && read_file_status(fd, "", &status)) {
        if (S_ISSOCK(status.mode))
            length = snprintf(text, sizeof text, "socket:[%llu]", (unsigned long long)status.ino);
        else if (S_ISFIFO(status.mode) && status.dev == pipes_device())
            length = snprintf(text, sizeof text, "pipe:[%llu]", (unsigned long long)status.ino);
        else if (S_ISCHR(status.mode))
            length = device_name(fd, &status, text, sizeof text);
        else
            length = own_descriptor(fd, text, sizeof text);
        if (length >= 0)
            add_fd(record, number, flags, text, length);
    }
    close(fd);
    return length >= 0;
}

/* All of them, by /proc. */
static void list_fds(struct record *record, pid_t tid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)tid);
    DIR *directory = opendir(path);
    if (!directory)
        return;
    struct dirent *entry;
    unsigned count = 0;
    while ((entry = readdir(directory))) {
        unsigned char text[MOST_PATH], info[256];
        char name[32];
        if (entry->d_name[0] == '.')
            continue;
        if (++count > MOST_FDS) {
            record_head(record)->flags |= CUT;
            break;
        }
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, (char *)text, sizeof text);
        if (length < 0)
            continue;
        uint32_t number = strtoul(entry->d_name, NULL, 10), flags = 0;
        snprintf(name, sizeof name, "fdinfo/%u", number);
        ssize_t got = read_proc(tid, name, info, sizeof info - 1);
        if (got > 0) {
            info[got] = 0;
            char *at = strstr((char *)info, "flags:");
            if (at)
                flags = strtoul(at + 6, NULL, 8);
        }
        add_fd(record, number, flags, text, length);
    }
    closedir(directory);
}

/* What the program has inherited. Most have a few, and these in front; how many there are is the size
 * of /proc's directory (Linux 6.2; 0 before). */
static void add_fds(struct record *record, pid_t tid)
{
    char path[64];
    struct stat status;
    size_t before = record->length;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)tid);
    int process = stat(path, &status) ? -1 : (int)syscall(SYS_pidfd_open, tid, 0);
    if (process >= 0) {
        long found = 0, wanted = status.st_size <= FEW_FDS ? status.st_size : 0;
        for (uint32_t number = 0; found < wanted && number < 2 * FEW_FDS; number++)
            found += add_copied_fd(record, process, number);
        close(process);
        if (wanted && found == wanted)
            return;
    }
    if (!record->failed)
        record->length = before;
    list_fds(record, tid);
}

/* --- the stack of a program that has not run yet (exec(2), getauxval(3)) */

struct stack {
    pid_t tid;
    uint64_t at; /* of the next word */
    size_t width, filled, used;
    unsigned char words[PAGE];
};

static bool next_word(struct stack *stack, uint64_t *word)
{
    if (stack->filled - stack->used < stack->width) { /* the kernel aligns it: nothing is left over */
        size_t part = PAGE - (stack->at & (PAGE - 1));
        if (read_memory(stack->tid, stack->at, stack->words, part) != (ssize_t)part)
            return false;
        stack->at += part;
        stack->filled = part;
        stack->used = 0;
    }
    *word = word_at(stack->words + stack->used, 0, stack->width);
    stack->used += stack->width;
    return true;
}

static void add_argv(struct record *record, pid_t tid, uint64_t from, uint64_t to,
                     struct image *image)
{
    size_t length = to > from ? to - from : 0;
    image->argv_cut = length > MOST_ARGV;
    if (image->argv_cut) {
        length = MOST_ARGV;
        record_head(record)->flags |= CUT;
    }
    unsigned char *into = record_open(record, length);
    if (!into || (length && read_memory(tid, from, into, length) != (ssize_t)length))
        return;
    image->argv_at = record->length + 8;
    image->argv_length = length;
    image->argv_known = true;
    record_close(record, ARGV, image->argv_cut, length);
}

static void read_stack(struct record *record, pid_t tid, uint64_t stack_pointer, size_t width,
                       struct image *image)
{
    struct stack stack = {.tid = tid, .at = stack_pointer, .width = width};
    uint64_t count, word, first = 0, last = 0, behind = 0, key;
    uint32_t ids[4] = {0}, secure = 0;
    if (!next_word(&stack, &count))
        return;
    for (uint64_t i = 0; i < count; i++) {
        if (!next_word(&stack, &word))
            return;
        first = i ? first : word;
        last = word;
    }
    if (!next_word(&stack, &word) || !next_word(&stack, &behind))
        return;
    for (word = behind; word;)
        if (!next_word(&stack, &word))
            return;
    if (count && !behind) { /* no environment: up to the end of the last word */
        unsigned char text[256];
        bool cut = true;
        for (behind = last; cut; behind += sizeof text) {
            ssize_t got = read_text(tid, behind, text, sizeof text, &cut);
            if (got < 0)
                return;
            if (!cut)
                behind += got + 1 - sizeof text;
        }
    }
    while (next_word(&stack, &key) && key && next_word(&stack, &word)) {
        if (key >= AUX_UID && key < AUX_UID + 4)
            ids[key - AUX_UID] = word;
        if (key == AUX_SECURE)
            secure = word;
        if (key == AUX_EXECFN) {
            bool cut;
            unsigned char *into = record_open(record, MOST_PATH + 32);
            ssize_t got = into ? read_text(tid, word, into, MOST_PATH + 32, &cut) : -1;
            if (got >= 0 && !cut) {
                image->name_at = record->length + 8;
                image->name_length = got;
                image->name_known = true;
                record_close(record, EXEC_NAME, 0, got);
            }
        }
    }
    uint32_t out[6] = {ids[0], ids[1], ids[2], ids[3], secure, 0};
    record_item(record, CREDENTIALS, 0, out, sizeof out);
    add_argv(record, tid, count ? first : 0, count ? behind : 0, image);
}

/* --- the whole */

void describe_program(struct record *record, pid_t tid, uint64_t stack_pointer, size_t width,
                      struct image *image)
{
    char path[64];
    struct file_status status;
    memset(image, 0, sizeof *image);
    read_stack(record, tid, stack_pointer, width, image);
    describe_link(record, tid, "exe", EXE);
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    if (read_file_status(AT_FDCWD, path, &status))
        describe_file(record, &status);
    add_fds(record, tid);
}

void expect_program(struct record *record, const struct call *call, const struct shape *shape)
{
    unsigned char name[MOST_PATH], *argv;
    int dir = shape->dir == NO_ARGUMENT ? AT_THE_CWD : (int)call->args[shape->dir];
    bool cut;
    ssize_t length = read_text(call->tid, call->args[shape->path], name, sizeof name, &cut);
    if (length < 0 || cut)
        return;
    int target = open_target(call->tid, dir, name, length, true);
    struct file_status status;
    if (target < 0)
        return;
    if (read_file_status(target, "", &status) && is_program(&status)) {
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
            argv = record_open(record, MOST_ARGV);
            ssize_t words = argv ? read_argv(call->tid, call->args[shape->path + 1], call->abi,
                                             argv, MOST_ARGV, &cut)
                                 : -1;
            if (words >= 0)
                record_close(record, ARGV, cut, words);
        }
    }
    close(target);
}
