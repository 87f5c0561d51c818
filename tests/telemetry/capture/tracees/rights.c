/* A setuid program: ./setuid is a copy of this one, owned by another user, with the bit. It opens
 * a file that only that user may open, and gives the right back. Told with what the kernel gave:
 * under no_new_privs, or a tracer without rights, the bit does nothing. */
#include "tell.h"

int main(int argc, char **argv) {
    BEGIN();
    if (argc > 1 && !strcmp(argv[1], "raised")) {
        long fd = DO(openat, P("of-the-other"), NULL, AT_FDCWD, "of-the-other", O_RDONLY);
        if (fd >= 0) close((int)fd);
        uid_t back = getuid();
        DO(setresuid, NULL, NULL, back, back, back);
        DO(openat, P("of-the-other"), NULL, AT_FDCWD, "of-the-other", O_RDONLY);
        leave(0);
    }
    uid_t lowly = argc > 1 ? (uid_t)atoi(argv[1]) : 65534;
    pid_t pid = fork();
    if (!pid) {
        WANT(0, DO(setresgid, NULL, NULL, lowly, lowly, lowly));
        WANT(0, DO(setresuid, NULL, NULL, lowly, lowly, lowly));
        WANT(-EACCES, DO(openat, P("of-the-other"), NULL, AT_FDCWD, "of-the-other", O_RDONLY));
        become("./setuid", (char *[]){"./setuid", "raised", NULL});
    }
    forked(pid);
    ended(pid, 0);
    leave(0);
}
