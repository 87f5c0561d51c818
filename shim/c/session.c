/* Whose supervisor is asked. In a world it is the one at the end of /run/substrate/inside, a mount
 * that the world cannot write to. Elsewhere the session is the one that SUBSTRATE_SESSION names (an id
 * or a world, never a path), else the current one of the workspace, as substrate/session/workspace.py
 * finds it; then everything on the way has to be ours alone and the other side has to be the process
 * that holds the session's lock. Nothing that lies in a tree is looked at, but whether there is a .git. */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#define INSIDE "/run/substrate"
#define LOOK (O_PATH | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC)

enum { SEND_S = 10, ANSWER_S = 3600 };

static const char START[] = "start one: `substrate world start`, or run the agent by `substrate run -- AGENT`";
static const char LOOK_AT_HOME[] = "substrate's own files belong to you alone and nobody else may write there; "
                                   "look who changed them, or set SUBSTRATE_HOME to another directory";

static int connect_to(const char *path, struct trouble *trouble) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval sending = {SEND_S, 0}, answering = {ANSWER_S, 0};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), got;
    if (fd < 0) {
        trouble_errno(trouble, START, "socket");
        return -1;
    }
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &sending, sizeof sending);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &answering, sizeof answering);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    do
        got = connect(fd, (struct sockaddr *)&address, sizeof address);
    while (got < 0 && errno == EINTR);
    if (got == 0)
        return fd;
    got = errno;
    close(fd);
    errno = got;
    trouble_errno(trouble, START, "the session's supervisor cannot be reached");
    return -1;
}

/* --- in a world */

static enum found find_inside(int *socket, struct trouble *trouble) {
    struct stat entry;
    int directory = open(INSIDE, LOOK);
    if (directory < 0)
        return SESSION_NONE;
    if (fstatat(directory, "inside", &entry, AT_SYMLINK_NOFOLLOW) != 0) {
        close(directory);
        return SESSION_NONE;
    }
    if (!S_ISSOCK(entry.st_mode) || (entry.st_uid != 0 && entry.st_uid != geteuid()) ||
        faccessat(directory, ".", W_OK, AT_EACCESS) == 0) {
        close(directory);
        trouble_say(trouble, "end what made it, and the world with it",
                    INSIDE "/inside is not what substrate puts there: a socket in a directory that "
                           "cannot be written to");
        return SESSION_REFUSED;
    }
    close(directory);
    *socket = connect_to(INSIDE "/inside", trouble);
    return *socket < 0 ? SESSION_REFUSED : SESSION_INSIDE;
}

/* --- elsewhere: the home */

