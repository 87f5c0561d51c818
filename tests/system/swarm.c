/* Many short-lived programs with a network, for the tests of whose a connection is.

   swarm LIST PARALLEL: runs a program for each line of a file, some at a time. A line is
   `KIND ID HOST PORT SIZE LOCAL`; the program is this file again, so each has an exec of its own.
   Each says before it ends, in one write(2): `KIND ID PID PORT ERRNO`, with the local port that it had.

   Kinds: `send` connects, sends SIZE bytes and is gone; `later` the same without waiting for the
   connection; `half` ends its half and reads all that comes; `reset` sends and resets; `dies`
   sends and is killed; `source` asks for SIZE bytes, waits until they are there, and is gone without reading
   them;
   `ask` asks by getaddrinfo(3); `query` sends a question to the first name server by sendto(2) from a socket
   that is not connected, `asked` from one that is; `datagram` and `connected` send datagrams. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static char *kind, *id;

static void tell(int port, int error)
{
    char line[256];
    int length = snprintf(line, sizeof line, "%s %s %d %d %d\n", kind, id, getpid(), port, error);
    if (write(1, line, length) != length)
        abort();
}

static int is(const char *name)
{
    return strcmp(kind, name) == 0;
}

static int port_of(int fd)
{
    struct sockaddr_storage own;
    socklen_t size = sizeof own;
    if (getsockname(fd, (struct sockaddr *)&own, &size) < 0)
        return 0;
    return ntohs(((struct sockaddr_in *)&own)->sin_port); /* the same place in IPv6's */
}

static int open_socket(int family, int type, int local)
{
    int fd = socket(family, type | SOCK_CLOEXEC, 0), one = 1;
    if (type == SOCK_STREAM) /* datagram sockets would share the port */
        setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (local) {
        struct sockaddr_in6 own = {.sin6_family = family, .sin6_port = htons(local)};
        socklen_t size = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof own;
        int tries = 0;
        if (family == AF_INET)
            ((struct sockaddr_in *)&own)->sin_addr.s_addr = 0;
        while (bind(fd, (struct sockaddr *)&own, size) < 0 && tries++ < 2000)
            usleep(1000); /* another program has it for a moment */
    }
    return fd;
}

static int question(unsigned char *packet, const char *name)
{
    int at = 12;
    memcpy(packet, "\x12\x34\x01\0\0\1\0\0\0\0\0", 11);
    packet[11] = 0;
    while (*name) {
        int length = strcspn(name, ".");
        packet[at++] = length;
        memcpy(packet + at, name, length);
        at += length;
        name += length + (name[length] == '.');
    }
    memcpy(packet + at, "\0\0\1\0\1", 5);
    return at + 5;
}

static void ask_raw(const char *name, const char *server, int local)
{
    unsigned char packet[512], answer[512];
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(53)};
    int fd = open_socket(AF_INET, SOCK_DGRAM, local), length = question(packet, name), error = 0;
    inet_pton(AF_INET, server, &to.sin_addr);
    struct sockaddr *address = (struct sockaddr *)&to;
    if (is("asked")) {
        if (connect(fd, address, sizeof to) < 0 || send(fd, packet, length, 0) < 0)
            error = errno;
        address = NULL;
    } else if (sendto(fd, packet, length, 0, address, sizeof to) < 0) {
        error = errno;
    }
    struct pollfd wait = {fd, POLLIN, 0};
    if (!local) { /* else it is gone before the question was looked at */
        poll(&wait, 1, 20000);
        if (recv(fd, answer, sizeof answer, MSG_DONTWAIT) < 12)
            error = errno;
    }
    tell(port_of(fd), error);
}

static void send_datagrams(const char *host, const char *port, int local)
{
    struct addrinfo *to, hints = {.ai_socktype = SOCK_DGRAM, .ai_flags = AI_NUMERICHOST};
    if (getaddrinfo(host, port, &hints, &to))
        abort();
    int fd = open_socket(to->ai_family, SOCK_DGRAM, local), error = 0;
    if (is("connected")) {
        if (connect(fd, to->ai_addr, to->ai_addrlen) < 0 || send(fd, id, strlen(id), 0) < 0)
            error = errno;
    } else if (sendto(fd, id, strlen(id), 0, to->ai_addr, to->ai_addrlen) < 0) {
        error = errno;
    }
    tell(port_of(fd), error);
}

static void talk(const char *host, const char *port, int size, int local)
{
    struct addrinfo *to, hints = {.ai_socktype = SOCK_STREAM};
    char data[8192];
    int wanted = 0;
    if (getaddrinfo(host, port, &hints, &to)) {
        tell(0, 255);
        return;
    }
    if (is("ask")) {
        tell(0, 0);
        return;
    }
    int fd = open_socket(to->ai_family, SOCK_STREAM, local);
    if (is("later"))
        fcntl(fd, F_SETFL, O_NONBLOCK);
    struct pollfd wait = {fd, POLLOUT, 0};
    int failed = connect(fd, to->ai_addr, to->ai_addrlen);
    if (failed < 0 && errno == EINPROGRESS) {
        int error = 0;
        socklen_t length = sizeof error;
        poll(&wait, 1, 20000);
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        errno = error;
        failed = error ? -1 : 0;
    }
    if (failed < 0) {
        tell(port_of(fd), errno);
        return;
    }
    fcntl(fd, F_SETFL, 0);
    memset(data, 'x', sizeof data);
    int length = snprintf(data, sizeof data, "%s\n", id);
    if (is("source")) {
        wanted = size;
        length = size = snprintf(data, sizeof data, "%d\n", wanted);
    }
    data[length] = 'x';
    for (int at = 0; at < size;) {
        int most = size - at < (int)sizeof data ? size - at : (int)sizeof data;
        int count = send(fd, data, most, MSG_NOSIGNAL);
        if (count < 0)
            break;
        at += count;
        memset(data, 'x', length + 1);
    }
    wait.events = POLLIN;
    if (is("half")) {
        shutdown(fd, SHUT_WR);
        while (read(fd, data, sizeof data) > 0)
            ;
    } else if (is("source")) {
        for (int there = 0, tries = 0; there < wanted && tries < 20000; tries++) {
            usleep(500);
            ioctl(fd, FIONREAD, &there);
        }
    } else if (is("reset")) {
        struct linger abrupt = {1, 0};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &abrupt, sizeof abrupt);
    }
    tell(port_of(fd), 0);
    if (is("dies"))
        kill(getpid(), SIGKILL);
    close(fd);
}

static int swarm(char *self, const char *list, int parallel)
{
    FILE *file = fopen(list, "r");
    char line[512], *words[8];
    int running = 0;
    if (!file)
        return 2;
    while (fgets(line, sizeof line, file)) {
        int count = 0;
        words[count++] = self;
        for (char *word = strtok(line, " \n"); word && count < 7; word = strtok(NULL, " \n"))
            words[count++] = word;
        words[count] = NULL;
        if (running >= parallel && wait(NULL) > 0)
            running--;
        if (fork() == 0) {
            execv(self, words);
            _exit(3);
        }
        running++;
    }
    while (wait(NULL) > 0)
        ;
    return 0;
}

int main(int count, char **words)
{
    if (count == 3)
        return swarm(words[0], words[1], atoi(words[2]));
    if (count != 7)
        return 2;
    kind = words[1];
    id = words[2];
    int size = atoi(words[5]), local = atoi(words[6]);
    if (is("query") || is("asked"))
        ask_raw(words[3], words[4], local);
    else if (is("datagram") || is("connected"))
        send_datagrams(words[3], words[4], local);
    else
        talk(words[3], words[4], size, local);
    return 0;
}
