/* Files as a process would find them: in its root, from its directory, symbolic links included
 * (openat2(2), RESOLVE_IN_ROOT).
 *
 * What is found is opened as a place only (O_PATH), so that no server and no FIFO is waited for. */
#include "engine.h"
#include <fcntl.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { TRIES = 1000 };

static int open_proc(pid_t tid, const char *name)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", (int)tid, name);
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 && (errno == EACCES || errno == ENOENT))
        errno = EPERM; /* it is we who may not: of the program that says nothing (is_refusal) */
    return fd;
}

/* EAGAIN: somebody somewhere renamed or mounted something while `..` was followed (openat2(2)). */
static int open_in_root(int root, const char *path)
{
    struct open_how how = {.flags = O_PATH | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT};
    int found = -1;
    errno = EAGAIN;
    for (int i = 0; i < TRIES && found < 0 && errno == EAGAIN; i++)
        found = syscall(SYS_openat2, root, path, &how, sizeof how);
    return found;
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

int open_target(pid_t tid, int dir, const unsigned char *name, size_t length, bool follow)
{
    char path[2 * MOST_PATH + 2];
    size_t at = 0;
    if (length > MOST_PATH) { /* AT_EXECFN stands in memory that others can write to */
        errno = ENAMETOOLONG;
        return -1;
    }
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
        got = got < 0 ? -1 : below_root(tid, (unsigned char *)link, got);
        if (got < 0) { /* it has no name in that root, or none that the kernel can say */
            errno = EXDEV;
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

bool is_refusal(int number)
{
    return number == ENOENT || number == ENOTDIR || number == EACCES || number == ENAMETOOLONG;
}

bool is_program(const struct file_status *status)
{
    return S_ISREG(status->mode) && status->mode & 0111;
}

bool may_wait(pid_t tid, int dir, uint64_t path)
{
    unsigned char name[MOST_PATH + 1];
    bool cut;
    struct file_status status;
    ssize_t length = read_text(tid, path, name, MOST_PATH, &cut);
    if (length <= 0 || cut)
        return false;
    int target = open_target(tid, dir, name, length, true);
    if (target < 0)
        return false;
    bool waits = !read_file_status(target, "", &status) || S_ISFIFO(status.mode) ||
                 S_ISCHR(status.mode);
    close(target);
    return waits;
}
