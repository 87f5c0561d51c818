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

static bool is_heard(const struct heard *heard, uint32_t tid)
{
    if (!heard->room)
        return false;
    for (size_t at = (tid + 1) & (heard->room - 1); heard->tids[at]; at = (at + 1) & (heard->room - 1))
        if (heard->tids[at] == tid + 1)
            return true;
    return false;
}

static void tell_made(struct engine *engine, struct record *record, uint32_t by, uint32_t tid,
                      bool thread)
{
    struct head *head = record_begin(record, FORK, by);
    head->result = tid;
    head->args[1] = thread;
    if (!thread) {
        describe_pid(record, tid, -1);
        describe_cwd(record, tid);
    }
    ring_put(&engine->ring, record);
}

/* Tells where a task comes from, the first time that it is heard of: its process, or the parent of
 * that. What was between it and the command, and made no call, is told first. One that is no
 * descendant any more (a daemon) comes from the command: who has taken it in is none of its
 * tree, and not to be told of. A number that is used again for another process is taken for the first
 * one: nobody tells of ends here. */
static void introduce(struct engine *engine, struct heard *heard, struct record *record,
                      uint32_t tid)
{
    enum { MOST_BETWEEN = 64 };
    uint32_t made[MOST_BETWEEN], by[MOST_BETWEEN], at = tid, root = engine->root;
    bool thread[MOST_BETWEEN];
    size_t count = 0;
    if (tid == root || is_heard(heard, tid))
        return;
    do {
        uint32_t process, parent;
        if (!read_parents(at, &process, &parent))
            break;
        made[count] = at;
        thread[count] = process != at;
        at = by[count] = thread[count] ? process : parent;
        count++;
    } while (at && at != root && !is_heard(heard, at) && count < MOST_BETWEEN);
    if (!count)
        return;
    if (at != root && !is_heard(heard, at)) {
        count = thread[0] && count > 1 ? 2 : 1;
        by[count - 1] = root;
    }
    while (count--)
        if (hear(heard, made[count]))
            tell_made(engine, record, by[count], made[count], thread[count]);
}

/* An exec that waits for an answer. */
struct held {
    struct held *next;
    uint64_t hold, id, at, looked_at; /* id: of the notification */
    struct call call;
    struct approval approval;
};

struct answerer {
    struct engine *engine;
    struct record record, scratch;
    struct heard heard;
    struct held *held;
    size_t held_count;
    pid_t tid;
    bool doubts;   /* whether anybody is left to receive from */
    bool root_ran; /* the command itself has exec'd, where no tracer tells of that */
    struct seccomp_notif_resp *response;
    size_t response_size;
};

/* 0, or why it could not be said: ENOENT where who asked does not wait any more. */
static int respond(struct answerer *answerer, uint64_t id, int number)
{
    struct seccomp_notif_resp *response = answerer->response;
    memset(response, 0, answerer->response_size);
    response->id = id;
    response->error = -number;
    response->flags = number ? 0 : SECCOMP_USER_NOTIF_FLAG_CONTINUE;
    while (ioctl(answerer->engine->listener, SECCOMP_IOCTL_NOTIF_SEND, response))
        if (errno != EINTR)
            return errno;
    return 0;
}

static bool is_there(const struct answerer *answerer, uint64_t id)
{
    return ioctl(answerer->engine->listener, SECCOMP_IOCTL_NOTIF_ID_VALID, &id) == 0;
}

struct reply {
    struct answerer *answerer;
    uint64_t id;
    int denied, failed;
};

static bool give_reply(void *given)
{
    struct reply *reply = given;
    reply->failed = respond(reply->answerer, reply->id, reply->denied);
    return reply->failed != ENOENT;
}

/* Lets a call go on, or denies it, and tells of it if its caller was still there: else the memory that was
 * read may have been another process'. Nothing that the caller does from here on, and not its end,
 * is told before that (ring.c). */
static void answer_and_put(struct answerer *answerer, uint64_t id, uint32_t tid, int denied)
{
    struct engine *engine = answerer->engine;
    struct reply reply = {.answerer = answerer, .id = id, .denied = denied};
    ring_put_after(&engine->ring, &answerer->record, give_reply, &reply);
    if (reply.failed && reply.failed != ENOENT)
        engine_trouble(engine, tid, ANSWER, reply.failed);
    record_rest(&answerer->record);
}

/* Here nothing can be looked at again after the exec: a thread of the caller can change what it
 * named. So this gate keeps mistakes, and nobody who wants past it; it is recorded as racy. */
