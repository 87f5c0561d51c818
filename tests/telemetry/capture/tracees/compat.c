/* Calls by the doors of other machines: int 0x80 (i386) and x32, from a 64-bit program.
 * argv[1]: `i386` or `x32`. Linked to low addresses: i386 has pointers of 32 bits. */
#include "tell.h"

#ifndef __x86_64__
int main(void) { return MISSING; }
#else
static long int80(long number, long a, long b, long c, long d, long e) {
    int result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(number), "b"(a), "c"(b), "d"(c), "S"(d), "D"(e)
                     : "r8", "r9", "r10", "r11", "memory");
    return result;
}
static long low(const void *at) {
    if ((uintptr_t)at >> 31) broken("address", (long)(uintptr_t)at);
    return (long)(uintptr_t)at;
}
static long told_32(const char *call, const char *path, const char *path2, long result) {
    TELL(.kind = "call", .call = call, .path = path, .path2 = path2, .result = result, .abi = "i386");
    return result;
}

static const char name[] = "by int 0x80", other[] = "moved by int 0x80", target[] = "./target";
static const char word[] = "open=target", directory[] = "made by int 0x80";
static uint32_t words[3], arguments[6], no_words[1];
static struct sockaddr_in at;
static socklen_t at_size;

static void by_int80(void) {
    char *path = P(name);
    long fd = told_32("open", path, NULL, int80(5, low(name), O_WRONLY | O_CREAT, 0600, 0, 0));
    close((int)must("open", fd));
    WANT(-ENOENT, told_32("open", P(other), NULL, int80(5, low(other), O_RDONLY, 0, 0, 0)));
    fd = told_32("openat", path, NULL, int80(295, AT_FDCWD, low(name), O_RDONLY, 0, 0));
    close((int)must("openat", fd));
    WANT(0, told_32("rename", path, P(other), int80(38, low(name), low(other), 0, 0, 0)));
    WANT(0, told_32("chmod", P(other), NULL, int80(15, low(other), 0600, 0, 0, 0)));
    WANT(0, told_32("utimensat", P(other), NULL, int80(412, AT_FDCWD, low(other), 0, 0, 0))); /* _time64 */
    WANT(0, told_32("mkdir", P(directory), NULL, int80(39, low(directory), 0700, 0, 0, 0)));
    WANT(0, told_32("rmdir", P(directory), NULL, int80(40, low(directory), 0, 0, 0, 0)));
    WANT(0, told_32("unlink", P(other), NULL, int80(10, low(other), 0, 0, 0, 0)));

    /* socketcall, told as the call that it is */
    arguments[0] = AF_INET, arguments[1] = SOCK_STREAM, arguments[2] = 0;
    fd = told_32("socket", NULL, NULL, int80(102, 1, low(arguments), 0, 0, 0));
    must("socket", fd);
    at.sin_family = AF_INET, at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    arguments[0] = (uint32_t)fd, arguments[1] = (uint32_t)low(&at), arguments[2] = sizeof at;
    long r = int80(102, 2, low(arguments), 0, 0, 0);
    TELL(.kind = "call", .call = "bind", .result = r, .abi = "i386", .address = {address_of(&at, sizeof at)});
    WANT(0, r);
    at_size = sizeof at;
    WANT(0, getsockname((int)fd, (void *)&at, &at_size));
    /* the call of its own, which newer libcs make; nobody listens there */
    long client = told_32("socket", NULL, NULL, int80(359, AF_INET, SOCK_STREAM, 0, 0, 0));
    r = int80(362, must("socket", client), low(&at), sizeof at, 0, 0);
    TELL(.kind = "call", .call = "connect", .result = r, .abi = "i386", .address = {address_of(&at, sizeof at)});
    WANT(-ECONNREFUSED, r);

    pid_t pid = (pid_t)int80(2, 0, 0, 0, 0, 0); /* fork */
    if (!pid) {
        words[0] = (uint32_t)low(target), words[1] = (uint32_t)low(word);
        WANT(-ENOENT, told_32("execve", P(other), NULL, int80(11, low(other), low(words), low(no_words), 0, 0)));
        TELL(.kind = "exec", .path = P(target), .argv = (char *[]){(char *)target, (char *)word, NULL}, .abi = "i386");
        static const char began[] = "TRACEE_BEGAN=1";
        static uint32_t environment[2];
        environment[0] = (uint32_t)low(began);
        broken("execve", int80(11, low(target), low(words), low(environment), 0, 0));
    }
    forked(pid);
    ended(pid, 0);
}

static void by_x32(void) {
    enum { X32 = 0x40000000 };
    long r = syscall(SYS_open | X32, name, O_WRONLY | O_CREAT, 0600);
    r = r < 0 ? -errno : r;
    TELL(.kind = "call", .call = "open", .path = P(name), .result = r, .abi = "x32");
    if (r >= 0) close((int)r);
    r = syscall(SYS_unlink | X32, name);
    TELL(.kind = "call", .call = "unlink", .path = P(name), .result = r < 0 ? -errno : r, .abi = "x32");
    r = syscall(520 | X32, "./absent", NULL, NULL);
    TELL(.kind = "call", .call = "execve", .path = P("./absent"), .result = -errno, .abi = "x32");
    WANT(-1, r);
}

int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "probe")) { /* dies by a signal where the door is shut */
        int80(20, 0, 0, 0, 0, 0);
        return 0;
    }
    BEGIN();
    if (argc > 1 && !strcmp(argv[1], "i386")) by_int80();
    else if (argc > 1 && !strcmp(argv[1], "x32")) by_x32();
    else broken("no such way", 0);
    leave(0);
}
#endif
