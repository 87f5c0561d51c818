/* What the kernel shows of a process: its memory, its links in /proc, its ids.
 *
 * Memory is read up to the end of a page and only then beyond it, so that text that ends before an
 * unmapped page is read whole (process_vm_readv(2) reads no part of a range that it cannot read).
 * Links in /proc are the kernel's own names, seen from our root: of a process in another mount
 * namespace or root they begin at the root of its tree. */
#include "engine.h"
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, FIRST_LOOK = 256, AT_THE_CWD = -100, ADDRESS_MOST = 128 };

ssize_t read_memory(pid_t tid, uint64_t address, void *into, size_t length)
{
    struct iovec ours = {into, length}, theirs = {(void *)(uintptr_t)address, length};
    return process_vm_readv(tid, &ours, 1, &theirs, 1, 0);
}

ssize_t read_text(pid_t tid, uint64_t address, unsigned char *into, size_t room, bool *cut)
{
    size_t length = 0;
    *cut = false;
    while (length < room) {
        size_t part = PAGE - ((address + length) & (PAGE - 1));
        if (!length && part > FIRST_LOOK)
            part = FIRST_LOOK;
        if (part > room - length)
            part = room - length;
        ssize_t got = read_memory(tid, address + length, into + length, part);
        if (got <= 0)
            return -1;
        unsigned char *end = memchr(into + length, 0, got);
        if (end)
            return end - into;
        length += got;
    }
    *cut = true;
    return length;
}

static uint64_t word_at(const unsigned char *bytes, size_t index, size_t width)
{
    if (width == 4) {
        uint32_t word;
        memcpy(&word, bytes + 4 * index, 4);
        return word;
    }
    uint64_t word;
    memcpy(&word, bytes + 8 * index, 8);
    return word;
}

ssize_t read_argv(pid_t tid, uint64_t address, enum abi abi, unsigned char *into, size_t room, bool *cut)
{
    size_t width = abi == NATIVE ? 8 : 4, length = 0;
    unsigned char words[64 * 8];
    *cut = false;
    if (!address)
        return 0;
    for (;;) {
        size_t part = PAGE - (address & (PAGE - 1));
        if (part > sizeof words)
            part = sizeof words;
        part -= part % width;
        if (!part) /* a pointer that lies across two pages */
            part = width;
        if (read_memory(tid, address, words, part) != (ssize_t)part)
            return -1;
        for (size_t i = 0; i < part / width; i++) {
            uint64_t word = word_at(words, i, width);
            if (!word)
                return length;
            bool long_word;
            if (room - length < 2) {
                *cut = true;
                return length;
            }
            ssize_t got = read_text(tid, word, into + length, room - length - 1, &long_word);
            if (got < 0)
                return -1;
            length += got;
            into[length++] = 0;
            if (long_word) {
                *cut = true;
                return length;
            }
        }
        address += part;
    }
}

ssize_t read_link(pid_t tid, const char *name, unsigned char *into, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)tid, name);
    return readlink(path, (char *)into, room);
}

ssize_t read_fd_link(pid_t tid, int fd, unsigned char *into, size_t room)
{
    char name[32];
    snprintf(name, sizeof name, "fd/%d", fd);
    return read_link(tid, name, into, room);
}

/* --- arguments */

static void add_fd_link(struct record *record, pid_t tid, int fd, enum tag tag)
{
    unsigned char *into = record_open(record, MOST_PATH);
    if (!into)
        return;
    ssize_t length = read_fd_link(tid, fd, into, MOST_PATH);
    if (length >= 0)
        record_close(record, tag, length == MOST_PATH, length);
}

static void add_link(struct record *record, pid_t tid, const char *name, enum tag tag)
{
    unsigned char *into = record_open(record, MOST_PATH);
    if (!into)
        return;
    ssize_t length = read_link(tid, name, into, MOST_PATH);
    if (length >= 0)
        record_close(record, tag, length == MOST_PATH, length);
}

