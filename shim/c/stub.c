/* What a shim does, in its order; see stub.h. */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/socket.h>
#include <unistd.h>

/* How often one process may become a shim (npm, env, node …) before it is taken for a loop. */
#define DEPTH_MOST 16
#define DEPTH "SUBSTRATE_SHIM_DEPTH"
#define PARENT "SUBSTRATE_PARENT_SPAN"

static const char DEPLOY[] = "make the shims anew: `substrate shim deploy`";
static const char *const SHELLS[] = {"sh", "bash", "zsh", "dash", "ksh", "fish", NULL};

const char *variable(const struct caller *caller, const char *name) {
    size_t size = strlen(name);
    for (char **at = caller->envp; *at != NULL; at++)
        if (strncmp(*at, name, size) == 0 && (*at)[size] == '=')
            return *at + size + 1;
    return NULL;
}

static const char *last_part(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash == NULL ? path : slash + 1;
}

/* --- who we are */

/* The name by which we were started: of the file, since argv[0] can be anything (-bash). A file that
 * has no name any more (fexecve(3)) leaves argv[0]. */
static const char *own_name(char **argv) {
    const char *file = (const char *)getauxval(AT_EXECFN);
    if (file == NULL || strncmp(file, "/dev/fd/", 8) == 0 || strncmp(file, "/proc/", 6) == 0) {
        file = argv[0] == NULL ? "" : argv[0];
        file += file[0] == '-';
    }
    return last_part(file);
}

/* So that nothing that we open is taken for a standard stream. They are closed again for whatever we
 * become, as it is close-on-exec. */
static void hold_closed(struct caller *caller) {
    for (int fd = 0; fd < 3; fd++)
        caller->closed[fd] = fcntl(fd, F_GETFD) < 0;
    for (int fd = 0; fd < 3; fd++)
        if (caller->closed[fd] && open("/dev/null", O_RDWR | O_CLOEXEC) < 0)
            _exit(STATUS_FAILED); /* nothing can be said either */
}

/* What the owner of the directory wrote. Without it, or where others can write it: fail closed. */
static bool read_marker(struct caller *caller) {
    char path[PATH_ROOM + sizeof MARKER], text[PATH_ROOM + 256], *rest = text, *line;
    struct stat found;
    ssize_t size = 0;
    int fd;
    snprintf(path, sizeof path, "%s/" MARKER, caller->directory);
    fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return false;
    if (fstat(fd, &found) == 0 && S_ISREG(found.st_mode) && (found.st_uid == geteuid() || found.st_uid == 0) &&
        (found.st_mode & 022) == 0)
        size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size < 0 ? 0 : size] = '\0';
    if (strncmp(text, "substrate-shims 1\n", 18) != 0)
        return true;
    while ((line = strsep(&rest, "\n")) != NULL) {
        if (strcmp(line, "fail open") == 0)
            caller->fail_open = true;
        if (strncmp(line, "substrate /", 11) == 0)
            snprintf(caller->substrate, sizeof caller->substrate, "%s", line + 10);
    }
    return true;
}

static bool take_directory(struct caller *caller, const char *file) {
    const char *slash = file == NULL ? NULL : strrchr(file, '/');
    if (slash == NULL || strlen(file) >= sizeof caller->directory)
        return false;
    memcpy(caller->directory, file, (size_t)(slash - file) + 1);
    caller->directory[slash - file + (slash == file)] = '\0';
    return stat(caller->directory, &caller->directory_stat) == 0;
}

enum { PLACES = 5 };

/* Whether the path of this program still leads to it. If so, what was just read beside it was written before it could be
 * run. Else it may be of a directory that is being made under the name that ours had when it was taken apart. */
static bool is_in_place(const struct caller *caller) {
    struct stat found;
    return stat(caller->exe, &found) == 0 && found.st_dev == caller->exe_stat.st_dev &&
           found.st_ino == caller->exe_stat.st_ino;
}

/* This program, its directory, and what is written there. While another directory is put in its place
 * ours is taken apart: then it is the one by whose name we were started. */
