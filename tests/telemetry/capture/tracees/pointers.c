/* Pointers that lead nowhere, and texts at the edge of what is mapped. */
#include "tell.h"

static long nowhere(const char *call, long result) {
    result = result < 0 ? -errno : result;
    TELL(.kind = "call", .call = call, .pathless = 1, .result = result);
    return result;
}

int main(int argc, char **argv) {
    (void)argc;
    BEGIN();
    long page = sysconf(_SC_PAGESIZE);
    /* two pages, the second of which is taken away again */
    char *edge = mmap(NULL, (size_t)page * 3, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (edge == MAP_FAILED || munmap(edge + 2 * page, (size_t)page)) broken("mmap", -errno);
    char *end = edge + 2 * page;
    static const struct open_how how = {.flags = O_RDONLY};
    char *null = NULL; /* not a constant: the compiler would warn */

    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, (char *)1, O_RDONLY)));
    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, null, O_RDONLY)));
    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, -1L, O_RDONLY)));
    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, 0x8000000000000000UL, O_RDONLY)));
    WANT(-EFAULT, nowhere("openat2", syscall(SYS_openat2, AT_FDCWD, (char *)1, &how, sizeof how)));
    WANT(-EFAULT, nowhere("mkdirat", syscall(SYS_mkdirat, AT_FDCWD, (char *)1, 0700)));
    WANT(-EFAULT, nowhere("execve", syscall(SYS_execve, (char *)1, argv, environ)));

    /* ends without an end */
    memcpy(end - 4, "name", 4);
    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, end - 4, O_WRONLY | O_CREAT, 0600)));
    WANT(-EFAULT, nowhere("unlinkat", syscall(SYS_unlinkat, AT_FDCWD, end - 1, 0)));
    /* the end is the last byte there is */
    memcpy(end - 5, "last", 5);
    long fd = DO(openat, P("last"), NULL, AT_FDCWD, end - 5, O_WRONLY | O_CREAT, 0600);
    close((int)must("last", fd));
    /* across two pages that are both there */
    memcpy(edge + page - 4, "crossing", 9);
    fd = DO(openat, P("crossing"), NULL, AT_FDCWD, edge + page - 4, O_WRONLY | O_CREAT, 0600);
    close((int)must("crossing", fd));
    /* only one of two is bad */
    long r = syscall(SYS_renameat2, AT_FDCWD, "last", AT_FDCWD, (char *)1, 0);
    TELL(.kind = "call", .call = "renameat2", .path = P("last"), .result = r < 0 ? -errno : r);
    WANT(-1, r);
    /* memory that is there and must not be read */
    mprotect(edge, (size_t)page, PROT_NONE);
    WANT(-EFAULT, nowhere("openat", syscall(SYS_openat, AT_FDCWD, edge, O_RDONLY)));
    /* memory that nobody has touched yet: an empty path */
    char *fresh = mmap(NULL, (size_t)page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    WANT(-ENOENT, DO(openat, P(""), NULL, AT_FDCWD, fresh, O_RDONLY));
    /* a text in a file's page that is not in memory yet */
    fd = DO(openat, P("page"), NULL, AT_FDCWD, "page", O_RDWR | O_CREAT, 0600);
    WANT(5, pwrite((int)fd, "paged", 5, 0));
    WANT(0, DO(ftruncate, P("page"), NULL, (int)fd, page));
    char *paged = mmap(NULL, (size_t)page, PROT_READ, MAP_SHARED, (int)fd, 0);
    WANT(-ENOENT, DO(openat, P("paged"), NULL, AT_FDCWD, paged, O_RDONLY));
    leave(0);
}
