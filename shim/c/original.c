/* The real command: the first one in PATH that is no shim. First what stands in PATH behind the
 * directory of the shims, then what stands before it, and SUBSTRATE_ORIGINAL_PATH for where PATH has
 * nothing else. PATH comes first since it is what the user sees now (a virtual environment that was
 * entered since). The directory is known by its inode, whatever it is called. No shim is a file that
 * is this program or a copy of it, or one in any directory of shims (MARKER). */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static const char USUAL[] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

struct search {
    const struct caller *caller;
    char *path;   /* what was found */
    bool refused; /* something of the name is there, and cannot be run */
};

static bool same(const struct stat *one, const struct stat *other) {
    return one->st_dev == other->st_dev && one->st_ino == other->st_ino;
}

/* Whether a file of our size is a copy of us. */
static bool is_copy(const char *path, const char *exe) {
    char one[16384], other[16384];
    int fds[2] = {open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), open(exe, O_RDONLY | O_CLOEXEC)};
    bool alike = fds[0] >= 0 && fds[1] >= 0;
    while (alike) {
        ssize_t got = read(fds[0], one, sizeof one), wanted = read(fds[1], other, sizeof other);
        alike = got == wanted && got >= 0 && memcmp(one, other, (size_t)got) == 0;
        if (got <= 0)
            break;
    }
    for (int at = 0; at < 2; at++)
        if (fds[at] >= 0)
            close(fds[at]);
    return alike;
}

/* Whether the directory of a PATH entry has the command. */
static bool has(struct search *search, const char *directory, size_t size) {
    const struct caller *caller = search->caller;
    struct stat found;
    char marker[PATH_ROOM + sizeof MARKER];
    int length = snprintf(search->path, PATH_ROOM, "%.*s%s%s", (int)size, directory, size > 0 ? "/" : "./",
                          caller->name);
    if (length >= PATH_ROOM || stat(search->path, &found) != 0)
        return false;
    if (!S_ISREG(found.st_mode) || faccessat(AT_FDCWD, search->path, X_OK, AT_EACCESS) != 0) {
        search->refused = true;
        return false;
    }
    if (same(&found, &caller->exe_stat) ||
        (found.st_size == caller->exe_stat.st_size && is_copy(search->path, caller->exe)))
        return false;
    snprintf(marker, sizeof marker, "%.*s%s" MARKER, (int)size, directory, size > 0 ? "/" : "./");
    return faccessat(AT_FDCWD, marker, F_OK, 0) != 0;
}

/* Whether a PATH entry is the directory of the shims. */
static bool is_shims(const struct caller *caller, const char *entry, size_t size) {
    char path[PATH_ROOM];
    struct stat found;
    if (size >= sizeof path)
        return true; /* nothing can be run there */
    snprintf(path, sizeof path, "%.*s", (int)size, size > 0 ? entry : ".");
    if (size == 0)
        snprintf(path, sizeof path, ".");
    return stat(path, &found) == 0 && same(&found, &caller->directory_stat);
}

/* Looks from `from` on, up to the entry at `end` (NULL: up to the end). */
static bool look(struct search *search, const char *from, const char *end) {
    for (const char *at = from; at != NULL && at != end;) {
        size_t size = strcspn(at, ":");
        if (!is_shims(search->caller, at, size) && has(search, at, size))
            return true;
        at = at[size] == ':' ? at + size + 1 : NULL;
    }
    return false;
}

int original_find(const struct caller *caller, char path[PATH_ROOM], struct trouble *trouble) {
    struct search search = {caller, path, false};
    const char *given = variable(caller, "PATH"), *before = variable(caller, "SUBSTRATE_ORIGINAL_PATH");
    const char *behind = NULL;
    if (given == NULL)
        given = USUAL;
    for (const char *at = given; at != NULL;) {
        size_t size = strcspn(at, ":");
        bool here = is_shims(caller, at, size);
        at = at[size] == ':' ? at + size + 1 : NULL;
        if (here) {
            behind = at;
            break;
        }
    }
    if (look(&search, behind, NULL) || look(&search, given, behind) ||
        (before != NULL && look(&search, before, NULL)))
        return 0;
    trouble_say(trouble, "`substrate shim status` lists the shims without a command; install it, or mend PATH",
                search.refused ? "what is in PATH cannot be run" : "command not found in PATH behind the shims");
    return search.refused ? STATUS_DENIED : STATUS_NOT_FOUND;
}