static void add_path(struct record *record, const struct call *call, uint8_t path, uint8_t dir,
                     enum tag tag, enum tag base, bool relative)
{
    uint64_t address = call->args[path];
    int fd = dir == NO_ARGUMENT ? AT_THE_CWD : (int)call->args[dir];
    if (!address) {
        if (fd >= 0 && relative)
            add_fd_link(record, call->tid, fd, base); /* the call acts on the descriptor */
        return;
    }
    unsigned char *into = record_open(record, MOST_PATH);
    if (!into)
        return;
    bool cut;
    ssize_t length = read_text(call->tid, address, into, MOST_PATH, &cut);
    if (length < 0) {
        record_head(record)->flags |= UNREADABLE;
        return;
    }
    bool absolute = length && into[0] == '/';
    record_close(record, tag, cut, length);
    if (cut)
        record_head(record)->flags |= CUT;
    if (relative && !absolute && fd != AT_THE_CWD)
        add_fd_link(record, call->tid, fd, base);
}

static void add_address(struct record *record, const struct call *call, uint64_t address,
                        uint64_t length)
{
    if (!address || !length)
        return;
    if ((int32_t)length < 0)
        return;
    if (length > ADDRESS_MOST)
        length = ADDRESS_MOST;
    unsigned char *into = record_open(record, ADDRESS_MOST);
    if (!into)
        return;
    if (read_memory(call->tid, address, into, length) != (ssize_t)length) {
        record_head(record)->flags |= UNREADABLE;
        return;
    }
    record_close(record, ADDRESS, 0, length);
}

static void add_data(struct record *record, const struct call *call, uint64_t address,
                     uint64_t length)
{
    if (length > MOST_DATA)
        return; /* no question to a name server */
    unsigned char *into = record_open(record, MOST_DATA);
    if (into && read_memory(call->tid, address, into, length) == (ssize_t)length)
        record_close(record, DATA, 0, length);
}

/* struct msghdr: name, its length, iov, their number. */
static bool add_message(struct record *record, const struct call *call, uint64_t address)
{
    unsigned char bytes[32], vector[16];
    size_t width = call->abi == NATIVE ? 8 : 4;
    if (read_memory(call->tid, address, bytes, 4 * width) != (ssize_t)(4 * width)) {
        record_head(record)->flags |= UNREADABLE;
        return false;
    }
    add_address(record, call, word_at(bytes, 0, width), (uint32_t)word_at(bytes, 1, width));
    uint64_t parts = word_at(bytes, 3, width);
    if (parts == 1 &&
        read_memory(call->tid, word_at(bytes, 2, width), vector, 2 * width) == (ssize_t)(2 * width))
        add_data(record, call, word_at(vector, 0, width), word_at(vector, 1, width));
    return true;
}

static void add_messages(struct record *record, const struct call *call, uint64_t address,
                         uint64_t count)
{
    size_t step = call->abi == NATIVE ? 64 : 32; /* struct mmsghdr */
    if (count > 8)
        count = 8; /* further ones go the same way nearly always; the result says how many */
    for (uint64_t i = 0; i < count; i++)
        if (!add_message(record, call, address + i * step))
            return;
}

static void add_how(struct record *record, const struct call *call, uint8_t at)
{
    uint64_t size = call->args[at + 1];
    if (size > 64)
        size = 64;
    unsigned char *into = record_open(record, 64);
    if (!into)
        return;
    if (read_memory(call->tid, call->args[at], into, size) != (ssize_t)size) {
        record_head(record)->flags |= UNREADABLE;
        return;
    }
    record_close(record, HOW, 0, size);
}

void describe_entry(struct engine *engine, struct record *record, const struct call *call,
                    const struct shape *shape)
{
    (void)engine;
    struct head *head = record_head(record);
    head->nr = call->nr;
    head->abi = call->abi;
    memcpy(head->args, call->args, sizeof head->args);
    if (!shape)
        return;
    bool relative = !(shape->flags & NAME);
    if (shape->path != NO_ARGUMENT)
        add_path(record, call, shape->path, shape->dir, PATH, BASE,
                 relative && !(shape->flags & TARGET));
    else if (shape->dir != NO_ARGUMENT && (int)call->args[shape->dir] >= 0)
        add_fd_link(record, call->tid, (int)call->args[shape->dir], BASE);
    if (shape->path2 != NO_ARGUMENT)
        add_path(record, call, shape->path2, shape->dir2, PATH2, BASE2, true);
    if (shape->address != NO_ARGUMENT && !(shape->flags & ADDRESS_OUT))
        add_address(record, call, call->args[shape->address], call->args[shape->address + 1]);
    if (shape->flags & HAS_DATA)
        add_data(record, call, call->args[1], call->args[2]);
    if (shape->flags & MESSAGE)
        add_message(record, call, call->args[shape->extra]);
    if (shape->flags & MESSAGES)
        add_messages(record, call, call->args[shape->extra], call->args[shape->extra + 1]);
    if (shape->flags & HAS_HOW)
        add_how(record, call, shape->extra);
}

