/* A server and the clients of the egress bench, so that neither is what is measured.
 *
 * Bytes that are sent come from a file in memory by sendfile(2), bytes that are received are thrown
 * away in the kernel (MSG_TRUNC, tcp(7)): no side touches them. A thread serves a connection.
 *
 *   serve ADDRESS WEB RAW      HTTP/1.1 at port WEB, at RAW what a first line asks for; "ready"
 *   names ADDRESS NAME TO      a name server that knows one address of one name; "ready"
 *   new HOST PORT COUNT        COUNT requests, each on a connection of its own
 *   keep HOST PORT COUNT       COUNT requests on one connection
 *   down|up HOST PORT BYTES    one stream (http), or rawdown|rawup (the RAW port)
 *   many HOST PORT STREAMS BYTES         streams at a time, each with so many bytes down
 *   short HOST PORT COUNT AT_A_TIME      requests on connections of their own
 *   unread HOST PORT BYTES     the server has sent all and closed before the first is read (RAW)
 *   leave HOST PORT BYTES      closes right behind the last byte sent; then asks the server (RAW)
 *
 * With PROXY=address:port in the environment each connection begins with a CONNECT. A client
 * writes one line of numbers: seconds, what is complete (requests, streams or bytes), and where it says so more.
 * With HOLD it then waits for the end of its input, so that others can look at who served it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { FILE_BYTES = 8 << 20, TAKE = 1 << 20, LINE = 4096, SMALL = 1000 };

static int content = -1;
static const char *host, *port, *proxy;
/* bytes that the last stream up on the raw port brought; how many streams ended */
static _Atomic long long arrived, arrivals;

static void die(const char *format, ...) {
    va_list words;
    va_start(words, format);
    vfprintf(stderr, format, words);
    fprintf(stderr, ": %s\n", strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static void make_content(void) {
    content = memfd_create("content", MFD_CLOEXEC);
    char page[4096];
    memset(page, 'x', sizeof page);
    for (int i = 0; i < FILE_BYTES / 4096; i++)
        if (write(content, page, sizeof page) != sizeof page) die("content");
}

static int give(int fd, long long count) {
    while (count > 0) {
        off_t at = 0;
        ssize_t sent = sendfile(fd, content, &at, count < FILE_BYTES ? count : FILE_BYTES);
        if (sent <= 0) return -1;
        count -= sent;
    }
    return 0;
}

/* Takes `count` bytes (-1: all until the end) and returns how many came. */
static long long take(int fd, long long count) {
    static __thread char *nowhere;
    if (!nowhere) nowhere = malloc(TAKE);
    long long taken = 0;
    while (count < 0 || taken < count) {
        long long left = count < 0 ? TAKE : count - taken;
        ssize_t got = recv(fd, nowhere, left < TAKE ? left : TAKE, MSG_TRUNC);
        if (got <= 0) return got < 0 && count < 0 ? -1 : taken;
        taken += got;
    }
    return taken;
}

static int say(int fd, const char *format, ...) {
    char text[LINE];
    va_list words;
    va_start(words, format);
    int size = vsnprintf(text, sizeof text, format, words);
    va_end(words);
    return send(fd, text, size, MSG_NOSIGNAL) == size ? 0 : -1;
}

/* Reads a head up to its empty line (or a line, `ends` is "\n"), not one byte more is lost: what
 * came behind it is counted in `*behind`. */
static int head(int fd, char *text, const char *ends, long long *behind) {
    int size = 0;
    while (size < LINE - 1) {
        ssize_t got = recv(fd, text + size, LINE - 1 - size, 0);
        if (got <= 0) return -1;
        size += got;
        text[size] = 0;
        char *end = strstr(text, ends);
        if (end) {
            *behind = text + size - (end + strlen(ends));
            return 0;
        }
    }
    return -1;
}

/* --- the server */

struct accepted { int fd, raw; };

static void serve_raw(int fd) {
    char text[LINE];
    long long count, behind;
    if (head(fd, text, "\n", &behind)) return;
    count = atoll(text + 1);
    if (*text == 'D') {
        if (give(fd, count)) return;
        shutdown(fd, SHUT_WR);
        take(fd, -1);
    } else if (*text == 'C') { /* gives, and closes */
        give(fd, count);
    } else if (*text == 'U') {
        /* of no count all until the end; tinyproxy closes both ways at an end of one */
        long long got = take(fd, count ? count - behind : -1);
        arrived = got < 0 ? got : got + behind;
        arrivals++;
        say(fd, "%lld\n", arrived);
    } else if (*text == 'A') { /* what the last U brought, once there were so many */
        for (int i = 0; i < 5000 && arrivals < count; i++) usleep(1000);
        say(fd, "%lld\n", (long long)arrived);
    } else if (*text == 'N') {
        say(fd, "%lld\n", (long long)arrivals);
    }
}

static void serve_web(int fd) {
    char text[LINE];
    long long behind;
    while (!head(fd, text, "\r\n\r\n", &behind)) {
        char *length = strcasestr(text, "\ncontent-length:");
        if (length) {
            long long count = atoll(length + 16) - behind;
            if (count > 0 && take(fd, count) != count) return;
        }
        long long size = strncmp(text, "GET /", 5) ? 0 : atoll(text + 5);
        char answer[200];
        int words = sprintf(answer, "HTTP/1.1 200 OK\r\nContent-Length: %lld\r\n\r\n", size);
        if (send(fd, answer, words, MSG_NOSIGNAL | (size ? MSG_MORE : 0)) != words) return;
        if (give(fd, size)) return;
    }
}

static void *serve_one(void *given) {
    struct accepted it = *(struct accepted *)given;
    free(given);
    int on = 1;
    setsockopt(it.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    (it.raw ? serve_raw : serve_web)(it.fd);
    close(it.fd);
    return NULL;
}

static int listen_at(const char *address, int number) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(number)};
    inet_pton(AF_INET, address, &at.sin_addr);
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) die("listen on %d", number);
    return fd;
}

