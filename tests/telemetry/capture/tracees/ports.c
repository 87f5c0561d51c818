/* Reaches out and says from which ports, a line each: "<call> <protocol> <tid> <port>". argv[1], then:
 *   crowd <family> <port> <times> <at once>   so many processes, each connects and ends
 *   hasty <port> <times>                      each to an address of its own, and is gone at once
 *   datagrams <family> <port> <times>         each sends one, on a socket that is bound to nothing
 *   kinds <tcp port> <udp port>               one of each; a port of 0: there is none to tell
 *   narrow <tcp port> <udp port>              by calls of i386, of which one stands for many
 *   flips <udp port> <times>                  of two sockets, each told first as "socket:[<inode>] udp
 *                                             <tid> <port>", another thread makes one the other
 * The family is 4, 6, or 46 for an IPv4 address in IPv6's clothes. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

union any {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
};

static void broken(const char *what) {
    dprintf(1, "broken: %s: %s\n", what, strerror(errno));
    _exit(99);
}
#define MUST(call) ({ long r_ = (call); if (r_ < 0) broken(#call); (int)r_; })

static socklen_t address(union any *at, int family, int port) {
    memset(at, 0, sizeof *at);
    if (family == 4) {
        at->in.sin_family = AF_INET;
        at->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        at->in.sin_port = htons((uint16_t)port);
        return sizeof at->in;
    }
    at->in6.sin6_family = AF_INET6;
    inet_pton(AF_INET6, family == 6 ? "::1" : "::ffff:127.0.0.1", &at->in6.sin6_addr);
    at->in6.sin6_port = htons((uint16_t)port);
    return sizeof at->in6;
}
static int new_socket(int family, int type) {
    return MUST(socket(family == 4 ? AF_INET : AF_INET6, type, 0));
}
static int port_of(int fd) {
    union any own;
    socklen_t size = sizeof own;
    MUST(getsockname(fd, &own.any, &size));
    return ntohs(own.any.sa_family == AF_INET ? own.in.sin_port : own.in6.sin6_port);
}
static void tell(const char *call, const char *protocol, int port) {
    char line[128];
    int size = snprintf(line, sizeof line, "%s %s %ld %d\n", call, protocol, syscall(SYS_gettid), port);
    if (write(1, line, (size_t)size) != size) _exit(98);
}
/* So that no port waits in TIME_WAIT. */
static void reset(int fd) {
    struct linger now = {1, 0};
    MUST(setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(fd);
}
static void await(int *running, int most) {
    int status;
    for (; *running > most; --*running) {
        MUST(wait(&status));
        if (status) broken("a child");
    }
}

static void one_of_a_crowd(int family, int port) {
    union any at;
    socklen_t size = address(&at, family, port);
    int fd = new_socket(family, SOCK_STREAM);
    MUST(connect(fd, &at.any, size));
    tell("connect", "tcp", port_of(fd));
    reset(fd);
}
static void one_in_haste(int port, int which) {
    union any at;
    socklen_t size = address(&at, 4, port);
    at.in.sin_addr.s_addr = htonl(0x7f010000u + (uint32_t)which);
    syscall(SYS_connect, new_socket(4, SOCK_STREAM | SOCK_NONBLOCK), &at, size);
    syscall(SYS_exit_group, 0);
}
static void one_datagram(int family, int port) {
    union any at;
    char text[32];
    socklen_t size = address(&at, family, port);
    int fd = new_socket(family, SOCK_DGRAM), length = sprintf(text, "%d", getpid());
    MUST(syscall(SYS_sendto, fd, text, length, 0, &at, size));
    tell("sendto", "udp", port_of(fd));
}

struct job { int fd; union any at; socklen_t size; };
static void *in_a_thread(void *given) {
    struct job *job = given;
    MUST(connect(job->fd, &job->at.any, job->size));
    tell("connect", "tcp", port_of(job->fd));
    return NULL;
}
static void connects(const char *protocol, int fd, union any *at, socklen_t size) {
    MUST(syscall(SYS_connect, fd, at, size));
    tell("connect", protocol, port_of(fd));
}
static void refused(int port) {
    union any at;
    socklen_t size = address(&at, 4, port);
    int fd = new_socket(4, SOCK_STREAM);
    if (syscall(SYS_connect, fd, &at, size) != -1 || errno != ECONNREFUSED) broken("nobody listens");
    tell("connect", "tcp", port_of(fd));
    at.any.sa_family = AF_UNIX;
    if (syscall(SYS_connect, fd, &at, size) != -1) broken("of another family");
    tell("connect", "tcp", 0); /* it names the old one, which is not its own any more */
}
static void kinds(int tcp, int udp) {
    static const int families[] = {4, 6, 46};
    union any at, unspec = {.any = {.sa_family = AF_UNSPEC}};
    socklen_t size;
    int fd, pair[2];
    for (int i = 0; i < 3; i++) {
        size = address(&at, families[i], tcp);
        connects("tcp", fd = new_socket(families[i], SOCK_STREAM), &at, size);
        MUST(syscall(SYS_connect, fd, &unspec, sizeof unspec.any));
        tell("connect", "tcp", 0);
        size = address(&at, families[i], udp);
        connects("udp", fd = new_socket(families[i], SOCK_DGRAM), &at, size);
        struct iovec part = {"x", 1};
        struct msghdr to = {&at, size, &part, 1, NULL, 0, 0}, on = {.msg_iov = &part, .msg_iovlen = 1};
        MUST(syscall(SYS_sendmsg, fd, &on, 0));
        tell("sendmsg", "udp", 0); /* it was connected before */
        fd = new_socket(families[i], SOCK_DGRAM);
        MUST(syscall(SYS_sendmsg, fd, &to, 0));
        tell("sendmsg", "udp", port_of(fd));
        struct mmsghdr several[2] = {{to, 0}, {to, 0}};
        fd = new_socket(families[i], SOCK_DGRAM);
        MUST(syscall(SYS_sendmmsg, fd, several, 2, 0));
        tell("sendmmsg", "udp", port_of(fd));
    }
    size = address(&at, 4, tcp);
    struct job job = {new_socket(4, SOCK_STREAM), at, size};
    pthread_t thread;
    if (pthread_create(&thread, NULL, in_a_thread, &job)) broken("a thread");
    pthread_join(thread, NULL);
    /* a socket of its parent's: it is the child that reaches out */
    fd = new_socket(4, SOCK_STREAM);
    int running = 1, child = MUST(fork());
    if (!child) {
        connects("tcp", fd, &at, size);
        _exit(0);
    }
    await(&running, 0);
    refused(1);
    /* neither has a port */
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    memset(&at, 0, sizeof at);
    at.un.sun_family = AF_UNIX;
    sprintf(at.un.sun_path + 1, "substrate-ports-%d", getpid());
    int listener = MUST(socket(AF_UNIX, SOCK_STREAM, 0));
    MUST(bind(listener, &at.any, sizeof at.un));
    MUST(listen(listener, 1));
    MUST(syscall(SYS_connect, MUST(socket(AF_UNIX, SOCK_STREAM, 0)), &at, sizeof at.un));
    tell("connect", "unix", 0);
    struct { uint16_t family, pad; uint32_t pid, groups; } kernel = {AF_NETLINK, 0, 0, 0};
    MUST(syscall(SYS_connect, MUST(socket(AF_NETLINK, SOCK_RAW, 0)), &kernel, sizeof kernel));
    tell("connect", "netlink", 0);
}

static int two[2], flipped;
static void *flips_it(void *unused) {
    for (int i = 0;; i++) MUST(dup2(two[i & 1], flipped));
    return unused;
}
static void flips(int port, int times) {
    union any at, any;
    pthread_t thread;
    for (int i = 0; i < 2; i++) {
        char name[64];
        struct stat status;
        socklen_t size = address(&any, 4, 0);
        two[i] = new_socket(4, SOCK_DGRAM);
        MUST(bind(two[i], &any.any, size));
        MUST(fstat(two[i], &status));
        sprintf(name, "socket:[%lu]", (unsigned long)status.st_ino);
        tell(name, "udp", port_of(two[i]));
    }
    flipped = dup(two[0]);
    socklen_t size = address(&at, 4, port);
    if (pthread_create(&thread, NULL, flips_it, NULL)) broken("a thread");
    for (int i = 0; i < times; i++) MUST(syscall(SYS_connect, flipped, &at, size));
}

#if defined(__x86_64__)
static long narrow_call(long nr, long a, long b, long c) {
    long result;
    __asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(a), "c"(b), "d"(c)
                     : "memory", "r8", "r9", "r10", "r11");
    return result;
}
static void narrow(int tcp, int udp) {
    static union any at; /* below 4 GB: the program lies there */
    static uint32_t words[6];
    static char text[] = "x";
    uint32_t where = (uint32_t)(uintptr_t)&at, size = address(&at, 4, tcp);
    int fd = new_socket(4, SOCK_STREAM);
    if (narrow_call(362, fd, where, size)) broken("connect");
    tell("connect", "tcp", port_of(fd));
    uint32_t to_connect[] = {(uint32_t)new_socket(4, SOCK_STREAM), where, size};
    memcpy(words, to_connect, sizeof to_connect);
    if (narrow_call(102, 3, (long)words, 0)) broken("socketcall");
    tell("connect", "tcp", port_of((int)words[0]));
    address(&at, 4, udp);
    uint32_t to_send[] = {(uint32_t)new_socket(4, SOCK_DGRAM), (uint32_t)(uintptr_t)text, 1, 0, where, size};
    memcpy(words, to_send, sizeof to_send);
    if (narrow_call(102, 11, (long)words, 0) != 1) broken("socketcall");
    tell("sendto", "udp", port_of((int)words[0]));
}
#else
static void narrow(int tcp, int udp) {
    (void)tcp, (void)udp;
    _exit(77);
}
#endif

int main(int argc, char **argv) {
    int word[6] = {0}, running = 0;
    if (argc < 3) broken("words");
    for (int i = 2; i < argc && i < 8; i++) word[i - 2] = atoi(argv[i]);
    const char *which = argv[1];
    if (!strcmp(which, "kinds")) {
        kinds(word[0], word[1]);
        return 0;
    }
    if (!strcmp(which, "flips")) {
        flips(word[0], word[1]);
        return 0;
    }
    if (!strcmp(which, "narrow")) {
        narrow(word[0], word[1]);
        return 0;
    }
    int hasty = !strcmp(which, "hasty"), crowd = !strcmp(which, "crowd");
    int times = hasty ? word[1] : word[2], at_once = crowd ? word[3] : 4;
    for (int i = 0; i < times; i++, running++) {
        await(&running, at_once - 1);
        if (MUST(fork())) continue;
        if (hasty) one_in_haste(word[0], i);
        else if (crowd) one_of_a_crowd(word[0], word[1]);
        else one_datagram(word[0], word[1]);
        _exit(0);
    }
    await(&running, 0);
    return 0;
}
