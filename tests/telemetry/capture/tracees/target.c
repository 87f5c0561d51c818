/* What others execute: opens the files that it is told to, and ends with 0. */
#include "tell.h"
int main(int argc, char **argv) {
    BEGIN();
    if (!getenv("TRACEE_QUIET_WORDS"))
        for (int i = 1; i < argc; i++)
            if (!strncmp(argv[i], "open=", 5))
                DO(openat, P(argv[i] + 5), NULL, AT_FDCWD, argv[i] + 5, O_RDONLY);
    leave(0);
}
