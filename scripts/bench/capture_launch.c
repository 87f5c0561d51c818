/* Becomes a command that is captured, as the first process of a world does it.
 *
 *   capture_launch SOCKET [FILTER FLAGS]... -- WORD...
 *
 * SOCKET is the descriptor of whoever captures; a FILTER is one of a file with a seccomp program
 * (struct sock_filter[]), which is installed with these FLAGS. A filter with a listener comes
 * first; its listener's number (an int, -1 for none) is written to SOCKET, and a byte is awaited.
 * Then the others are installed, and WORD... is executed. No call in between is one that a filter
 * leaves to a tracer which is not there yet. Exit status 126: that could not be done.
 *
 * In C and spawned, since a fork of the bench's own process, which is large, costs some 4 ms. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { MOST = 4096 };

static void fail(const char *what)
{
    perror(what);
    _exit(126);
}

static int install(int file, unsigned flags)
{
    static struct sock_filter code[MOST];
    ssize_t size = pread(file, code, sizeof code, 0);
    struct sock_fprog program = {(unsigned short)(size / (ssize_t)sizeof *code), code};
    long fd = size <= 0 ? -1 : syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
    if (fd < 0) fail("seccomp");
    close(file);
    return flags & SECCOMP_FILTER_FLAG_NEW_LISTENER ? (int)fd : -1;
}

int main(int argc, char **argv)
{
    char **word = argv + 2, go;
    int listener = -1, filters = 0;
    if (argc < 4) return 126;
    int socket = atoi(argv[1]);
    for (; word[0] && word[1] && strcmp(word[0], "--"); word += 2) {
        if (!filters++ && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("no_new_privs");
        if (atoi(word[1]) & SECCOMP_FILTER_FLAG_NEW_LISTENER)
            listener = install(atoi(word[0]), (unsigned)atoi(word[1]));
    }
    if (!word[0] || strcmp(word[0], "--") || !word[1]) return 126;
    if (write(socket, &listener, sizeof listener) != sizeof listener || read(socket, &go, 1) != 1)
        fail("socket");
    close(socket);
    if (listener >= 0) close(listener);
    for (char **one = argv + 2; one < word; one += 2)
        if (!(atoi(one[1]) & SECCOMP_FILTER_FLAG_NEW_LISTENER))
            install(atoi(one[0]), (unsigned)atoi(one[1]));
    execvp(word[1], word + 1);
    fail(word[1]);
}
