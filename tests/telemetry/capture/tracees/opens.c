/* Opening: loops, failures of each kind, openat2 with resolve flags, O_TMPFILE. argv[1]: how often. */
#include "tell.h"

static void loops(long times) {
    char name[64];
    for (long i = 0; i < times; i++) {
        snprintf(name, sizeof name, "loop-%ld", i % 7);
        long fd = DO(openat, P(name), NULL, AT_FDCWD, name, O_RDWR | O_CREAT, 0644);
        close((int)must("open", fd));
        fd = DO(openat, P(name), NULL, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
        close((int)must("open", fd));
#ifdef SYS_open
        fd = DO(open, P(name), NULL, name, O_WRONLY | O_TRUNC);
        close((int)must("open", fd));
#endif
    }
}

static void failures(void) {
    static char longest[PATH_MAX + 1], name[300];
    WANT(-ENOENT, DO(openat, P("absent"), NULL, AT_FDCWD, "absent", O_RDONLY));
    WANT(-ENOENT, DO(openat, P("absent/below"), NULL, AT_FDCWD, "absent/below", O_WRONLY | O_CREAT, 0600));
    WANT(-ENOENT, DO(openat, P(""), NULL, AT_FDCWD, "", O_RDONLY));
    WANT(-ENOTDIR, DO(openat, P("loop-0/x"), NULL, AT_FDCWD, "loop-0/x", O_RDONLY));
    WANT(-EEXIST, DO(openat, P("loop-0"), NULL, AT_FDCWD, "loop-0", O_WRONLY | O_CREAT | O_EXCL, 0600));
    WANT(-EISDIR, DO(openat, P("."), NULL, AT_FDCWD, ".", O_WRONLY));
    WANT(0, DO(symlinkat, "round", P("round"), "round", AT_FDCWD, "round"));
    WANT(-ELOOP, DO(openat, P("round"), NULL, AT_FDCWD, "round", O_RDONLY));
    WANT(-EBADF, DO(openat, "loop-0", NULL, 999, "loop-0", O_RDONLY));
    memset(name, 'n', 256);
    WANT(-ENAMETOOLONG, DO(openat, P(name), NULL, AT_FDCWD, name, O_RDONLY));
    memset(longest, '/', PATH_MAX);
    WANT(-ENAMETOOLONG, DO(openat, P(longest), NULL, AT_FDCWD, longest, O_RDONLY));
    WANT(0, DO(mkdirat, P("shut"), NULL, AT_FDCWD, "shut", 0700));
    close((int)DO(openat, P("shut/file"), NULL, AT_FDCWD, "shut/file", O_WRONLY | O_CREAT, 0));
    WANT(geteuid() ? -EACCES : 3, DO(openat, P("shut/file"), NULL, AT_FDCWD, "shut/file", O_RDONLY));
    close(3);
    /* a name that no text encoding likes, and one that looks like the end of a string */
    static const char odd[] = "b\xff\xc3(\x01\n\"quoted\\\" <unfinished ...>";
    close((int)must("odd", DO(openat, P(odd), NULL, AT_FDCWD, odd, O_WRONLY | O_CREAT, 0600)));
}

static long openat2_(int fd, const char *raw, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags, .mode = flags & O_CREAT ? 0600 : 0, .resolve = resolve};
    return DO(openat2, path, NULL, fd, raw, &how, sizeof how);
}

static void resolving(void) {
    WANT(0, DO(symlinkat, "loop-1", P("sign"), "loop-1", AT_FDCWD, "sign"));
    WANT(0, DO(symlinkat, "/etc", P("way out"), "/etc", AT_FDCWD, "way out"));
    long dir = DO(openat, P("shut"), NULL, AT_FDCWD, "shut", O_DIRECTORY | O_RDONLY);
    WANT(-ELOOP, openat2_(AT_FDCWD, "sign", P("sign"), O_RDONLY, RESOLVE_NO_SYMLINKS));
    WANT(-EXDEV, openat2_((int)dir, "../loop-1", P("shut/../loop-1"), O_RDONLY, RESOLVE_BENEATH));
    WANT(-EXDEV, openat2_(AT_FDCWD, "way out/passwd", P("way out/passwd"), O_RDONLY, RESOLVE_BENEATH));
    /* an absolute path below a descriptor that stands for the root is told as it was given */
    close((int)must("in root", openat2_((int)dir, "/in", "/in", O_WRONLY | O_CREAT, RESOLVE_IN_ROOT)));
    close((int)must("plain", openat2_(AT_FDCWD, "sign", P("sign"), O_RDWR, 0)));
    struct open_how how = {.flags = O_RDONLY};
    WANT(-EINVAL, DO(openat2, P("sign"), NULL, AT_FDCWD, "sign", &how, 8));
    close((int)dir);
}

static void unnamed(void) {
    long fd = DO(openat, P("."), NULL, AT_FDCWD, ".", O_TMPFILE | O_RDWR, 0600);
    if (fd == -EOPNOTSUPP || fd == -EISDIR) return;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%ld", must("O_TMPFILE", fd));
    WANT(0, DO(linkat, link, P("named"), AT_FDCWD, link, AT_FDCWD, "named", AT_SYMLINK_FOLLOW));
    close((int)fd);
}

int main(int argc, char **argv) {
    BEGIN();
    long times = argc > 1 ? atol(argv[1]) : 10;
    loops(times);
    if (times >= 7) {
        failures();
        resolving();
        unnamed();
    }
    leave(0);
}
