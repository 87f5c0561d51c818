/* Where a name begins. argv[1]: `cwd`, `dirfd`, `deep`, `chroot` (root only), `gone`. */
#include "tell.h"

static void moved(const char *raw) {
    char *path = P(raw);
    WANT(0, DO(chdir, path, NULL, raw));
    char now[PATH_MAX];
    if (!getcwd(now, sizeof now)) broken("getcwd", -errno);
    strcpy(here, top);
    strcat(here, now);
}
static void made_at(const char *path, const char *name) {
    close((int)must(name, DO(openat, path, NULL, AT_FDCWD, name, O_WRONLY | O_CREAT, 0600)));
}
static void made(const char *name) { made_at(P(name), name); }

static void cwd(void) {
    WANT(0, DO(mkdirat, P("one"), NULL, AT_FDCWD, "one", 0700));
    WANT(0, DO(mkdirat, P("one/two"), NULL, AT_FDCWD, "one/two", 0700));
    WANT(0, DO(symlinkat, "one/two", P("short"), "one/two", AT_FDCWD, "short"));
    long back = DO(openat, P("."), NULL, AT_FDCWD, ".", O_DIRECTORY);
    char *from = strdup(here);
    moved("one");
    made("x");
    moved("./two");
    made("x");
    made("../y");
    WANT(-ENOENT, DO(chdir, P("absent"), NULL, "absent"));
    made("z");
    WANT(0, DO(fchdir, from, NULL, (int)back));
    strcpy(here, from);
    moved("short"); /* the kernel's own path is the other one */
    made("w");
    moved("..");
    made("v");
    /* a child moves alone, or takes its parent along */
    WANT(0, DO(fchdir, from, NULL, (int)back));
    strcpy(here, from);
    for (int shared = 0; shared < 2; shared++) {
        long pid = syscall(SYS_clone, SIGCHLD | (shared ? CLONE_FS : 0), 0, 0, 0, 0);
        if (!pid) {
            moved("one");
            made("of-child");
            leave(0);
        }
        forked(pid);
        ended(pid, 0);
        if (shared) strcat(here, "/one");
        made("of-parent");
    }
}

static void dirfd_(void) {
    WANT(0, DO(mkdirat, P("d"), NULL, AT_FDCWD, "d", 0700));
    int fd = (int)must("d", DO(openat, P("d"), NULL, AT_FDCWD, "d", O_DIRECTORY | O_PATH));
    char *path = P("d");
    close((int)must("in", DO(openat, joined(path, "in"), NULL, fd, "in", O_WRONLY | O_CREAT, 0600)));
    /* the directory is another one by then: its descriptor goes along */
    WANT(0, DO(renameat2, path, P("e"), AT_FDCWD, "d", AT_FDCWD, "e", 0));
    path = P("e");
    close((int)must("in", DO(openat, joined(path, "in"), NULL, fd, "in", O_RDONLY)));
    /* an absolute path takes no notice of the directory, good or bad */
    close((int)must("abs", DO(openat, joined(path, "in"), NULL, 999, joined(path, "in"), O_RDONLY)));
    int file = (int)DO(openat, joined(path, "in"), NULL, fd, "in", O_RDONLY);
    WANT(-ENOTDIR, DO(openat, joined(joined(path, "in"), "x"), NULL, file, "x", O_RDONLY));
    /* numbers above the 32 bits of a descriptor are no part of it */
    close((int)must("wide", DO(openat, joined(path, "in"), NULL, 0x500000000L | fd, "in", O_RDONLY)));
    close((int)must("wide", DO(openat, P("e/in"), NULL, 0xffffff9cL, "e/in", O_RDONLY)));
    int copy = dup(fd);
    close(fd);
    close((int)must("copy", DO(openat, joined(path, "in"), NULL, copy, "in", O_RDONLY)));
}

static void gone(void) {
    /* a directory that has no name any more is told by the last one that it had */
    WANT(0, DO(mkdirat, P("d"), NULL, AT_FDCWD, "d", 0700));
    char *path = P("d");
    WANT(0, DO(chdir, path, NULL, "d"));
    WANT(0, DO(unlinkat, path, NULL, AT_FDCWD, path, AT_REMOVEDIR));
    strcpy(here, path);
    WANT(-ENOENT, DO(openat, P("x"), NULL, AT_FDCWD, "x", O_WRONLY | O_CREAT, 0600));
}

/* A path of `size` bytes from here: names of 200 and one that fills what is left. */
static char *deep_path(size_t size) {
    char *path = malloc(size + 1);
    for (size_t i = 0; i < size; i++) path[i] = i % 200 == 199 && i + 1 < size ? '/' : 'n';
    path[size] = 0;
    return path;
}

static void deep(void) {
    char *path = deep_path(PATH_MAX - 1);
    /* by path alone one gets no further than here: each directory is made below the last */
    for (size_t i = 0; i < PATH_MAX - 1; i++) {
        if (path[i] != '/') continue;
        path[i] = 0;
        WANT(0, DO(mkdirat, P(path), NULL, AT_FDCWD, path, 0700));
        path[i] = '/';
    }
    made(path);
    WANT(0, DO(symlinkat, path, P("far"), path, AT_FDCWD, "far"));
    WANT(0, DO(unlinkat, P(path), NULL, AT_FDCWD, path, 0));
    char *longer = deep_path(PATH_MAX);
    WANT(-ENAMETOOLONG, DO(openat, P(longer), NULL, AT_FDCWD, longer, O_RDONLY));
    /* the kernel tells where one is as long as that is a path which it would take ... */
    char *end = strrchr(path, '/');
    *end = 0;
    while (strlen(P(path)) + strlen("/short") >= PATH_MAX) *(end = strrchr(path, '/')) = 0;
    WANT(0, DO(chdir, P(path), NULL, path));
    strcpy(here, P(path));
    made("short");
    /* ... and behind that a name is known by itself alone */
    char *further = deep_path(200);
    while (strlen(here) < PATH_MAX) {
        WANT(0, DO(mkdirat, P(further), NULL, AT_FDCWD, further, 0700));
        WANT(0, DO(chdir, P(further), NULL, further));
        strcpy(here, P(further));
    }
    made_at("short", "short");
}

static void rooted(void) {
    WANT(0, DO(mkdirat, P("root"), NULL, AT_FDCWD, "root", 0755));
    WANT(0, DO(mkdirat, P("root/in"), NULL, AT_FDCWD, "root/in", 0755));
    char *root = P("root");
    pid_t pid = fork();
    if (!pid) {
        WANT(0, DO(chroot, root, NULL, "root"));
        WANT(0, DO(chdir, root, NULL, root + strlen(here) + 1));
        strcpy(here, root);
        strcpy(top, root);
        made("/in/a");
        made("in/b");
        WANT(-ENOENT, DO(openat, P("/etc/hostname"), NULL, AT_FDCWD, "/etc/hostname", O_RDONLY));
        WANT(0, DO(chdir, P("/in"), NULL, "/in"));
        strcat(here, "/in");
        made("c");
        leave(0);
    }
    forked(pid);
    ended(pid, 0);
    made("outside");
}

int main(int argc, char **argv) {
    BEGIN();
    const char *which = argc > 1 ? argv[1] : "";
    if (!strcmp(which, "cwd")) cwd();
    else if (!strcmp(which, "dirfd")) dirfd_();
    else if (!strcmp(which, "deep")) deep();
    else if (!strcmp(which, "gone")) gone();
    else if (!strcmp(which, "chroot")) rooted();
    else broken("no such way", 0);
    leave(0);
}