static void serve(const char *address, int web, int raw) {
    make_content();
    struct pollfd listeners[2] = {{listen_at(address, web), POLLIN, 0},
                                  {listen_at(address, raw), POLLIN, 0}};
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 65536);
    pthread_attr_setdetachstate(&small, PTHREAD_CREATE_DETACHED);
    puts("ready");
    fflush(stdout);
    for (;;) {
        poll(listeners, 2, -1);
        for (int i = 0; i < 2; i++) {
            if (!(listeners[i].revents & POLLIN)) continue;
            struct accepted *it = malloc(sizeof *it);
            it->raw = i;
            it->fd = accept4(listeners[i].fd, NULL, NULL, SOCK_CLOEXEC);
            pthread_t thread;
            if (it->fd < 0 || pthread_create(&thread, &small, serve_one, it)) die("accept");
        }
    }
}

/* One name, one IPv4 address; of everything else there is nothing. */
static void names(const char *address, const char *name, const char *to) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(53)};
    inet_pton(AF_INET, address, &at.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (bind(fd, (void *)&at, sizeof at)) die("names");
    unsigned char wanted[256], *end = wanted;
    for (const char *label = name; *label;) {
        int size = strcspn(label, ".");
        *end++ = size;
        memcpy(end, label, size);
        end += size;
        label += size + (label[size] == '.');
    }
    *end++ = 0;
    int length = end - wanted;
    puts("ready");
    fflush(stdout);
    for (;;) {
        unsigned char packet[600];
        struct sockaddr_in from;
        socklen_t size = sizeof from;
        ssize_t got = recvfrom(fd, packet, 512, 0, (void *)&from, &size);
        if (got < 12 + 5) continue;
        int known = got >= 12 + length + 4 && !memcmp(packet + 12, wanted, length);
        int has = known && packet[12 + length + 1] == 1;
        unsigned char *question_end = packet + 12;
        while (question_end < packet + got && *question_end) question_end += *question_end + 1;
        int used = question_end + 5 - packet;
        if (used > got) continue;
        packet[2] = 0x85, packet[3] = known ? 0x80 : 0x83;
        memset(packet + 6, 0, 6);
        packet[7] = has;
        if (has) {
            static const unsigned char record[] = {0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4};
            memcpy(packet + used, record, sizeof record);
            inet_pton(AF_INET, to, packet + used + sizeof record);
            used += sizeof record + 4;
        }
        sendto(fd, packet, used, 0, (void *)&from, size);
    }
}

