/* What the kernel shows of a process: its memory, its links in /proc, its ids.
 *
 * Memory is read up to the end of a page and only then beyond it, so that text that ends before an
 * unmapped page is read whole (process_vm_readv(2) reads no part of a range that it cannot read).
 * Links in /proc are the kernel's own names, seen from our root: of a process in another mount
 * namespace or root they begin at the root of its tree. */
#include "engine.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <unistd.h>

enum { FIRST_LOOK = 256, ADDRESS_MOST = 128 };

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

ssize_t read_proc(pid_t tid, const char *name, unsigned char *into, size_t room)
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

/* --- arguments */

/* Closes the text of a link, for which there is room; `length` as readlink(2) gave it. */
static void close_link(struct record *record, enum tag tag, ssize_t length)
{
    if (length < 0 && errno == ENAMETOOLONG) /* there is one, deeper than the kernel can say */
        record_head(record)->flags |= CUT;
    if (length < 0 && tag != BASE && tag != BASE2 && tag != CWD)
        return;
    /* where a path begins is not to be guessed from what was known before */
    record_close(record, tag, length == MOST_PATH, length < 0 ? 0 : length);
}

void describe_link(struct record *record, pid_t tid, const char *name, enum tag tag)
{
    unsigned char *into = record_open(record, MOST_PATH);
    if (into)
        close_link(record, tag, read_link(tid, name, into, MOST_PATH));
}

static void add_fd_link(struct record *record, pid_t tid, int fd, enum tag tag)
{
    char name[32];
    snprintf(name, sizeof name, "fd/%d", fd);
    describe_link(record, tid, name, tag);
}

void describe_cwd(struct record *record, pid_t tid)
{
    describe_link(record, tid, "cwd", CWD);
}

#ifdef STATX_MNT_ID
#define MOUNT STATX_MNT_ID
#else
#define MOUNT 0
#endif

/* Where a filter or an old kernel has no statx(2); EINVAL is what glibc's stand-in for it says of the flag. */
static bool read_older_status(int dir, const char *name, struct file_status *status)
{
    struct stat found;
    if (fstatat(dir, name, &found, AT_EMPTY_PATH | AT_NO_AUTOMOUNT))
        return false;
    status->dev = found.st_dev;
    status->ino = found.st_ino;
    status->changed_ns = (uint64_t)found.st_ctim.tv_sec * 1000000000u + found.st_ctim.tv_nsec;
    status->mode = found.st_mode;
    status->mount = 0;
    return true;
}

bool read_file_status(int dir, const char *name, struct file_status *status)
{
    struct statx found;
    if (statx(dir, name, AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE | STATX_MODE | STATX_INO | STATX_CTIME | MOUNT,
              &found))
        return (errno == ENOSYS || errno == EPERM || errno == EINVAL) && read_older_status(dir, name, status);
    status->dev = makedev(found.stx_dev_major, found.stx_dev_minor);
    status->ino = found.stx_ino;
    status->changed_ns = (uint64_t)found.stx_ctime.tv_sec * 1000000000u + found.stx_ctime.tv_nsec;
    status->mode = found.stx_mode;
#ifdef STATX_MNT_ID
    status->mount = found.stx_mask & STATX_MNT_ID ? found.stx_mnt_id : 0;
#else
    status->mount = 0;
#endif
    return true;
}

void describe_file(struct record *record, const struct file_status *status)
{
    uint64_t words[3] = {status->dev, status->ino, status->changed_ns};
    record_item(record, FILE_ID, 0, words, sizeof words);
}

/* The working directory, as the kernel has it now: it changes by more than chdir(2), by renames from
 * anywhere and by unshare(2). One that was removed is told by the last name that it had. */
static void add_cwd(struct record *record, pid_t tid, enum tag tag)
{
    static const char gone[] = " (deleted)";
    const size_t more = sizeof gone - 1;
    unsigned char *into = record_open(record, MOST_PATH);
    if (!into)
        return;
    ssize_t length = read_link(tid, "cwd", into, MOST_PATH);
    if (length > (ssize_t)more && !memcmp(into + length - more, gone, more)) {
        char path[64];
        struct stat status;
        snprintf(path, sizeof path, "/proc/%d/cwd", (int)tid);
        if (stat(path, &status) == 0 && status.st_nlink == 0) /* and it has not that name */
            length -= more;
    }
    close_link(record, tag, length);
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
    else if (relative && !absolute)
        add_cwd(record, call->tid, base);
}

