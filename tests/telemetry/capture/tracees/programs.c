/* Becoming another program, each way in a child of its own. The files ./target, ./script,
 * ./script-word, sub/nested, ./dynamic, ./link and some that are no programs lie ready. argv[1]: the way. */
#include "tell.h"
#include <sys/resource.h>

static const char *loader = "/lib64/ld-linux-x86-64.so.2";

static void in_child(int status, void (*run)(void)) {
    pid_t pid = fork();
    if (!pid) {
        run();
        leave(0);
    }
    forked(pid);
    ended(pid, status);
}

static void failing(void) {
    char *words[] = {"x", NULL};
    WANT(-ENOENT, DO(execve, P("./absent"), NULL, "./absent", words, environ));
    WANT(-ENOTDIR, DO(execve, P("./target/x"), NULL, "./target/x", words, environ));
    WANT(-EACCES, DO(execve, P("./plain"), NULL, "./plain", words, environ));
    WANT(-EACCES, DO(execve, P("."), NULL, ".", words, environ));
    WANT(-ENOEXEC, DO(execve, P("./garbage"), NULL, "./garbage", words, environ));
    WANT(-ENOENT, DO(execve, P("./orphan-script"), NULL, "./orphan-script", words, environ));
    WANT(-ELOOP, DO(execve, P("./round-script"), NULL, "./round-script", words, environ));
    WANT(-EBADF, DO(execveat, "", NULL, 999, "", words, environ, AT_EMPTY_PATH));
    WANT(-ELOOP, DO(execveat, P("./link"), NULL, AT_FDCWD, "./link", words, environ, AT_SYMLINK_NOFOLLOW));
    TELL(.kind = "exec", .path = P("./link"), .argv = (char *[]){"./link", NULL});
    execve("./link", (char *[]){"./link", NULL}, environ);
    broken("execve", -errno);
}

#define WORDS(...) ((char *[]){__VA_ARGS__, NULL})
static void script(void) {
    become_script("./script", WORDS("./script", "open=a"), WORDS("./target", "./script", "open=a"));
}
static void script_word(void) {
    become_script("./script-word", WORDS("odd name", "b c"),
                  WORDS("./target", "open=b", "./script-word", "b c"));
}
static void nested(void) {
    become_script("sub/nested", WORDS("sub/nested", "open=c"),
                  WORDS("./target", "./script", "sub/nested", "open=c"));
}
static void through_loader(void) {
    become(loader, (char *[]){(char *)loader, "./dynamic", "open=target", NULL});
}

static void from_memory(void) {
    int fd = (int)must("memfd", DO(memfd_create, "a program", NULL, "a program", MFD_CLOEXEC));
    int from = (int)must("target", DO(openat, P("./target"), NULL, AT_FDCWD, "./target", O_RDONLY));
    char block[65536];
    for (ssize_t n; (n = read(from, block, sizeof block)) > 0;) WANT(n, write(fd, block, (size_t)n));
    close(from);
    char *words[] = {"from memory", "open=target", NULL};
    /* the kernel's own name of the file, which has no other */
    TELL(.kind = "exec", .path = "/memfd:a program (deleted)", .argv = words);
    syscall(SYS_execveat, fd, "", words, environ, AT_EMPTY_PATH);
    broken("execveat", -errno);
}

static void by_descriptor(void) {
    int fd = (int)must("target", DO(openat, P("./target"), NULL, AT_FDCWD, "./target", O_PATH));
    /* what the descriptor is called, not how it was opened */
    TELL(.kind = "exec", .path = P("target"), .argv = (char *[]){"by descriptor", NULL});
    syscall(SYS_execveat, fd, "", (char *[]){"by descriptor", NULL}, environ, AT_EMPTY_PATH);
    broken("execveat", -errno);
}

static void by_directory(void) {
    int fd = (int)must("sub", DO(openat, P("sub"), NULL, AT_FDCWD, "sub", O_DIRECTORY));
    char *words[] = {"by directory", "open=target", NULL};
    TELL(.kind = "exec", .path = joined(P("sub"), "../target"), .argv = words);
    syscall(SYS_execveat, fd, "../target", words, environ, 0);
    broken("execveat", -errno);
}

static void no_words(void) {
    /* the kernel itself puts an empty word there */
    TELL(.kind = "exec", .path = P("./target"), .argv = (char *[]){NULL}, .got_argv = WORDS(""));
    syscall(SYS_execve, "./target", (char *[]){NULL}, environ);
    broken("execve", -errno);
}

static void big(void) {
    struct rlimit stack = {64 << 20, RLIM_INFINITY};
    if (setrlimit(RLIMIT_STACK, &stack)) {
        stack.rlim_max = stack.rlim_cur;
        if (setrlimit(RLIMIT_STACK, &stack)) broken("stack", -errno);
    }
    enum { WORDS = 20000, SIZE = 104 }; /* more than 2 MB with the ends */
    char **words = calloc(WORDS + 1, sizeof *words);
    for (int i = 0; i < WORDS; i++) {
        words[i] = malloc(SIZE + 1);
        memset(words[i], 'a' + i % 26, SIZE);
        words[i][SIZE] = 0;
    }
    setenv("TRACEE_QUIET_WORDS", "1", 1);
    become("./target", words);
}

static void too_big(void) {
    char *word = malloc(200000);
    memset(word, 'w', 199999);
    word[199999] = 0;
    WANT(-E2BIG, DO(execve, P("./target"), NULL, "./target", ((char *[]){word, NULL}), environ));
}

int main(int argc, char **argv) {
    static const struct { const char *name; void (*run)(void); } ways[] = {
        {"failing", failing}, {"script", script}, {"script-word", script_word}, {"nested", nested},
        {"loader", through_loader}, {"memory", from_memory}, {"descriptor", by_descriptor},
        {"directory", by_directory}, {"no-words", no_words}, {"big", big}, {"too-big", too_big},
    };
    BEGIN();
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (argc > 1 && !strcmp(argv[1], ways[i].name)) {
            in_child(0, ways[i].run);
            leave(0);
        }
    broken("no such way", 0);
}