static bool find_directory(struct caller *caller, struct trouble *trouble) {
    ssize_t size = readlink("/proc/self/exe", caller->exe, sizeof caller->exe - 1);
    if (size <= 0 || (size_t)size >= sizeof caller->exe - 1 || stat("/proc/self/exe", &caller->exe_stat) != 0)
        return trouble_errno(trouble, "mount /proc", "this program cannot find itself by /proc/self/exe");
    caller->exe[size] = '\0';
    if (take_directory(caller, caller->exe) && read_marker(caller) && is_in_place(caller))
        return true;
    caller->fail_open = false;
    for (int tries = 0; tries < PLACES; tries++) /* which may be put in place of another in just this moment, too */
        if (take_directory(caller, (const char *)getauxval(AT_EXECFN)) && read_marker(caller))
            return true;
    return take_directory(caller, caller->exe) || trouble_errno(trouble, DEPLOY, caller->directory);
}

static bool is_shell(const char *name) {
    for (const char *const *at = SHELLS; *at != NULL; at++)
        if (strcmp(*at, name) == 0)
            return true;
    return false;
}

/* --- becoming another program */

/* Counts how often this process became a shim; false for a loop. */
static bool count(const struct caller *caller, char *entry, size_t room) {
    const char *before = variable(caller, DEPTH);
    int pid = 0, depth = 0;
    if (before == NULL || sscanf(before, "%9d.%9d", &pid, &depth) != 2 || pid != (int)getpid() || depth < 0)
        depth = 0;
    snprintf(entry, room, DEPTH "=%d.%d", (int)getpid(), depth + 1);
    return depth < DEPTH_MOST;
}

static bool sets(const char *entry, const char *name) {
    size_t size = strlen(name);
    return strncmp(entry, name, size) == 0 && entry[size] == '=';
}

/* Whether an entry of the same name stands before it: getenv(3) finds that one, some shells the other. What was
 * asked about is what is run with. */
static bool is_hidden(char **envp, size_t at) {
    size_t name = strcspn(envp[at], "=");
    for (size_t before = 0; before < at; before++)
        if (strncmp(envp[before], envp[at], name + 1) == 0)
            return true;
    return false;
}

/* Python finds its modules, and a virtual environment, by argv[0], where that is a name by the first
 * file of PATH, which would be the shim. */
static bool looks_for_itself(const char *name) { return strncmp(name, "python", 6) == 0; }

static int become(const struct caller *caller, const char *path, const char *span, char *depth) {
    char parent[sizeof PARENT + 42];
    size_t entries = 0, used = 0;
    char **environment, **words;
    struct trouble trouble;
    while (caller->envp[entries] != NULL)
        entries++;
    /* one more of the words: for a script without an interpreter line */
    environment = malloc((entries + 3 + (size_t)caller->argc + 3) * sizeof *environment);
    if (environment == NULL) {
        trouble_errno(&trouble, "free memory", "the environment");
        say_trouble(caller->name, &trouble);
        return STATUS_FAILED;
    }
    for (size_t at = 0; at < entries; at++)
        if (!(sets(caller->envp[at], DEPTH) || (span[0] != '\0' && sets(caller->envp[at], PARENT)) ||
              is_hidden(caller->envp, at)))
            environment[used++] = caller->envp[at];
    environment[used++] = depth;
    if (span[0] != '\0') {
        snprintf(parent, sizeof parent, PARENT "=%s", span);
        environment[used++] = parent;
    }
    environment[used] = NULL;
    words = environment + used + 1;
    for (int at = 0; at <= caller->argc; at++)
        words[at + 1] = caller->argv[at];
    if (caller->argc > 0 && looks_for_itself(caller->name))
        words[1] = (char *)path;
    execve(path, words + 1, environment);
    if (errno == ENOEXEC && caller->argc > 0) { /* as execvp(3) does */
        words[0] = "sh";
        words[1] = (char *)path;
        execve("/bin/sh", words, environment);
        errno = ENOEXEC;
    }
    trouble_errno(&trouble, "the shim was let through; what it stands for cannot be started", path);
    say_trouble(caller->name, &trouble);
    return errno == ENOENT ? STATUS_NOT_FOUND : STATUS_DENIED;
}