static void add_address(struct record *record, const struct call *call, uint64_t address,
                        uint64_t word)
{
    uint32_t length = word; /* an int to the kernel, whatever stands above it in the register */
    if (!address || !length || (int32_t)length < 0)
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
    if (count > 8) { /* further ones go the same way nearly always; the result says how many */
        count = 8;
        record_head(record)->flags |= CUT;
    }
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

void describe_entry(struct record *record, const struct call *call,
                    const struct shape *shape)
{
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

/* The process of the last copy: mostly the next one is of the same. */
static _Thread_local struct {
    pid_t tid;
    int process;
} copied = {.process = -1};

void forget_process(void)
{
    if (copied.process >= 0)
        close(copied.process);
    copied.process = -1;
}

/* A copy of a descriptor of the process; -1 where there is none. */
static int copy_fd(pid_t tid, int fd)
{
    if (copied.process >= 0 && copied.tid == tid) {
        int ours = syscall(SYS_pidfd_getfd, copied.process, fd, 0);
        if (ours >= 0 || errno != ESRCH) /* else the number is another one's by now */
            return ours;
    }
    forget_process();
    copied.tid = tid;
    copied.process = syscall(SYS_pidfd_open, tid, O_EXCL /* PIDFD_THREAD, Linux 6.9 */);
    if (copied.process < 0)
        copied.process = syscall(SYS_pidfd_open, tid, 0);
    return copied.process < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, copied.process, fd, 0);
}

/* The address of a socket of the process, asked by a copy of it. False where it has none. */
static bool add_name(struct record *record, pid_t tid, int fd,
                     int (*name)(int, struct sockaddr *, socklen_t *))
{
    unsigned char bytes[ADDRESS_MOST];
    socklen_t length = sizeof bytes;
    int ours = copy_fd(tid, fd);
    if (ours < 0)
        return false;
    bool named = name(ours, (struct sockaddr *)bytes, &length) == 0 && length <= sizeof bytes;
    if (named)
        record_item(record, ADDRESS, 0, bytes, length);
    close(ours);
    return named;
}

static void add_peer(struct record *record, const struct call *call, const struct shape *shape,
                     int fd)
{
    uint64_t at = call->args[shape->address], length_at = call->args[shape->address + 1];
    uint32_t told;
    /* the kernel is asked first: what it wrote into memory others may have changed since. Of a peer
     * that has left already it tells nothing any more. */
    if (!add_name(record, call->tid, fd, getpeername) && at &&
        read_memory(call->tid, length_at, &told, sizeof told) == sizeof told)
        add_address(record, call, at, told);
}

/* Whether a TCP socket that ended so may name a port that it has given back since: it was this call's. */
static bool was_refused(int64_t result)
{
    return result == -ECONNREFUSED || result == -ECONNRESET || result == -ETIMEDOUT;
}

/* Whether a call has reached out, or goes on with it. After other errors a socket may still name a port
 * of an attempt before, which is another process' by now. A datagram takes its port before a filter
 * refuses it (EPERM). */
static bool has_reached(const struct shape *shape, int64_t result)
{
    return result >= 0 || was_refused(result) || result == -EINPROGRESS || result == -EINTR ||
           (result >= -516 && result <= -512 /* ERESTARTSYS … */) ||
           (result == -EPERM && shape->flags & (HAS_DATA | MESSAGE | MESSAGES));
}

/* The first item of a tag; NULL where there is none. */
static const unsigned char *find_item(const struct record *record, enum tag tag, uint32_t *length)
{
    if (record->failed)
        return NULL;
    for (size_t at = sizeof(struct head); at < record->length; at += 8 + ((*length + 7) & ~7u)) {
        uint16_t found;
        memcpy(&found, record->bytes + at, sizeof found);
        memcpy(length, record->bytes + at + 4, sizeof *length);
        if (found == tag)
            return record->bytes + at + 8;
    }
    return NULL;
}

/* Whether a descriptor of ours is the socket that the call began with: another thread may have put another
 * one there since. */
static bool is_base(const struct record *record, int ours)
{
    char name[32];
    struct stat status;
    uint32_t length;
    const unsigned char *base = find_item(record, BASE, &length);
    if (!base || fstat(ours, &status) || !S_ISSOCK(status.st_mode))
        return false;
    snprintf(name, sizeof name, "socket:[%llu]", (unsigned long long)status.st_ino);
    return length == strlen(name) && !memcmp(base, name, length);
}

/* The port from which a call has reached out, and its address; nothing where there is none. A copy of the
 * socket tells: so it is the kernel's word, whatever the process has in its memory. */
static void add_local(struct record *record, const struct call *call, const struct shape *shape,
                      int64_t result)
{
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
    } own;
    static const unsigned char nowhere[16];
    unsigned char item[2 + 2 + 16];
    int protocol = 0, fd = (int)call->args[shape->dir];
    socklen_t size = sizeof own, protocol_size = sizeof protocol;
    uint32_t process, parent, length;
    /* a send without an address goes on what was connected before */
    bool named = shape->address != NO_ARGUMENT ? call->args[shape->address] != 0
                                               : find_item(record, ADDRESS, &length) != NULL;
    if (!named || !has_reached(shape, result))
        return;
    int ours = copy_fd(call->tid, fd);
    if (ours < 0 && errno == EINVAL && read_parents(call->tid, &process, &parent))
        ours = copy_fd(process, fd); /* of a thread, before Linux 6.9: by its process, which may have others */
    if (ours < 0)
        return;
    bool told = is_base(record, ours) && getsockname(ours, &own.any, &size) == 0 &&
                (own.any.sa_family == AF_INET || own.any.sa_family == AF_INET6) &&
                getsockopt(ours, SOL_SOCKET, SO_PROTOCOL, &protocol, &protocol_size) == 0;
    close(ours);
    if (!told)
        return;
    bool narrow = own.any.sa_family == AF_INET;
    const void *address = narrow ? (void *)&own.in.sin_addr : (void *)&own.in6.sin6_addr;
    length = narrow ? 4 : 16;
    uint16_t words[2] = {protocol, narrow ? own.in.sin_port : own.in6.sin6_port};
    /* one that was connected and is not any more (AF_UNSPEC) keeps the port only */
    if (!words[1] || (protocol != IPPROTO_UDP && !was_refused(result) && !memcmp(address, nowhere, length)))
        return;
    memcpy(item, words, 4);
    memcpy(item + 4, address, length);
    record_item(record, LOCAL, 0, item, 4 + length);
}