/* --- clients */

static int reach(void) {
    char where[LINE];
    const char *name = host, *service = port;
    if (proxy) {
        snprintf(where, sizeof where, "%s", proxy);
        char *colon = strrchr(where, ':');
        *colon = 0;
        name = where, service = colon + 1;
    }
    struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
    int error = getaddrinfo(name, service, &hints, &found);
    if (error) {
        fprintf(stderr, "%s: %s\n", name, gai_strerror(error));
        exit(1);
    }
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, found->ai_addr, found->ai_addrlen)) die("connect to %s", name);
    freeaddrinfo(found);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    if (proxy) {
        char text[LINE];
        long long behind;
        say(fd, "CONNECT %s:%s HTTP/1.1\r\nHost: %s:%s\r\n\r\n", host, port, host, port);
        if (head(fd, text, "\r\n\r\n", &behind) || behind || !strstr(text, " 200 "))
            die("the proxy said %s", text);
    }
    return fd;
}

/* One request and its answer; the bytes of the body that came. */
static long long request(int fd, long long size) {
    char text[LINE];
    long long behind;
    if (say(fd, "GET /%lld HTTP/1.1\r\nHost: %s:%s\r\n\r\n", size, host, port)) return -1;
    if (head(fd, text, "\r\n\r\n", &behind) || !strstr(text, " 200 ")) return -1;
    return behind + take(fd, size - behind);
}

static int compare(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return (a > b) - (a < b);
}

/* first, median and 99th percentile of what follows the first; how many were right */
static void separate(int count, int keep) {
    double *took = calloc(count, sizeof *took);
    int good = 0, fd = -1;
    for (int i = 0; i < count; i++) {
        double begin = now();
        if (!keep || !i) fd = reach();
        good += request(fd, SMALL) == SMALL;
        took[i] = now() - begin;
        if (!keep) close(fd);
    }
    double first = took[0];
    qsort(took + 1, count - 1, sizeof *took, compare);
    printf("%.9f %d %.9f %.9f\n", first, good, took[1 + (count - 1) / 2],
           took[1 + (count - 1) * 99 / 100]);
}

static void stream(const char *kind, long long count) {
    int raw = !strncmp(kind, "raw", 3), up = !strcmp(kind + 3 * raw, "up");
    char text[LINE];
    long long behind = 0, done = 0;
    if (up) make_content();
    double begin = now();
    int fd = reach();
    if (raw && up) {
        if (say(fd, "U%lld\n", count) || give(fd, count)) die("up");
        if (head(fd, text, "\n", &behind)) die("up: no answer");
        done = atoll(text);
    } else if (raw) {
        say(fd, "D%lld\n", count);
        done = take(fd, -1);
    } else if (up) {
        if (say(fd, "POST /0 HTTP/1.1\r\nHost: %s:%s\r\nContent-Length: %lld\r\n\r\n", host, port,
                count) || give(fd, count) || head(fd, text, "\r\n\r\n", &behind))
            die("up");
        done = strstr(text, " 200 ") ? count : -1;
    } else {
        done = request(fd, count);
    }
    printf("%.9f %lld\n", now() - begin, done);
}

