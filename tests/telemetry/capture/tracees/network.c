/* Sockets on loopback and in the file system. argv[1]: inet, inet6, datagram, unix, odd, dns.
 * Every port is the kernel's choice. `dns` asks 127.0.0.1:argv[2] for argv[3]. */
#include "tell.h"

static long with_address(const char *call, long result, const void *address, socklen_t size) {
    result = result < 0 ? -errno : result;
    TELL(.kind = "call", .call = call, .result = result, .address = {address_of(address, size)});
    return result;
}
#define NET(name, fd, address, size)                                                             \
    with_address(#name, syscall(SYS_##name, fd, address, size), address, size)

static int socket_(int family, int type) {
    return (int)must("socket", DO(socket, NULL, NULL, family, type | SOCK_CLOEXEC, 0));
}

union any {
    struct sockaddr any;
    struct sockaddr_in in;
    struct sockaddr_in6 in6;
    struct sockaddr_un un;
};

static socklen_t loopback(union any *at, int family, int port) {
    memset(at, 0, sizeof *at);
    at->any.sa_family = (sa_family_t)family;
    if (family == AF_INET) {
        at->in.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        at->in.sin_port = htons((uint16_t)port);
        return sizeof at->in;
    }
    at->in6.sin6_addr = in6addr_loopback;
    at->in6.sin6_port = htons((uint16_t)port);
    return sizeof at->in6;
}
static int bound(int family, int type, union any *at) {
    int fd = socket_(family, type);
    socklen_t size = loopback(at, family, 0);
    long r = NET(bind, fd, at, size);
    if (r == -EADDRNOTAVAIL) _exit(MISSING);
    WANT(0, r);
    size = sizeof *at;
    WANT(0, getsockname(fd, &at->any, &size));
    return fd;
}
static socklen_t size_of(const union any *at) {
    return at->any.sa_family == AF_INET ? sizeof at->in : sizeof at->in6;
}
static int accepted(int listener, int by_accept4) {
    union any peer = {0};
    socklen_t size = sizeof peer;
    long fd = by_accept4 ? syscall(SYS_accept4, listener, &peer, &size, SOCK_CLOEXEC)
                         : syscall(SYS_accept, listener, &peer, &size);
    with_address(by_accept4 ? "accept4" : "accept", fd, &peer, size);
    return (int)must("accept", fd);
}

static void streams(int family) {
    union any at, silent, nowhere;
    int listener = bound(family, SOCK_STREAM, &at);
    WANT(0, DO(listen, NULL, NULL, listener, 8));
    for (int i = 0; i < 4; i++) {
        int client = socket_(family, SOCK_STREAM);
        WANT(0, NET(connect, client, &at, size_of(&at)));
        int server = accepted(listener, i & 1);
        WANT(-EISCONN, NET(connect, client, &at, size_of(&at)));
        close(client);
        close(server);
    }
    /* where nobody listens; where the answer takes longer than one asks for */
    bound(family, SOCK_STREAM, &silent);
    int client = socket_(family, SOCK_STREAM);
    WANT(-ECONNREFUSED, NET(connect, client, &silent, size_of(&silent)));
    client = socket_(family, SOCK_STREAM | SOCK_NONBLOCK);
    NET(connect, client, &at, size_of(&at));
    accepted(listener, 1);
    loopback(&nowhere, family, 1);
    WANT(-EBADF, NET(connect, 999, &nowhere, size_of(&nowhere)));
    WANT(-EADDRINUSE, NET(bind, socket_(family, SOCK_STREAM), &at, size_of(&at)));
    WANT(-EAGAIN, ({
        int quick = bound(family, SOCK_STREAM | SOCK_NONBLOCK, &silent);
        WANT(0, DO(listen, NULL, NULL, quick, 1));
        DO(accept4, NULL, NULL, quick, NULL, NULL, 0);
    }));
}

static void sent(int fd, const char *data, union any *at) {
    long n = syscall(SYS_sendto, fd, data, strlen(data), 0, at, at ? size_of(at) : 0);
    TELL(.kind = "call", .call = "sendto", .result = must("sendto", n), .data = data,
         .data_size = strlen(data), .address = {at ? address_of(at, size_of(at)) : NULL},
         .spot = at ? NULL : "peerless");
}

static void datagrams(int family) {
    union any first, second, none = {0};
    int one = bound(family, SOCK_DGRAM, &first), two = bound(family, SOCK_DGRAM, &second);
    (void)two;
    sent(one, "to an address", &second);
    struct iovec part = {"by message", 10};
    struct msghdr message = {&second, size_of(&second), &part, 1, NULL, 0, 0};
    long n = syscall(SYS_sendmsg, one, &message, 0);
    TELL(.kind = "call", .call = "sendmsg", .result = must("sendmsg", n),
         .address = {address_of(&second, size_of(&second))});
    struct mmsghdr messages[3] = {{message, 0}, {message, 0}, {message, 0}};
    messages[1].msg_hdr.msg_name = &first;
    n = syscall(SYS_sendmmsg, one, messages, 3, 0);
    TELL(.kind = "call", .call = "sendmmsg", .result = must("sendmmsg", n),
         .address = {address_of(&second, size_of(&second)), address_of(&first, size_of(&first)),
                     address_of(&second, size_of(&second))});
    WANT(0, NET(connect, one, &second, size_of(&second)));
    sent(one, "to the peer", NULL);
    WANT(0, NET(connect, one, &none, sizeof(struct sockaddr)));
}

static socklen_t named(union any *at, const char *name, int abstract) {
    memset(at, 0, sizeof *at);
    at->un.sun_family = AF_UNIX;
    strcpy(at->un.sun_path + abstract, name);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name) + 1);
}

