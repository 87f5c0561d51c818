/* EXECUTE, and packets to and fro. What is called travels in a sealed memfd, since it can be larger
 * than a packet: u32 argc, envc, umask, zero, then NUL-ended file, cwd, argv, environment. Sealed, so
 * that what was decided about cannot be changed afterwards. */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static const char AGAIN[] = "run it again; `substrate doctor` tries what the session needs";

static unsigned char buffer[PACKET_MOST];

/* Bytes on their way into the memfd, through `buffer`. */
struct writing {
    int fd;
    size_t held, total;
    bool failed;
};

static void flush(struct writing *writing) {
    size_t done = 0;
    while (!writing->failed && done < writing->held) {
        ssize_t wrote = write(writing->fd, buffer + done, writing->held - done);
        if (wrote < 0 && errno == EINTR)
            continue;
        if (wrote <= 0)
            writing->failed = true;
        else
            done += (size_t)wrote;
    }
    writing->held = 0;
}

static void add(struct writing *writing, const void *bytes, size_t size) {
    const char *at = bytes;
    if (size > CALL_MOST - writing->total) {
        errno = E2BIG;
        writing->failed = true;
    }
    while (!writing->failed && size > 0) {
        size_t part = sizeof buffer - writing->held;
        if (part > size)
            part = size;
        memcpy(buffer + writing->held, at, part);
        writing->held += part;
        writing->total += part;
        at += part;
        size -= part;
        if (writing->held == sizeof buffer)
            flush(writing);
    }
}

static int call_memfd(const struct caller *caller, const char *file, struct trouble *trouble) {
    static char cwd[65536];
    uint32_t head[4] = {0, 0, 0, 0};
    struct writing writing = {-1, 0, 0, false};
    mode_t mask = umask(0);
    umask(mask);
    if (getcwd(cwd, sizeof cwd) == NULL) {
        trouble_errno(trouble, "change to a directory that exists", "the current directory");
        return -1;
    }
    head[0] = (uint32_t)caller->argc;
    while (caller->envp[head[1]] != NULL)
        head[1]++;
    head[2] = (uint32_t)mask;
    writing.fd = memfd_create("substrate-call", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (writing.fd < 0) {
        trouble_errno(trouble, AGAIN, "memfd_create");
        return -1;
    }
    add(&writing, head, sizeof head);
    add(&writing, file, strlen(file) + 1);
    add(&writing, cwd, strlen(cwd) + 1);
    for (int at = 0; at < caller->argc; at++)
        add(&writing, caller->argv[at], strlen(caller->argv[at]) + 1);
    for (uint32_t at = 0; at < head[1]; at++)
        add(&writing, caller->envp[at], strlen(caller->envp[at]) + 1);
    flush(&writing);
    if (!writing.failed &&
        fcntl(writing.fd, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0)
        return writing.fd;
    trouble_errno(trouble, "4 MiB of arguments and environment can be handed over, see `env | wc -c`",
                  "what is called cannot be written down");
    close(writing.fd);
    return -1;
}

static bool transmit(int socket, const struct packing *packing, const int *fds, unsigned count) {
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int) * 4)];
    } control;
    struct iovec part = {packing->at, packing->size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t sent;
    if (packing->cut) {
        errno = EMSGSIZE;
        return false;
    }
    if (count > 0) {
        struct cmsghdr *header;
        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * count);
        header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * count);
    }
    do
        sent = sendmsg(socket, &message, MSG_NOSIGNAL);
    while (sent < 0 && errno == EINTR);
    return sent >= 0;
}

bool call_send(const struct caller *caller, int socket, const char *mode, const char *file,
               const char *flags, bool standard, struct trouble *trouble) {
    unsigned char room[1024 + 2 * TEXT_MOST];
    struct packing packing;
    const char *parent = variable(caller, "SUBSTRATE_PARENT_SPAN");
    int fds[4];
    unsigned count = 1;
    bool sent;
    if (parent == NULL || !is_id("spn_", parent, strlen(parent)))
        parent = "";
    fds[0] = call_memfd(caller, file, trouble);
    if (fds[0] < 0)
        return false;
    for (int fd = 0; standard && fd < 3; fd++)
        if (!caller->closed[fd])
            fds[count++] = fd;
    packing_begin(&packing, room, sizeof room, 'X');
    packing_add(&packing, "1", 1);
    packing_add(&packing, mode, strlen(mode));
    packing_add(&packing, parent, strlen(parent));
    packing_add(&packing, flags, strlen(flags));
    sent = transmit(socket, &packing, fds, count);
    if (!sent)
        trouble_errno(trouble, AGAIN, "the session's supervisor cannot be told");
    close(fds[0]);
    return sent;
}

bool call_tell(int socket, char kind, const char *field) {
    unsigned char room[64];
    struct packing packing;
    packing_begin(&packing, room, sizeof room, kind);
    if (field != NULL)
        packing_add(&packing, field, strlen(field));
    return transmit(socket, &packing, NULL, 0);
}

static void close_all(struct msghdr *message) {
    for (struct cmsghdr *at = CMSG_FIRSTHDR(message); at != NULL; at = CMSG_NXTHDR(message, at)) {
        if (at->cmsg_level != SOL_SOCKET || at->cmsg_type != SCM_RIGHTS)
            continue;
        for (size_t left = (at->cmsg_len - CMSG_LEN(0)) / sizeof(int); left > 0; left--) {
            int fd;
            memcpy(&fd, CMSG_DATA(at) + (left - 1) * sizeof fd, sizeof fd);
            close(fd);
        }
    }
}

bool call_receive(int socket, struct packet *packet, struct trouble *trouble) {
    union {
        struct cmsghdr align;
        char room[CMSG_SPACE(sizeof(int) * 16)];
    } control;
    struct iovec part = {buffer, sizeof buffer};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    ssize_t size;
    message.msg_control = control.room;
    message.msg_controllen = sizeof control.room;
    do
        size = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == EINTR);
    if (size > 0)
        close_all(&message); /* nothing of the protocol comes with one */
    if (size < 0 && errno != ECONNRESET)
        return trouble_errno(trouble, AGAIN, "the session's supervisor does not answer");
    if (size <= 0)
        return trouble_say(trouble, AGAIN, "the session's supervisor has ended");
    if ((message.msg_flags & MSG_TRUNC) || !packet_parse(buffer, (size_t)size, packet))
        return trouble_say(trouble, "the client and the supervisor may be of different versions: end the "
                                    "session, and `substrate shim deploy` again",
                           "the session's supervisor answered something that is no answer");
    return true;
}
