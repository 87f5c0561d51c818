/* The answerer: one thread, which serves the listener of the command's filter (seccomp_unotify(2)).
 *
 * What the filter sends here is seen at its entry only. A call of the list of denials gets its
 * error and never runs; every other one goes on, whatever it is: nothing is decided from memory
 * that the process could change afterwards. */
#include "engine.h"
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS _IOW('!', 4, __u64)
#endif

/* Tasks that were heard of, where no tracer tells of them: tid + 1, open addressing. */
struct heard {
    uint32_t *tids;
    size_t room, count;
};

/* Whether it is new; then it is one of them. */
static bool hear(struct heard *heard, uint32_t tid)
{
    if (2 * heard->count >= heard->room) {
        size_t room = heard->room ? 2 * heard->room : 1024;
        uint32_t *tids = calloc(room, sizeof *tids);
        if (!tids)
            return false;
        for (size_t i = 0; i < heard->room; i++)
            if (heard->tids[i]) {
                size_t at = heard->tids[i] & (room - 1);
                while (tids[at])
                    at = (at + 1) & (room - 1);
                tids[at] = heard->tids[i];
            }
        free(heard->tids);
        heard->tids = tids;
        heard->room = room;
    }
    size_t at = (tid + 1) & (heard->room - 1);
    while (heard->tids[at]) {
        if (heard->tids[at] == tid + 1)
            return false;
        at = (at + 1) & (heard->room - 1);
    }
    heard->tids[at] = tid + 1;
    heard->count++;
    return true;
}

/* Tells where a task comes from, the first time that it is heard of: its process, or the parent of
 * that. What was between it and the command, and made no call, is told first. A number that is
 * used again for another process is taken for the first one: nobody tells of ends here. */
static void introduce(struct engine *engine, struct heard *heard, struct record *record,
                      uint32_t tid, int depth)
{
    uint32_t process, parent;
    if ((pid_t)tid == engine->root || depth > 64 || !hear(heard, tid) ||
        !read_parents(tid, &process, &parent))
        return;
    bool thread = process != tid;
    introduce(engine, heard, record, thread ? process : parent, depth + 1);
    struct head *head = record_begin(record, FORK, thread ? process : parent);
    head->result = tid;
    head->args[1] = thread;
    if (!thread) {
        describe_pid(record, tid, -1);
        describe_cwd(record, tid);
    }
    ring_put(&engine->ring, record);
}

static void answer_one(struct engine *engine, struct record *record,
                       const struct seccomp_notif *asked, struct seccomp_notif_resp *response)
{
    struct call call = {.tid = asked->pid, .nr = asked->data.nr, .abi = NATIVE};
#if defined(__x86_64__)
    if (asked->data.arch == AUDIT_ARCH_I386)
        call.abi = ABI_I386;
    else if (call.nr & 0x40000000) {
        call.abi = ABI_X32;
        call.nr &= ~0x40000000;
    }
#endif
    for (int i = 0; i < 6; i++)
        call.args[i] = asked->data.args[i];
    int denied = call.abi == NATIVE && call.nr >= 0 && call.nr < MOST_CALLS ? engine->denied[call.nr] : 0;
    const struct shape *shape = shape_of(engine, &call);
    struct head *head = record_begin(record, denied ? DENIED : CALL, call.tid);
    describe_entry(engine, record, &call, shape);
    if (!engine->traces && !denied && shape && shape->flags & PROGRAM)
        expect_program(record, &call, shape);
    head = record_head(record);
    if (denied)
        head->result = -denied;
    else
        head->flags |= UNOBSERVED;
    /* gone while we read: the memory may have been another process' */
    uint64_t id = asked->id;
    if (ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0)
        ring_put(&engine->ring, record);
    response->id = asked->id;
    response->val = 0;
    response->error = -denied;
    response->flags = denied ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
}

void *answerer_main(void *given)
{
    struct engine *engine = given;
    struct record record = {0};
    struct heard heard = {0};
    struct seccomp_notif_sizes sizes = {0};
    struct seccomp_notif *asked = NULL;
    struct seccomp_notif_resp *response = NULL;
    size_t asked_size = 0, response_size = 0;
    if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes)) {
        engine_trouble(engine, 0, LISTENER, errno);
        goto out;
    }
    asked_size = sizes.seccomp_notif > sizeof *asked ? sizes.seccomp_notif : sizeof *asked;
    response_size =
        sizes.seccomp_notif_resp > sizeof *response ? sizes.seccomp_notif_resp : sizeof *response;
    asked = malloc(asked_size);
    response = malloc(response_size);
    if (!asked || !response) {
        engine_trouble(engine, 0, LISTENER, ENOMEM);
        goto out;
    }
    /* the two of us on one processor (Linux 6.6); without it everything works, and slower */
    ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1ul);
    for (;;) {
        memset(asked, 0, asked_size);
        if (ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_RECV, asked)) {
            if (atomic_load(&engine->stopping))
                break;
            if (errno == EINTR)
                continue;
            if (errno == ENOENT) { /* it was killed before we took it, or nobody is left */
                struct pollfd end = {.fd = engine->listener, .events = POLLIN};
                if (poll(&end, 1, 0) >= 0 && end.revents & POLLHUP)
                    break;
                continue;
            }
            engine_trouble(engine, 0, RECEIVE, errno);
            break;
        }
        memset(response, 0, response_size);
        if (!engine->traces)
            introduce(engine, &heard, &record, asked->pid, 0);
        answer_one(engine, &record, asked, response);
        if (ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_SEND, response) && errno != ENOENT)
            engine_trouble(engine, asked->pid, ANSWER, errno);
    }
out:
    free(heard.tids);
    free(asked);
    free(response);
    record_free(&record);
    /* without a listener every call that the filter sends here gets ENOSYS: nothing gets past */
    close(engine->listener);
    engine->listener = -1;
    engine_ended(engine);
    return NULL;
}