static void add_peer(struct record *record, const struct call *call, const struct shape *shape,
                     int fd)
{
    unsigned char bytes[ADDRESS_MOST];
    socklen_t length = sizeof bytes;
    uint64_t at = call->args[shape->address], length_at = call->args[shape->address + 1];
    uint32_t told;
    if (at && read_memory(call->tid, length_at, &told, sizeof told) == sizeof told) {
        add_address(record, call, at, told);
        return;
    }
    /* it did not ask who it is: we do */
    int process = syscall(SYS_pidfd_open, call->tid, O_EXCL /* PIDFD_THREAD */);
    if (process < 0)
        process = syscall(SYS_pidfd_open, call->tid, 0);
    if (process < 0)
        return;
    int ours = syscall(SYS_pidfd_getfd, process, fd, 0);
    close(process);
    if (ours < 0)
        return;
    if (getpeername(ours, (struct sockaddr *)bytes, &length) == 0 && length <= sizeof bytes)
        record_item(record, ADDRESS, 0, bytes, length);
    close(ours);
}

void describe_exit(struct record *record, const struct call *call, const struct shape *shape,
                   int64_t result)
{
    if (!shape || result < 0)
        return;
    if (shape->flags & OPENS)
        add_fd_link(record, call->tid, (int)result, OPENED);
    if (shape->flags & MOVES)
        add_link(record, call->tid, "cwd", CWD);
    if (shape->flags & ROOTS)
        add_link(record, call->tid, "root", ROOT);
    if (shape->flags & ADDRESS_OUT)
        add_peer(record, call, shape, (int)result);
    if (shape->flags & HAS_PAIR) {
        int32_t pair[2];
        if (read_memory(call->tid, call->args[shape->extra], pair, sizeof pair) == sizeof pair)
            record_item(record, PAIR, 0, pair, sizeof pair);
    }
}

/* --- programs */

static ssize_t read_file(pid_t tid, const char *name, unsigned char *into, size_t room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)tid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    size_t length = 0;
    ssize_t got = 0;
    while (length < room && (got = read(fd, into + length, room - length)) > 0)
        length += got;
    close(fd);
    return got < 0 ? -1 : (ssize_t)length;
}

/* The numbers behind `name` in /proc/<tid>/status; how many there are. */
static size_t status_numbers(const char *status, const char *name, uint32_t *into, size_t most)
{
    const char *at = strstr(status, name);
    if (!at)
        return 0;
    at += strlen(name);
    size_t count = 0;
    while (count < most) {
        while (*at == '\t' || *at == ' ')
            at++;
        if (*at < '0' || *at > '9')
            break;
        char *end;
        into[count++] = strtoul(at, &end, 10);
        at = end;
    }
    return count;
}

static bool read_status(pid_t tid, char *into, size_t room)
{
    /* the name of the process comes first in it: "Name:\t...", escaped, 64 bytes at most */
    ssize_t length = read_file(tid, "status", (unsigned char *)into, room - 1);
    if (length < 0)
        return false;
    into[length] = 0;
    return true;
}

static void add_pids(struct record *record, const char *status)
{
    uint32_t numbers[32], pids[2];
    size_t count = status_numbers(status, "\nNSpid:", numbers, 32);
    if (!count)
        return;
    pids[0] = numbers[count - 1];
    count = status_numbers(status, "\nNStgid:", numbers, 32);
    if (!count)
        return;
    pids[1] = numbers[count - 1];
    record_item(record, PIDS, 0, pids, sizeof pids);
}

void describe_pids(struct record *record, pid_t tid)
{
    char status[4096];
    if (read_status(tid, status, sizeof status))
        add_pids(record, status);
}

enum { AUX_END = 0, AUX_SECURE = 23, AUX_EXECFN = 31 };

