/* Everything that changes names and attributes, by path, by directory and by descriptor. */
#include "tell.h"
#include <sys/time.h>
#include <sys/xattr.h>
#include <utime.h>

#ifndef RENAME_EXCHANGE
#define RENAME_NOREPLACE 1
#define RENAME_EXCHANGE 2
#endif

static void made(const char *name) {
    close((int)must(name, DO(openat, P(name), NULL, AT_FDCWD, name, O_WRONLY | O_CREAT, 0644)));
}

static void by_directory(int dir) {
    char *dpath = P("dir");
    WANT(0, DO(mkdirat, joined(dpath, "sub"), NULL, dir, "sub", 0755));
    WANT(-EEXIST, DO(mkdirat, joined(dpath, "sub"), NULL, dir, "sub", 0755));
    WANT(0, DO(mknodat, joined(dpath, "fifo"), NULL, dir, "fifo", S_IFIFO | 0600, 0));
    WANT(0, DO(symlinkat, "../a", joined(dpath, "sym"), "../a", dir, "sym"));
    WANT(0, DO(linkat, P("a"), joined(dpath, "hard"), AT_FDCWD, "a", dir, "hard", 0));
    WANT(-EEXIST, DO(linkat, P("a"), joined(dpath, "hard"), AT_FDCWD, "a", dir, "hard", 0));
    WANT(0, DO(renameat2, joined(dpath, "hard"), P("b"), dir, "hard", AT_FDCWD, "b", 0));
    WANT(0, DO(renameat2, P("a"), joined(dpath, "sub"), AT_FDCWD, "a", dir, "sub", RENAME_EXCHANGE));
    WANT(0, DO(renameat2, P("a"), joined(dpath, "sub"), AT_FDCWD, "a", dir, "sub", RENAME_EXCHANGE));
    WANT(-EEXIST, DO(renameat2, P("a"), P("b"), AT_FDCWD, "a", AT_FDCWD, "b", RENAME_NOREPLACE));
    WANT(-EINVAL, DO(renameat2, P("a"), P("b"), AT_FDCWD, "a", AT_FDCWD, "b",
                     RENAME_NOREPLACE | RENAME_EXCHANGE));
    WANT(0, DO(renameat, joined(dpath, "fifo"), joined(dpath, "sub/fifo"), dir, "fifo", dir, "sub/fifo"));
    WANT(0, DO(unlinkat, joined(dpath, "sub/fifo"), NULL, dir, "sub/fifo", 0));
    WANT(-EISDIR, DO(unlinkat, joined(dpath, "sub"), NULL, dir, "sub", 0));
    WANT(0, DO(unlinkat, joined(dpath, "sub"), NULL, dir, "sub", AT_REMOVEDIR));
    WANT(0, DO(fchmodat, joined(dpath, "sym"), NULL, dir, "sym", 0640));
    WANT(0, DO(fchownat, joined(dpath, "sym"), NULL, dir, "sym", -1, -1, AT_SYMLINK_NOFOLLOW));
    WANT(0, DO(utimensat, joined(dpath, "sym"), NULL, dir, "sym", NULL, AT_SYMLINK_NOFOLLOW));
}

static void by_path(void) {
#ifdef SYS_rename
    WANT(0, DO(mkdir, P("old"), NULL, "old", 0755));
    WANT(0, DO(rename, P("old"), P("new"), "old", "new"));
    WANT(-ENOENT, DO(rename, P("old"), P("new"), "old", "new"));
    WANT(0, DO(link, P("a"), P("new/a"), "a", "new/a"));
    WANT(0, DO(symlink, "a", P("s"), "a", "s"));
    WANT(-ENOTEMPTY, DO(rmdir, P("new"), NULL, "new"));
    WANT(0, DO(unlink, P("new/a"), NULL, "new/a"));
    WANT(0, DO(rmdir, P("new"), NULL, "new"));
    WANT(-ENOENT, DO(rmdir, P("new"), NULL, "new"));
    WANT(-ENOENT, DO(unlink, P("new"), NULL, "new"));
    WANT(0, DO(mknod, P("m"), NULL, "m", S_IFIFO | 0600, 0));
    WANT(0, DO(chmod, P("a"), NULL, "a", 0600));
    WANT(0, DO(chown, P("a"), NULL, "a", -1, -1));
    WANT(0, DO(lchown, P("s"), NULL, "s", -1, -1));
    struct utimbuf when = {1000, 1000};
    struct timeval whens[2] = {{1000, 0}, {1000, 0}};
    WANT(0, DO(utime, P("a"), NULL, "a", &when));
    WANT(0, DO(utimes, P("a"), NULL, "a", whens));
    WANT(0, DO(futimesat, P("a"), NULL, AT_FDCWD, "a", whens));
    long fd = DO(creat, P("c"), NULL, "c", 0600);
    close((int)must("creat", fd));
#endif
    WANT(0, DO(truncate, P("a"), NULL, "a", 100));
    WANT(-EISDIR, DO(truncate, P("dir"), NULL, "dir", 100));
}

static void by_descriptor(void) {
    int fd = (int)must("a", DO(openat, P("a"), NULL, AT_FDCWD, "a", O_RDWR));
    char *path = P("a");
    WANT(0, DO(ftruncate, path, NULL, fd, 50));
    WANT(0, DO(fchmod, path, NULL, fd, 0644));
    WANT(0, DO(fchown, path, NULL, fd, -1, -1));
    WANT(0, DO(utimensat, path, NULL, fd, NULL, NULL, 0));
    WANT(-EBADF, DO(fchmod, NULL, NULL, 999, 0644));
    long r = DO(fsetxattr, path, NULL, fd, "user.substrate", "1", 1, 0);
    if (!r) WANT(0, DO(fremovexattr, path, NULL, fd, "user.substrate"));
    close(fd);
}

static void attributes(void) {
    long r = DO(setxattr, P("a"), NULL, "a", "user.substrate", "1", 1, 0);
    if (r == -EOPNOTSUPP) return;
    WANT(0, r);
    WANT(-EEXIST, DO(setxattr, P("a"), NULL, "a", "user.substrate", "1", 1, XATTR_CREATE));
    WANT(0, DO(removexattr, P("a"), NULL, "a", "user.substrate"));
    WANT(-ENODATA, DO(removexattr, P("a"), NULL, "a", "user.substrate"));
    WANT(0, DO(lsetxattr, P("a"), NULL, "a", "user.substrate", "1", 1, 0));
    WANT(0, DO(lremovexattr, P("a"), NULL, "a", "user.substrate"));
}

int main(int argc, char **argv) {
    (void)argc;
    BEGIN();
    made("a");
    WANT(0, DO(mkdirat, P("dir"), NULL, AT_FDCWD, "dir", 0755));
    long dir = DO(openat, P("dir"), NULL, AT_FDCWD, "dir", O_DIRECTORY | O_RDONLY);
    by_directory((int)must("dir", dir));
    by_path();
    by_descriptor();
    attributes();
    leave(0);
}