static void local(void) {
    union any at;
    for (int abstract = 0; abstract < 2; abstract++) {
        char name[64] = "a socket";
        if (abstract) snprintf(name, sizeof name, "substrate-tracee-%d", getpid());
        int listener = socket_(AF_UNIX, SOCK_STREAM);
        socklen_t size = named(&at, name, abstract);
        WANT(0, NET(bind, listener, &at, size));
        WANT(0, DO(listen, NULL, NULL, listener, 4));
        int client = socket_(AF_UNIX, SOCK_STREAM);
        WANT(0, NET(connect, client, &at, size));
        accepted(listener, 1); /* the peer has no name */
        WANT(-EADDRINUSE, NET(bind, socket_(AF_UNIX, SOCK_STREAM), &at, size));
        int datagram = socket_(AF_UNIX, SOCK_DGRAM);
        socklen_t other = named(&at, abstract ? "substrate-tracee-nowhere" : "absent", abstract);
        WANT(abstract ? -ECONNREFUSED : -ENOENT, NET(connect, datagram, &at, other));
    }
    int pair[2];
    WANT(0, DO(socketpair, NULL, NULL, AF_UNIX, SOCK_DGRAM, 0, pair));
    struct iovec part = {"between", 7};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    WANT(7, DO(sendmsg, NULL, NULL, pair[0], &message, 0));
    /* a name that fills all its room, without an end */
    memset(&at, 0, sizeof at);
    at.un.sun_family = AF_UNIX;
    memset(at.un.sun_path, 'u', sizeof at.un.sun_path);
    NET(bind, socket_(AF_UNIX, SOCK_STREAM), &at, sizeof at.un);
}

static void odd(void) {
    union any at = {0};
    int fd = socket_(AF_INET, SOCK_STREAM);
    WANT(-EFAULT, DO(connect, NULL, NULL, fd, (void *)1, sizeof at.in));
    WANT(-EINVAL, DO(connect, NULL, NULL, fd, &at, -1));
    WANT(-EAFNOSUPPORT, DO(socket, NULL, NULL, 77, SOCK_STREAM, 0));
    int file = (int)DO(openat, P("."), NULL, AT_FDCWD, ".", O_RDONLY);
    loopback(&at, AF_INET, 1);
    WANT(-1, syscall(SYS_connect, file, &at, sizeof at.in));
    TELL(.kind = "call", .call = "connect", .path = here, .result = -errno,
         .address = {address_of(&at, sizeof at.in)});
    WANT(-EFAULT, DO(sendmsg, NULL, NULL, fd, (void *)1, 0));
    WANT(-EOPNOTSUPP, DO(listen, NULL, NULL, socket_(AF_INET, SOCK_DGRAM), 1));
}

static size_t question(char *to, const char *name, int type) {
    char *at = to;
    memcpy(at, "\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00", 12);
    at += 12;
    while (*name) {
        size_t size = strcspn(name, ".");
        *at++ = (char)size;
        memcpy(at, name, size);
        at += size;
        name += size + (name[size] == '.');
    }
    *at++ = 0;
    memcpy(at, "\0\0\0\1", 4);
    at[1] = (char)type;
    return (size_t)(at + 4 - to);
}

static void dns(int port, const char *name) {
    union any server;
    char ask[2][512], answer[512];
    size_t sizes[2] = {question(ask[0], name, 1), question(ask[1], name, 28)};
    loopback(&server, AF_INET, port);
    int fd = socket_(AF_INET, SOCK_DGRAM);
    long n = syscall(SYS_sendto, fd, ask[0], sizes[0], 0, &server, sizeof server.in);
    TELL(.kind = "call", .call = "sendto", .result = must("sendto", n), .data = ask[0],
         .data_size = sizes[0], .address = {address_of(&server, sizeof server.in)});
    WANT(1, recv(fd, answer, sizeof answer, 0) > 12);
    /* as a libc's resolver does: connected, both questions in one call */
    WANT(0, NET(connect, fd, &server, sizeof server.in));
    struct iovec parts[2] = {{ask[0], sizes[0]}, {ask[1], sizes[1]}};
    struct mmsghdr both[2] = {{{.msg_iov = &parts[0], .msg_iovlen = 1}, 0},
                              {{.msg_iov = &parts[1], .msg_iovlen = 1}, 0}};
    WANT(2, DO(sendmmsg, NULL, NULL, fd, both, 2, 0));
    for (int i = 0; i < 2; i++) WANT(1, recv(fd, answer, sizeof answer, 0) > 12);
}

int main(int argc, char **argv) {
    BEGIN();
    const char *which = argc > 1 ? argv[1] : "";
    if (!strcmp(which, "inet")) streams(AF_INET);
    else if (!strcmp(which, "inet6")) streams(AF_INET6);
    else if (!strcmp(which, "datagram")) { datagrams(AF_INET); datagrams(AF_INET6); }
    else if (!strcmp(which, "unix")) local();
    else if (!strcmp(which, "odd")) odd();
    else if (!strcmp(which, "dns") && argc > 3) dns(atoi(argv[2]), argv[3]);
    else broken("no such way", 0);
    leave(0);
}