static void add_credentials(struct record *record, pid_t tid)
{
    char status[4096];
    uint64_t aux[2 * 64];
    uint32_t ids[4], out[8] = {0};
    if (!read_status(tid, status, sizeof status))
        return;
    add_pids(record, status);
    if (status_numbers(status, "\nUid:", ids, 4) == 4)
        memcpy(out, ids, 12);
    if (status_numbers(status, "\nGid:", ids, 4) == 4)
        memcpy(out + 3, ids, 12);
    if (status_numbers(status, "\nNoNewPrivs:", ids, 1) == 1)
        out[6] = ids[0];
    ssize_t length = read_file(tid, "auxv", (unsigned char *)aux, sizeof aux);
    for (ssize_t i = 0; (i + 2) * 8 <= length && aux[i] != AUX_END; i += 2) {
        if (aux[i] == AUX_SECURE)
            out[7] = aux[i + 1];
        if (aux[i] == AUX_EXECFN) {
            unsigned char *into = record_open(record, MOST_PATH);
            bool cut;
            ssize_t got = into ? read_text(tid, aux[i + 1], into, MOST_PATH, &cut) : -1;
            if (got >= 0)
                record_close(record, EXEC_NAME, cut, got);
        }
    }
    record_item(record, CREDENTIALS, 0, out, sizeof out);
}

static void add_fds(struct record *record, pid_t tid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", (int)tid);
    DIR *directory = opendir(path);
    if (!directory)
        return;
    struct dirent *entry;
    unsigned count = 0;
    while ((entry = readdir(directory))) {
        if (entry->d_name[0] == '.')
            continue;
        if (++count > MOST_FDS) {
            record_head(record)->flags |= CUT;
            break;
        }
        unsigned char *into = record_open(record, MOST_PATH + 8), info[256];
        if (!into)
            break;
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, (char *)into + 8, MOST_PATH);
        if (length < 0)
            continue;
        char name[32];
        uint32_t words[2] = {strtoul(entry->d_name, NULL, 10), 0};
        snprintf(name, sizeof name, "fdinfo/%u", words[0]);
        ssize_t got = read_file(tid, name, info, sizeof info - 1);
        if (got > 0) {
            info[got] = 0;
            char *flags = strstr((char *)info, "flags:");
            if (flags)
                words[1] = strtoul(flags + 6, NULL, 8);
        }
        memcpy(into, words, 8);
        record_close(record, FD, length == MOST_PATH, length + 8);
    }
    closedir(directory);
}

void describe_program(struct record *record, pid_t tid)
{
    unsigned char *into = record_open(record, MOST_ARGV);
    if (into) {
        ssize_t length = read_file(tid, "cmdline", into, MOST_ARGV);
        if (length >= 0)
            record_close(record, ARGV, length == MOST_ARGV, length);
        if (length == MOST_ARGV)
            record_head(record)->flags |= CUT;
    }
    add_link(record, tid, "exe", EXE);
    add_link(record, tid, "cwd", CWD);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    struct stat status;
    if (stat(path, &status) == 0) {
        uint64_t id[4] = {
            status.st_dev, status.st_ino, status.st_size,
            (uint64_t)status.st_mtim.tv_sec * 1000000000u + status.st_mtim.tv_nsec,
        };
        record_item(record, FILE_ID, 0, id, sizeof id);
    }
    add_credentials(record, tid);
    add_fds(record, tid);
}

/* --- tables */

const struct shape *shape_of(const struct engine *engine, const struct call *call)
{
    const struct table *table = engine->tables[call->abi];
    int nr = call->abi == ABI_X32 ? call->nr & ~0x40000000 : call->nr;
    if (!table || nr < 0 || nr >= MOST_CALLS || !table->known[nr])
        return NULL;
    return &table->shapes[nr];
}

bool unfold_socketcall(struct call *call)
{
    /* <linux/net.h>: the call by its number, and what i386 calls it directly */
    static const int direct[] = {
        0, 359, 361, 362, 363, 364, 0, 0, 360, 0, 0, 369, 0, 0, 0, 0, 370, 0, 364, 0, 345,
    };
    uint32_t which = call->args[0], words[6] = {0};
    if (which >= sizeof direct / sizeof *direct || !direct[which])
        return false;
    size_t count = which == 11 ? 6 : which == 20 || which == 8 || which == 18 ? 4 : 3;
    if (read_memory(call->tid, (uint32_t)call->args[1], words, 4 * count) != (ssize_t)(4 * count))
        return false;
    call->nr = direct[which];
    for (int i = 0; i < 6; i++)
        call->args[i] = words[i];
    return true;
}
