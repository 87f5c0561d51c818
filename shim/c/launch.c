/* The command `substrate`, where this program is installed under that name beside the one in Python.
 *
 * Starting Python takes longer than a session takes to run a command. So `substrate -c TEXT …` that only has to
 * be handed to the supervisor of a session is handed over from here; everything else is for
 * `substrate-python`, which lies in the same directory: any option, variable or file that could mean more, a person who
 * could be asked, a session that is none, and whatever goes wrong before the call was sent. What is
 * simple is what cli/join.py says is (simple_request). */
#define _GNU_SOURCE
#include "stub.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PYTHON "substrate-python"

/* Variables that change nothing of what a joined command is. */
static const char *const KNOWN[] = {"SUBSTRATE_HOME=",        "SUBSTRATE_SESSION=",       "SUBSTRATE_PARENT_SPAN=",
                                    "SUBSTRATE_SHIM_DEPTH=", "SUBSTRATE_ORIGINAL_PATH=", NULL};

static bool is_known(const char *entry) {
    for (const char *const *at = KNOWN; *at != NULL; at++)
        if (strncmp(entry, *at, strlen(*at)) == 0)
            return true;
    return strncmp(entry, "SUBSTRATE_", 10) != 0;
}

/* Whether join.c can say it in JSON. */
static bool is_plain(const char *text) {
    size_t size = 0;
    for (; text[size] != '\0'; size++)
        if (((text[size] < ' ' || text[size] > '~') && text[size] != '\n' && text[size] != '\t') || size == TEXT_MOST)
            return false;
    return true;
}

/* Whether a configuration may say more; also where that cannot be known. */
static bool is_configured(const char *base, const char *below) {
    char path[PATH_ROOM];
    struct stat found;
    if (snprintf(path, sizeof path, "%s%s", base, below) >= (int)sizeof path)
        return true;
    return lstat(path, &found) == 0;
}

static bool is_simple(const struct caller *caller) {
    const char *home = variable(caller, "HOME"), *base = variable(caller, "XDG_CONFIG_HOME");
    if (caller->argc < 3 || strcmp(caller->argv[1], "-c") != 0 || strchr("-+", caller->argv[2][0]) != NULL ||
        !is_plain(caller->argv[2]))
        return false;
    for (char **at = caller->envp; *at != NULL; at++)
        if (!is_known(*at))
            return false;
    if (home == NULL || home[0] != '/' || is_configured("/etc", "/substrate/config.toml"))
        return false;
    return base != NULL && base[0] == '/' ? !is_configured(base, "/substrate/config.toml")
                                          : !is_configured(home, "/.config/substrate/config.toml");
}

/* The part of our own path behind which others' names go; NULL where it cannot be known. */
static char *own_path(char path[PATH_ROOM]) {
    ssize_t size = readlink("/proc/self/exe", path, PATH_ROOM - sizeof PYTHON);
    if (size <= 0 || (size_t)size >= PATH_ROOM - sizeof PYTHON)
        return NULL;
    path[size] = '\0';
    return strrchr(path, '/') + 1;
}

bool is_launcher(void) {
    char path[PATH_ROOM], *name = own_path(path);
    return name != NULL && strcmp(name, "substrate") == 0;
}

static int become_python(const struct caller *caller) {
    struct trouble trouble;
    char path[PATH_ROOM], *name = own_path(path);
    for (int fd = 0; fd < 3; fd++)
        if (caller->closed[fd])
            close(fd);
    if (name != NULL) {
        memcpy(name, PYTHON, sizeof PYTHON);
        execve(path, caller->argv, caller->envp);
    }
    trouble_errno(&trouble, "install substrate again", name != NULL ? path : "/proc/self/exe");
    say_trouble("substrate", &trouble);
    return STATUS_FAILED;
}

int launch(struct caller *caller) {
    static char bash[] = "bash", sh[] = "sh";
    struct trouble trouble;
    bool has_bash;
    int socket;
    enum found found;
    if (!is_simple(caller) || has_person())
        return become_python(caller);
    found = session_find(caller, &socket, &trouble);
    if (found == SESSION_INSIDE)
        close(socket);
    if (found != SESSION_OUTSIDE)
        return become_python(caller);
    has_bash = access("/bin/bash", X_OK) == 0;
    caller->argv[0] = has_bash ? bash : sh;
    return join_run(caller, socket, has_bash ? "/bin/bash" : "/bin/sh", caller->argv[2]);
}