/* All are open before the first asks. */
static void many(int streams, long long count) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    int *fds = calloc(streams, sizeof *fds), ended = 0, whole = 0;
    long long *left = calloc(streams, sizeof *left);
    char *nowhere = malloc(TAKE);
    int queue = epoll_create1(EPOLL_CLOEXEC);
    double begin = now();
    for (int i = 0; i < streams; i++) fds[i] = reach();
    double opened = now() - begin;
    for (int i = 0; i < streams; i++) {
        struct epoll_event wanted = {.events = EPOLLIN, .data.u32 = i};
        say(fds[i], "GET /%lld HTTP/1.1\r\nHost: %s:%s\r\n\r\n", count, host, port);
        epoll_ctl(queue, EPOLL_CTL_ADD, fds[i], &wanted);
        left[i] = -1;
    }
    while (ended < streams) {
        struct epoll_event came[64];
        int number = epoll_wait(queue, came, 64, 30000);
        if (number <= 0) break;
        for (int i = 0; i < number; i++) {
            int which = came[i].data.u32;
            ssize_t got;
            if (left[which] < 0) { /* the head: it comes in one piece */
                char text[LINE];
                got = recv(fds[which], text, LINE - 1, MSG_PEEK);
                text[got > 0 ? got : 0] = 0;
                char *end = strstr(text, "\r\n\r\n");
                if (end) {
                    recv(fds[which], text, end + 4 - text, 0);
                    left[which] = count;
                } else if (got <= 0) {
                    left[which] = 0;
                }
                if (!end && got > 0) continue;
            } else {
                long long want = left[which] < TAKE ? left[which] : TAKE;
                got = recv(fds[which], nowhere, want, MSG_TRUNC | MSG_DONTWAIT);
                if (got < 0 && errno == EAGAIN) continue;
                if (got > 0) left[which] -= got;
                whole += got > 0 && !left[which];
            }
            if (got <= 0 || !left[which]) {
                ended++;
                epoll_ctl(queue, EPOLL_CTL_DEL, fds[which], NULL);
            }
        }
    }
    printf("%.9f %d %.9f\n", now() - begin, whole, opened);
}

static _Atomic int to_do, good;

static void *worker(void *given) {
    (void)given;
    while (to_do-- > 0) {
        int fd = reach();
        good += request(fd, SMALL) == SMALL;
        close(fd);
    }
    return NULL;
}

static void brief(int count, int at_a_time) {
    pthread_t threads[256];
    double begin = now();
    to_do = count;
    for (int i = 0; i < at_a_time; i++) pthread_create(&threads[i], NULL, worker, NULL);
    for (int i = 0; i < at_a_time; i++) pthread_join(threads[i], NULL);
    printf("%.9f %d\n", now() - begin, (int)good);
}

/* The server has said all and closed; nothing was read yet. */
static void unread(long long count) {
    double begin = now();
    int fd = reach();
    say(fd, "C%lld\n", count);
    struct tcp_info info;
    socklen_t size = sizeof info;
    for (int i = 0; i < 5000; i++) { /* the end is there, or the window is full */
        if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size)) die("TCP_INFO");
        if (info.tcpi_state == TCP_CLOSE_WAIT) break;
        usleep(100);
        if (i > 1000 && count > (1 << 20)) break;
    }
    long long done = take(fd, -1);
    printf("%.9f %lld\n", now() - begin, done);
}

static long long ask(const char *format, long long number) {
    char text[LINE];
    long long behind;
    int fd = reach();
    say(fd, format, number);
    if (head(fd, text, "\n", &behind)) die("no answer");
    close(fd);
    return atoll(text);
}

static void leave(long long count) {
    make_content();
    double begin = now();
    long long before = ask("N%lld\n", 0);
    int fd = reach();
    if (say(fd, "U\n") || give(fd, count)) die("leave");
    close(fd);
    long long done = ask("A%lld\n", before + 1);
    printf("%.9f %lld\n", now() - begin, done);
}

int main(int argc, char **argv) {
    if (argc < 5) return 2;
    const char *what = argv[1];
    signal(SIGPIPE, SIG_IGN);
    if (!strcmp(what, "serve")) serve(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (!strcmp(what, "names")) names(argv[2], argv[3], argv[4]);
    host = argv[2], port = argv[3], proxy = getenv("PROXY");
    long long count = atoll(argv[4]), more = argc > 5 ? atoll(argv[5]) : 1;
    if (!strcmp(what, "new") || !strcmp(what, "keep")) separate(count, *what == 'k');
    else if (!strcmp(what, "many")) many(count, more);
    else if (!strcmp(what, "short")) brief(count, more < 256 ? more : 256);
    else if (!strcmp(what, "unread")) unread(count);
    else if (!strcmp(what, "leave")) leave(count);
    else stream(what, count);
    fflush(stdout);
    if (getenv("HOLD")) (void)!read(0, &argc, 1);
    return 0;
}