/* `substrate` itself runs the shell, by a supervisor of its own. */
static int become_substrate(const struct caller *caller, const char *shell) {
    char **words = malloc(((size_t)caller->argc + 5) * sizeof *words);
    struct trouble trouble;
    if (words == NULL)
        return STATUS_FAILED;
    words[0] = "substrate";
    words[1] = "--as-shell";
    words[2] = (char *)shell;
    words[3] = caller->argc > 0 ? caller->argv[0] : (char *)caller->name;
    for (int at = 1; at < caller->argc; at++)
        words[at + 3] = caller->argv[at];
    words[caller->argc > 0 ? caller->argc + 3 : 4] = NULL;
    for (int fd = 0; fd < 3; fd++)
        if (caller->closed[fd])
            close(fd);
    errno = ENOENT;
    if (caller->substrate[0] != '\0')
        execve(caller->substrate, words, caller->envp);
    if (caller->substrate[0] == '\0')
        trouble_say(&trouble, "make shims of your own: `substrate shim deploy`",
                    MARKER " beside the shim, which says where substrate is, is not there, or not yours alone to change");
    else
        trouble_errno(&trouble, DEPLOY, caller->substrate);
    say_trouble(caller->name, &trouble);
    return STATUS_FAILED;
}

/* `substrate` can show a question on our terminal, which is more than a stub carries; it asks anew. */
static int become_asking(const struct caller *caller) {
    char **words = malloc(((size_t)caller->argc + 5) * sizeof *words); /* argc may be 0 */
    char shim[PATH_ROOM * 2];
    struct trouble trouble;
    int at = 0;
    if (words == NULL)
        return STATUS_FAILED;
    snprintf(shim, sizeof shim, "%s/%s", caller->directory, caller->name);
    words[at++] = "substrate";
    words[at++] = "--as-shim";
    words[at++] = shim;
    words[at++] = caller->argc > 0 ? caller->argv[0] : (char *)caller->name;
    for (int word = 1; word < caller->argc; word++)
        words[at++] = caller->argv[word];
    words[at] = NULL;
    for (int fd = 0; fd < 3; fd++)
        if (caller->closed[fd])
            close(fd);
    execve(caller->substrate, words, caller->envp);
    trouble_errno(&trouble, DEPLOY, caller->substrate);
    say_trouble(caller->name, &trouble);
    return STATUS_FAILED;
}