static bool gate_exec(struct answerer *answerer, const struct call *call, const struct shape *shape,
                      uint64_t id, int *denied)
{
    struct engine *engine = answerer->engine;
    struct approval approval = {0};
    enum reason reason = BY_TABLE;
    enum decision decision =
        gate_look(&engine->gate, &answerer->record, call, shape, &approval, &reason);
    if (decision == ASK && !approval.left) {
        struct held *held = answerer->held_count < MOST_HELD ? calloc(1, sizeof *held) : NULL;
        uint64_t hold = engine->gate.holds + 1;
        if (held && gate_ask(engine, &answerer->record, &approval, hold)) {
            *held = (struct held){
                .next = answerer->held, .hold = hold, .id = id, .at = now_ns(),
                .looked_at = now_ns(), .call = *call, .approval = approval,
            };
            answerer->held = held;
            answerer->held_count++;
            engine->gate.holds = hold;
            return false;
        }
        free(held);
        decision = DENY;
        reason = CLIENT_GONE;
    }
    *denied = decision == ALLOW || approval.left ? 0 : EACCES;
    if (*denied)
        gate_tell(engine, &answerer->scratch, call, &approval, 0, DENY, reason);
    approval_clear(&approval);
    return true;
}

static void conclude(struct answerer *answerer, struct held *held, enum decision decision,
                     enum reason reason)
{
    struct engine *engine = answerer->engine;
    gate_tell(engine, &answerer->scratch, &held->call, &held->approval, held->hold, decision, reason);
    struct head *head = record_begin(&answerer->record, CALL, held->call.tid);
    const struct shape *shape = shape_of(engine, &held->call);
    describe_entry(&answerer->record, &held->call, shape);
    if (decision == ALLOW && shape)
        expect_program(&answerer->record, &held->call, shape);
    head = record_head(&answerer->record);
    head->result = decision == ALLOW ? 0 : -EACCES;
    head->flags |= decision == ALLOW ? UNOBSERVED : 0;
    answer_and_put(answerer, held->id, held->call.tid, decision == ALLOW ? 0 : EACCES);
    struct held **place = &answerer->held;
    while (*place != held)
        place = &(*place)->next;
    *place = held->next;
    answerer->held_count--;
    approval_clear(&held->approval);
    free(held);
}

static void serve_holds(struct answerer *answerer)
{
    struct engine *engine = answerer->engine;
    struct answer answers[ANSWERS_AT_ONCE];
    struct held *held, *next;
    size_t count;
    do {
        count = gate_answers(engine, answers);
        for (size_t i = 0; i < count; i++)
            for (held = answerer->held; held; held = held->next)
                if (held->hold == answers[i].hold) {
                    conclude(answerer, held, answers[i].decision == ALLOW ? ALLOW : DENY,
                             answers[i].reason);
                    break;
                }
    } while (count == ANSWERS_AT_ONCE);
    uint64_t now = now_ns();
    for (held = answerer->held; held; held = next) {
        next = held->next;
        if (now - held->at > (uint64_t)engine->hold_ms * 1000000) {
            conclude(answerer, held, DENY, TIME_OUT);
        } else if (now - held->looked_at > LOOK_AFTER_MS * 1000000ull) {
            held->looked_at = now;
            if (is_dying(held->call.tid) || !is_there(answerer, held->id))
                conclude(answerer, held, DENY, IS_DYING);
        }
    }
}

static void answer_one(struct answerer *answerer, const struct seccomp_notif *asked)
{
    struct engine *engine = answerer->engine;
    struct record *record = &answerer->record;
    struct call call = {.tid = asked->pid, .nr = asked->data.nr, .abi = NATIVE};
#if defined(__x86_64__)
    if (asked->data.arch == AUDIT_ARCH_I386) {
        call.abi = ABI_I386;
    } else if (call.nr & 0x40000000) {
        call.abi = ABI_X32;
        call.nr &= ~0x40000000;
    }
#else
    if (asked->data.arch != AUDIT_ARCH_AARCH64) { /* of 32 bits: no table knows it, so it is not there */
        engine_trouble(engine, call.tid, RECEIVE, ENOEXEC);
        int failed = respond(answerer, asked->id, ENOSYS);
        if (failed && failed != ENOENT)
            engine_trouble(engine, call.tid, ANSWER, failed);
        return;
    }
#endif
    for (int i = 0; i < 6; i++)
        call.args[i] = asked->data.args[i];
    narrow_call(&call);
    const struct shape *shape = shape_of(engine, &call);
    if (shape && shape->flags & SOCKETCALL && unfold_socketcall(&call))
        shape = shape_of(engine, &call);
    int denied = call.abi == NATIVE && call.nr >= 0 && call.nr < MOST_CALLS
                     ? engine->denied[call.nr]
                     : 0;
    struct head *head = record_begin(record, denied ? DENIED : CALL, call.tid);
    describe_entry(record, &call, shape);
    if (!engine->traces && !denied && shape && shape->flags & PROGRAM) {
        int refused = 0;
        if (engine->gate.armed && !gate_exec(answerer, &call, shape, asked->id, &refused))
            return; /* it waits */
        if (refused)
            denied = refused;
        else
            expect_program(record, &call, shape);
        if (record_head(record)->kind == EXEC && (pid_t)call.tid == engine->root &&
            !answerer->root_ran) {
            answerer->root_ran = true;
            describe_pid(record, call.tid, -1);
            describe_cwd(record, call.tid);
        }
    }
    head = record_head(record);
    if (denied)
        head->result = -denied;
    else
        head->flags |= UNOBSERVED;
    answer_and_put(answerer, asked->id, call.tid, denied);
}