/* The home in the password file; static programs have no other way to it. */
static bool passwd_home(char *path, size_t room) {
    static char text[65536];
    char wanted[16];
    ssize_t size;
    int fd = open("/etc/passwd", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    size = read(fd, text, sizeof text - 1);
    close(fd);
    if (size <= 0)
        return false;
    text[size] = '\0';
    snprintf(wanted, sizeof wanted, "%u", (unsigned)geteuid());
    for (char *rest = text, *line; (line = strsep(&rest, "\n")) != NULL;) {
        char *fields[7] = {NULL};
        for (unsigned at = 0; at < 7 && line != NULL; at++)
            fields[at] = strsep(&line, ":");
        if (fields[6] != NULL && strcmp(fields[2], wanted) == 0)
            return (size_t)snprintf(path, room, "%s", fields[5]) < room && path[0] == '/';
    }
    return false;
}

static enum found open_home(const struct caller *caller, int *home, struct trouble *trouble) {
    char path[PATH_ROOM], own[PATH_ROOM];
    const char *given = variable(caller, "SUBSTRATE_HOME"), *user = variable(caller, "HOME");
    struct stat found;
    int length;
    if (given != NULL && given[0] != '\0') {
        if (given[0] != '/') {
            trouble_say(trouble, "set it to an absolute path, or unset it",
                        "SUBSTRATE_HOME is '%.200s', expected an absolute path", given);
            return SESSION_REFUSED;
        }
        length = snprintf(path, sizeof path, "%s", given);
    } else {
        if (user == NULL || user[0] != '/')
            user = passwd_home(own, sizeof own) ? own : "/";
        length = snprintf(path, sizeof path, "%s/.substrate", user);
    }
    if ((size_t)length >= sizeof path) {
        trouble_say(trouble, "set SUBSTRATE_HOME to a shorter path", "the path of substrate's home is too long");
        return SESSION_REFUSED;
    }
    *home = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (*home < 0 && (errno == ENOENT || errno == ENOTDIR)) {
        trouble_say(trouble, START, "no session of substrate runs here: there is no %s", path);
        return SESSION_NONE;
    }
    if (*home < 0 || fstat(*home, &found) != 0) {
        trouble_errno(trouble, LOOK_AT_HOME, path);
        return SESSION_REFUSED;
    }
    if (found.st_uid != geteuid() || (found.st_mode & 077) != 0) {
        trouble_say(trouble, LOOK_AT_HOME, "%s belongs to uid %u and has mode %04o, expected %u and 0700",
                    path, (unsigned)found.st_uid, (unsigned)found.st_mode & 07777, (unsigned)geteuid());
        close(*home);
        return SESSION_REFUSED;
    }
    return SESSION_OUTSIDE;
}

/* --- the session's id */

static bool is_world(const char *name) {
    return name[0] == 'w' && name[1] != '\0' && strlen(name) < 16 && strspn(name + 1, "0123456789") == strlen(name + 1);
}

/* The id that a link of substrate's own points at: its last part. */
static enum found id_of_link(int home, const char *name, char id[41], struct trouble *trouble) {
    char target[256];
    ssize_t size = readlinkat(home, name, target, sizeof target);
    const char *last;
    if (size < 0 && errno == ENOENT) {
        trouble_say(trouble, START, "no session of substrate runs here");
        return SESSION_NONE;
    }
    last = size < 0 ? NULL : memrchr(target, '/', (size_t)size);
    if (last == NULL || !is_id("ses_", last + 1, (size_t)(target + size - last - 1))) {
        trouble_say(trouble, LOOK_AT_HOME, "%s in substrate's home is not a link that substrate made", name);
        return SESSION_REFUSED;
    }
    memcpy(id, last + 1, 40);
    id[40] = '\0';
    return SESSION_OUTSIDE;
}

/* The directory that a world here would belong to: the nearest one above with a .git that is ours, or
 * of whoever owns where we are; else where we are. */
static bool workspace_key(char *key, size_t room, struct trouble *trouble) {
    static char cwd[65536], git[65536 + 8];
    struct stat start, found;
    if (getcwd(cwd, sizeof cwd) == NULL || stat(cwd, &start) != 0)
        return trouble_errno(trouble, "change to a directory that exists", "the current directory");
    snprintf(key, room, "current/%llx-%llu", (unsigned long long)start.st_dev, (unsigned long long)start.st_ino);
    for (char *end; cwd[0] == '/' && cwd[1] != '\0'; end[end == cwd] = '\0') {
        snprintf(git, sizeof git, "%s/.git", cwd);
        if (lstat(git, &found) == 0 && (found.st_uid == geteuid() || found.st_uid == start.st_uid) &&
            stat(cwd, &found) == 0) {
            snprintf(key, room, "current/%llx-%llu", (unsigned long long)found.st_dev,
                     (unsigned long long)found.st_ino);
            break;
        }
        end = strrchr(cwd, '/');
    }
    return true;
}

static enum found session_id(const struct caller *caller, int home, char id[41], struct trouble *trouble) {
    const char *given = variable(caller, "SUBSTRATE_SESSION");
    char key[96];
    if (given == NULL || given[0] == '\0') {
        if (!workspace_key(key, sizeof key, trouble))
            return SESSION_REFUSED;
        return id_of_link(home, key, id, trouble);
    }
    if (is_id("ses_", given, strlen(given))) {
        memcpy(id, given, 41);
        return SESSION_OUTSIDE;
    }
    if (is_world(given)) {
        snprintf(key, sizeof key, "worlds/%s", given);
        return id_of_link(home, key, id, trouble);
    }
    trouble_say(trouble, "`substrate session ls` lists them; or `unset SUBSTRATE_SESSION`",
                "SUBSTRATE_SESSION is '%.200s', expected the id of a session or a world such as w3", given);
    return SESSION_REFUSED;
}

/* --- the session, its socket, who is behind it */

/* A directory of ours in one of ours; -1 where it is not that. */
static int open_own(int within, const char *name) {
    struct stat found;
    int fd = openat(within, name, LOOK);
    if (fd < 0)
        return -1;
    if (fstat(fd, &found) == 0 && found.st_uid == geteuid() && (found.st_mode & 022) == 0)
        return fd;
    close(fd);
    errno = EPERM;
    return -1;
}

static size_t read_small(int within, const char *name, char *text, size_t room, bool own) {
    struct stat found;
    ssize_t size;
    int fd = openat(within, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    text[0] = '\0';
    if (fd < 0)
        return 0;
    size = read(fd, text, room - 1);
    if (own && (fstat(fd, &found) != 0 || !S_ISREG(found.st_mode) || found.st_uid != geteuid() || (found.st_mode & 022)))
        size = 0;
    close(fd);
    text[size < 0 ? 0 : size] = '\0';
    return size < 0 ? 0 : (size_t)size;
}

/* Since when a process runs, in clock ticks since the boot (proc_pid_stat(5), field 22); 0: unknown. */
static unsigned long long start_ticks(pid_t pid) {
    char path[64], text[1024], *at;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    read_small(AT_FDCWD, path, text, sizeof text, false);
    at = strrchr(text, ')'); /* its name may hold anything */
    for (int field = 2; at != NULL && field < 22; field++) {
        at = strchr(at, ' ');
        at = at == NULL ? NULL : at + 1;
    }
    return at == NULL ? 0 : strtoull(at, NULL, 10);
}

/* Whether the other side of the socket is the process that holds the session's lock. */
static bool is_holder(int session, int socket, struct trouble *trouble) {
    struct ucred peer = {0, 0, 0};
    socklen_t size = sizeof peer;
    char text[256], boot[64] = "", said[64] = "";
    unsigned long long ticks = 0;
    int pid = 0;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
        return trouble_errno(trouble, LOOK_AT_HOME, "SO_PEERCRED");
    if (peer.uid != geteuid())
        return trouble_say(trouble, LOOK_AT_HOME, "the session's socket is served by uid %u", (unsigned)peer.uid);
    read_small(session, "lock", text, sizeof text, true);
    read_small(AT_FDCWD, "/proc/sys/kernel/random/boot_id", boot, sizeof boot, false);
    boot[strcspn(boot, "\n")] = '\0';
    if (sscanf(text, "%9d %19llu %63s", &pid, &ticks, said) != 3 || pid <= 0 || pid != peer.pid || ticks == 0 ||
        start_ticks(peer.pid) != ticks || strcmp(boot, said) != 0)
        return trouble_say(trouble, LOOK_AT_HOME,
                           "the session's socket is served by pid %d, which does not hold the session's lock",
                           (int)peer.pid);
    return true;
}

static enum found open_control(int session, const char *id, int *socket, struct trouble *trouble) {
    char path[64];
    struct stat entry;
    if (fstatat(session, "control", &entry, AT_SYMLINK_NOFOLLOW) != 0) {
        trouble_say(trouble, START, "no supervisor runs for session %s", id);
        return SESSION_NONE;
    }
    if (!S_ISSOCK(entry.st_mode) || entry.st_uid != geteuid() || (entry.st_mode & 0777) != 0600) {
        trouble_say(trouble, LOOK_AT_HOME, "the socket of session %s is not a socket of yours with mode 0600", id);
        return SESSION_REFUSED;
    }
    snprintf(path, sizeof path, "/proc/self/fd/%d/control", session);
    *socket = connect_to(path, trouble);
    if (*socket < 0)
        return errno == ECONNREFUSED || errno == ENOENT ? SESSION_NONE : SESSION_REFUSED;
    if (is_holder(session, *socket, trouble))
        return SESSION_OUTSIDE;
    close(*socket);
    return SESSION_REFUSED;
}

enum found session_find(const struct caller *caller, int *socket, struct trouble *trouble) {
    char id[41];
    int home, sessions, session;
    enum found found = find_inside(socket, trouble);
    if (found != SESSION_NONE)
        return found;
    found = open_home(caller, &home, trouble);
    if (found != SESSION_OUTSIDE)
        return found;
    found = session_id(caller, home, id, trouble);
    if (found == SESSION_OUTSIDE) {
        sessions = open_own(home, "sessions");
        session = sessions < 0 ? -1 : open_own(sessions, id);
        if (session >= 0) {
            found = open_control(session, id, socket, trouble);
            close(session);
        } else if (errno == ENOENT) {
            trouble_say(trouble, START, "session %s is not there any more", id);
            found = SESSION_NONE;
        } else {
            trouble_say(trouble, LOOK_AT_HOME, "the directory of session %s is not yours alone", id);
            found = SESSION_REFUSED;
        }
        if (sessions >= 0)
            close(sessions);
    }
    close(home);
    return found;
}