bool has_person(void) {
    int fd = open("/dev/tty", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    bool found = fd >= 0 && tcgetpgrp(fd) == getpgrp();
    if (fd >= 0)
        close(fd);
    return found;
}

/* --- asking */

int call_refused(const struct packet *packet) {
    long status = field_number(packet_field(packet, 0), 255);
    struct field said = packet_field(packet, 1), hint = packet_field(packet, 2);
    bool named = said.size >= 9 && memcmp(said.at, "substrate", 9) == 0;
    if (packet->kind != 'D' && packet->kind != 'F') {
        said = (struct field){"substrate: the supervisor answered out of turn", 46};
        hint = (struct field){"end the session, and `substrate shim deploy` again", 50};
        named = true;
    }
    say(named ? "" : "substrate: ", said.at, said.size);
    if (packet->kind != 'D' && hint.size > 0)
        say("hint: ", hint.at, hint.size);
    if (packet->kind == 'D')
        return status > 0 ? (int)status : STATUS_DENIED;
    return packet->kind == 'F' && status > 0 ? (int)status : STATUS_FAILED;
}

/* Asks for leave and waits for it. 0 for leave, with the span's id; else the status to end with, or -1
 * where only a bypass was asked for (mode `ask`) and is refused.
 * `bypassed`: the supervisor agreed to and recorded SUBSTRATE_BYPASS. */
static int ask(const struct caller *caller, int socket, bool outside, const char *mode, const char *path,
               char span[41], bool *bypassed) {
    struct trouble trouble;
    struct packet packet;
    const char *bypass = variable(caller, "SUBSTRATE_BYPASS");
    bool bypasses = bypass != NULL && strcmp(bypass, "1") == 0;
    bool asks = outside && strcmp(mode, "shim") == 0 && caller->substrate[0] != '\0' && has_person();
    const char *flags = bypasses && asks ? "{\"bypass\":true,\"asks\":true}"
                        : bypasses       ? "{\"bypass\":true}"
                        : asks           ? "{\"asks\":true}"
                                         : "";
    struct field id;
    *bypassed = false;
    if (!call_send(caller, socket, mode, path, flags, false, &trouble))
        goto failed;
    do {
        if (!call_receive(socket, &packet, &trouble))
            goto failed;
        if (packet.kind == 'T')
            say("", packet_field(&packet, 0).at, packet_field(&packet, 0).size);
    } while (packet.kind == 'T');
    if (packet.kind == 'Q' && asks) {
        close(socket);
        return become_asking(caller);
    }
    if (packet.kind != 'A')
        return strcmp(mode, "ask") == 0 ? -1 : call_refused(&packet);
    id = packet_field(&packet, 0);
    if (!is_id("spn_", id.at, id.size)) {
        trouble_say(&trouble, DEPLOY, "the supervisor gave no span");
        goto failed;
    }
    memcpy(span, id.at, 40);
    span[40] = '\0';
    *bypassed = json_is(packet_field(&packet, 2), "bypass", "\"recorded\"");
    return 0;
failed:
    say_trouble(caller->name, &trouble);
    return STATUS_FAILED;
}

/* A shell where no world is yet. */
static int run_shell(const struct caller *caller, enum found found, int socket, const char *path, char *depth) {
    const char *bypass = variable(caller, "SUBSTRATE_BYPASS");
    struct trouble trouble;
    char span[41] = "";
    bool bypassed = false;
    if (found == SESSION_NONE)
        return become_substrate(caller, path);
    if (bypass != NULL && strcmp(bypass, "1") == 0) {
        int status = ask(caller, socket, true, "ask", path, span, &bypassed);
        close(socket);
        if (status > 0)
            return status;
        if (status == 0 && bypassed)
            return become(caller, path, span, depth);
        found = session_find(caller, &socket, &trouble);
        if (found != SESSION_OUTSIDE) {
            say_trouble(caller->name, &trouble);
            return STATUS_FAILED;
        }
    }
    if (caller->substrate[0] != '\0' && !caller->closed[0] && !caller->closed[1] && isatty(0) && isatty(1) &&
        has_person()) {
        close(socket);
        return become_asking(caller); /* a person sits at it, who may be asked while it runs */
    }
    return join_run(caller, socket, path, NULL);
}

static int run(struct caller *caller) {
    struct trouble trouble;
    char path[PATH_ROOM], span[41] = "", depth[64];
    bool bypassed;
    int socket = -1, status;
    enum found found;
    if (!find_directory(caller, &trouble))
        goto failed;
    if (caller->name[0] == '\0' || strcmp(caller->name, last_part(caller->exe)) == 0) {
        trouble_say(&trouble, "`substrate shim deploy` makes a directory of links to it",
                    "this program is started by the name of a command");
        goto failed;
    }
    if (!count(caller, depth, sizeof depth)) {
        trouble_say(&trouble, "look at PATH: a shim of another kind, or a script, starts this one again",
                    "this process became a shim for %d times: a loop", DEPTH_MOST);
        goto failed;
    }
    status = original_find(caller, path, &trouble);
    if (status != 0) {
        say_trouble(caller->name, &trouble);
        return status;
    }
    found = session_find(caller, &socket, &trouble);
    if (found == SESSION_REFUSED)
        goto failed;
    if (found != SESSION_INSIDE && is_shell(caller->name))
        return run_shell(caller, found, socket, path, depth);
    if (found == SESSION_NONE) {
        /* in a world there is always somebody to ask */
        if (caller->fail_open && variable(caller, PARENT) == NULL)
            return become(caller, path, "", depth);
        goto failed;
    }
    status = ask(caller, socket, found == SESSION_OUTSIDE, "shim", path, span, &bypassed);
    close(socket);
    return status != 0 ? status : become(caller, path, span, depth);
failed:
    say_trouble(caller->name, &trouble);
    return STATUS_FAILED;
}

int main(int argc, char **argv, char **envp) {
    static struct caller caller;
    caller.argc = argc;
    caller.argv = argv;
    caller.envp = envp;
    hold_closed(&caller);
    caller.name = own_name(argv);
    if (getauxval(AT_SECURE) != 0) {
        static const char line[] = "substrate: a shim must not be set-uid";
        say("", line, sizeof line - 1);
        return STATUS_FAILED;
    }
    return is_launcher() ? launch(&caller) : run(&caller);
}