/* Waits for a notification; false where none comes any more. To receive one is the faster wait, but
 * before Linux 6.11 it does not end with the last process: so that is done only while a tracer will
 * call us out of it (tracer.c, call_receiver). The bell is ours where no tracer has it. */
static bool wait_next(struct answerer *answerer)
{
    struct engine *engine = answerer->engine;
    if (engine->traces && !answerer->doubts) {
        atomic_store(&engine->receiver, answerer->tid);
        if (!atomic_load(&engine->trace_ended) && !atomic_load(&engine->stopping))
            return true;
    }
    atomic_store(&engine->receiver, 0);
    answerer->doubts = false;
    while (!atomic_load(&engine->stopping)) {
        struct pollfd fds[2] = {
            {.fd = engine->listener, .events = POLLIN}, {.fd = engine->bell, .events = POLLIN},
        };
        int ready = poll(fds, engine->traces ? 1 : 2, answerer->held ? LOOK_AFTER_MS : -1);
        if (answerer->held || (ready > 0 && fds[1].revents))
            serve_holds(answerer);
        if (ready <= 0)
            continue;
        if (fds[0].revents & POLLNVAL) {
            engine_trouble(engine, 0, RECEIVE, EBADF);
            return false;
        }
        if (fds[0].revents & POLLIN)
            return true;
        if (fds[0].revents & POLLHUP)
            return false;
    }
    return false;
}

void *answerer_main(void *given)
{
    struct engine *engine = given;
    struct answerer answerer = {.engine = engine, .tid = (pid_t)syscall(SYS_gettid)};
    struct seccomp_notif_sizes sizes = {0};
    struct seccomp_notif *asked = NULL;
    size_t asked_size = 0;
    if (syscall(SYS_seccomp, SECCOMP_GET_NOTIF_SIZES, 0, &sizes)) {
        engine_trouble(engine, 0, LISTENER, errno);
        goto out;
    }
    asked_size = sizes.seccomp_notif > sizeof *asked ? sizes.seccomp_notif : sizeof *asked;
    answerer.response_size = sizes.seccomp_notif_resp > sizeof(struct seccomp_notif_resp)
                                 ? sizes.seccomp_notif_resp
                                 : sizeof(struct seccomp_notif_resp);
    asked = malloc(asked_size);
    answerer.response = malloc(answerer.response_size);
    if (!asked || !answerer.response) {
        engine_trouble(engine, 0, LISTENER, ENOMEM);
        goto out;
    }
    /* the two of us on one processor (Linux 6.6); without it everything works, and slower */
    ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, 1ul);
    while (wait_next(&answerer)) {
        memset(asked, 0, asked_size);
        if (ioctl(engine->listener, SECCOMP_IOCTL_NOTIF_RECV, asked)) {
            /* ENOENT: it was killed before we took it; or there is nobody left (Linux 6.11) */
            answerer.doubts = errno == ENOENT;
            if (errno == EINTR || errno == ENOENT)
                continue;
            engine_trouble(engine, 0, RECEIVE, errno);
            break;
        }
        if (!engine->traces)
            introduce(engine, &answerer.heard, &answerer.record, asked->pid);
        answer_one(&answerer, asked);
    }
out:
    atomic_store(&engine->receiver, 0);
    while (answerer.held)
        conclude(&answerer, answerer.held, DENY, CLIENT_GONE);
    free(answerer.heard.tids);
    free(asked);
    free(answerer.response);
    record_free(&answerer.record);
    record_free(&answerer.scratch);
    /* without a listener every call that the filter sends here gets ENOSYS: nothing gets past */
    close(engine->listener);
    engine->listener = -1;
    engine_ended(engine);
    return NULL;
}