void describe_exit(struct record *record, const struct call *call, const struct shape *shape,
                   int64_t result)
{
    if (shape && shape->flags & REACHES)
        add_local(record, call, shape, result);
    if (!shape || result < 0)
        return;
    if (shape->flags & (OPENS | NEW_SOCKET))
        add_fd_link(record, call->tid, (int)result, OPENED);
    if (shape->flags & MOVES)
        describe_link(record, call->tid, "cwd", CWD);
    if (shape->flags & ROOTS)
        describe_link(record, call->tid, "root", ROOT);
    if (shape->flags & ADDRESS_OUT)
        add_peer(record, call, shape, (int)result);
    if (shape->flags & LISTENS)
        add_name(record, call->tid, (int)call->args[shape->dir], getsockname);
    if (shape->flags & HAS_PAIR) {
        int32_t pair[2];
        if (read_memory(call->tid, call->args[shape->extra], pair, sizeof pair) == sizeof pair)
            record_item(record, PAIR, 0, pair, sizeof pair);
    }
}

/* --- ids */

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
    /* the name of the process comes first in it, and a newline in that is escaped */
    ssize_t length = read_proc(tid, "status", (unsigned char *)into, room - 1);
    if (length < 0)
        return false;
    into[length] = 0;
    return true;
}

bool read_parents(pid_t tid, uint32_t *process, uint32_t *parent)
{
    char status[4096];
    return read_status(tid, status, sizeof status) &&
           status_numbers(status, "\nTgid:", process, 1) == 1 &&
           status_numbers(status, "\nPPid:", parent, 1) == 1;
}

#define PID_IN _IOR(0xb7, 0x8, int) /* NS_GET_PID_IN_PIDNS, Linux 6.12 (<linux/nsfs.h>) */

void describe_pid(struct record *record, pid_t tid, int pid_space)
{
    char status[4096];
    uint32_t numbers[32], pid;
    int found = pid_space < 0 ? -1 : ioctl(pid_space, PID_IN, (unsigned long)tid);
    if (found > 0) {
        pid = found;
    } else {
        if (!read_status(tid, status, sizeof status))
            return;
        size_t count = status_numbers(status, "\nNSpid:", numbers, 32);
        if (!count)
            return;
        pid = numbers[count - 1];
    }
    record_item(record, PIDS, 0, &pid, sizeof pid);
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

/* --- calls */

const struct shape *shape_of(const struct engine *engine, const struct call *call)
{
    const struct table *table = engine->tables[call->abi];
    if (!table || call->nr < 0 || call->nr >= MOST_CALLS || !table->known[call->nr])
        return NULL;
    return &table->shapes[call->nr];
}

void narrow_call(struct call *call)
{
    if (call->abi == ABI_I386) /* int 0x80 of a program of 64 bits: the kernel takes the low words */
        for (int i = 0; i < 6; i++)
            call->args[i] = (uint32_t)call->args[i];
}

bool unfold_socketcall(struct call *call)
{
    /* <linux/net.h>: the call by its number, what i386 calls it directly, and how many words of
     * arguments the kernel reads: there may be nothing behind them */
    static const struct {
        int nr;
        size_t count;
    } direct[] = {
        [1] = {359, 3}, [2] = {361, 3}, [3] = {362, 3}, [4] = {363, 2}, [5] = {364, 3},
        [8] = {360, 4}, [11] = {369, 6}, [16] = {370, 3}, [18] = {364, 4}, [20] = {345, 4},
    };
    uint32_t which = call->args[0], words[6] = {0};
    if (which >= sizeof direct / sizeof *direct || !direct[which].nr)
        return false;
    size_t count = direct[which].count;
    if (read_memory(call->tid, (uint32_t)call->args[1], words, 4 * count) != (ssize_t)(4 * count))
        return false;
    call->nr = direct[which].nr;
    for (int i = 0; i < 6; i++)
        call->args[i] = words[i];
    return true;
}
