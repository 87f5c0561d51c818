/* The tracer: one thread, the ptracer of a command's tree (ptrace(2), capture.md §3).
 *
 * It seizes the waiting command and then waits by itself (__WALL | __WNOTHREAD, so that no child
 * of another thread is taken). A call that the filter answers with RET_TRACE stops twice: at its
 * entry, where a record is begun, and at its exit, where it gets the result. Everything else runs
 * free. Rules: SEIZE and never ATTACH; a group stop is left by LISTEN, so that job control works;
 * signals go on as they came; a new task is told before anything that it does; EXITKILL ends the
 * tree with us. */
#include "engine.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/audit.h>
#include <linux/ptrace.h>
#include <elf.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif

enum {
    OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
              PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL,
    FIRST_TICK_US = 100, LAST_TICK_US = 5000,
    OUR_STOP = 0x5353, /* filters.py, OURS: SECCOMP_RET_DATA of our filter */
};
#if defined(__x86_64__)
enum { NR_CLONE = 56, NR_CLONE3 = 435, NR_FORK = 57, NR_VFORK = 58 };
#elif defined(__aarch64__)
enum { NR_CLONE = 220, NR_CLONE3 = 435, NR_FORK = -1, NR_VFORK = -1 };
#else
#error "x86_64 and aarch64 only"
#endif

struct task {
    struct task *next;
    pid_t tid, process;
    bool born;    /* its FORK was told */
    bool ran;     /* it has exec'd */
    bool waits;   /* it has stopped for the first time, and is not let go before that */
    bool in_call; /* between the entry and the exit of a call */
    struct call call;
    const struct shape *shape;
    struct record record;
    struct approval approval;
    uint64_t hold; /* not 0: it waits for an answer */
    uint64_t held_at, looked_at;
};

struct tracer {
    struct engine *engine;
    struct record scratch;
    size_t held, unborn;
    unsigned tick_us;
    int pid_space; /* the namespace of the command's pids */
};

/* --- tasks */

static struct task **place_of(struct engine *engine, pid_t tid)
{
    struct task **place = &engine->tasks[(unsigned)tid % TASK_BUCKETS];
    while (*place && (*place)->tid != tid)
        place = &(*place)->next;
    return place;
}

static struct task *find_task(struct engine *engine, pid_t tid)
{
    return *place_of(engine, tid);
}

static struct task *add_task(struct engine *engine, pid_t tid, pid_t process)
{
    struct task *task = calloc(1, sizeof *task);
    if (!task)
        return NULL;
    task->tid = tid;
    task->process = process;
    pthread_mutex_lock(&engine->state);
    struct task **place = place_of(engine, tid);
    task->next = *place;
    *place = task;
    engine->task_count++;
    pthread_mutex_unlock(&engine->state);
    return task;
}

static struct task *take_task(struct engine *engine, pid_t tid)
{
    pthread_mutex_lock(&engine->state);
    struct task **place = place_of(engine, tid), *task = *place;
    if (task) {
        *place = task->next;
        engine->task_count--;
    }
    pthread_mutex_unlock(&engine->state);
    return task;
}

static void put_back(struct engine *engine, struct task *task)
{
    pthread_mutex_lock(&engine->state);
    struct task **place = place_of(engine, task->tid);
    task->next = *place;
    *place = task;
    engine->task_count++;
    pthread_mutex_unlock(&engine->state);
}

static void free_task(struct tracer *tracer, struct task *task)
{
    if (task->hold)
        tracer->held--;
    if (!task->born)
        tracer->unborn--;
    approval_clear(&task->approval);
    record_free(&task->record);
    free(task);
}

void engine_kill(struct engine *engine)
{
    pthread_mutex_lock(&engine->state);
    for (size_t i = 0; i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i]; task; task = task->next)
            syscall(SYS_tgkill, task->process, task->tid, SIGKILL);
    pthread_mutex_unlock(&engine->state);
}

/* --- stops */

static void resume(struct tracer *tracer, const struct task *task, int signal)
{
    long how = task->in_call ? PTRACE_SYSCALL : PTRACE_CONT;
    if (ptrace(how, task->tid, NULL, (void *)(long)signal) && errno != ESRCH)
        engine_trouble(tracer->engine, task->tid, RESUME, errno);
}

/* The registers that make it not happen: number -1, and a result. */
static bool refuse_call(struct tracer *tracer, pid_t tid, int number)
{
#if defined(__x86_64__)
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, tid, NULL, &registers))
        goto failed;
    registers.orig_rax = -1;
    registers.rax = -(long)number;
    if (ptrace(PTRACE_SETREGS, tid, NULL, &registers))
        goto failed;
#else
    struct user_regs_struct registers;
    int none = -1;
    struct iovec all = {&registers, sizeof registers}, call = {&none, sizeof none};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all))
        goto failed;
    registers.regs[0] = -(long)number;
    if (ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &all) ||
        ptrace(PTRACE_SETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &call))
        goto failed;
#endif
    return true;
failed:
    /* a call that was to be refused and is not must not happen */
    if (errno != ESRCH)
        engine_trouble(tracer->engine, tid, REGISTERS, errno);
    kill(tid, SIGKILL);
    return false;
}

static bool change_argument_0(pid_t tid, uint64_t word)
{
#if defined(__x86_64__)
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, tid, NULL, &registers))
        return false;
    registers.rdi = word;
    return ptrace(PTRACE_SETREGS, tid, NULL, &registers) == 0;
#else
    struct user_regs_struct registers;
    struct iovec all = {&registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all))
        return false;
    registers.regs[0] = word;
    return ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &all) == 0;
#endif
}

/* The stack pointer of a new program, and how wide its words are. */
static bool stack_of(pid_t tid, uint64_t *pointer, size_t *width)
{
    struct user_regs_struct registers;
#if defined(__x86_64__)
    if (ptrace(PTRACE_GETREGS, tid, NULL, &registers))
        return false;
    *pointer = registers.rsp;
    *width = registers.cs == 0x23 ? 4 : 8; /* __USER32_CS; x32 has words of 8 bytes there too */
#else
    struct iovec all = {&registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all))
        return false;
    *pointer = registers.sp;
    *width = all.iov_len == sizeof registers ? 8 : 4;
#endif
    return true;
}

/* Number and first argument of the call that made a child. */
static bool clone_call(pid_t tid, long *nr, uint64_t *first)
{
#if defined(__x86_64__)
    struct user_regs_struct registers;
    if (ptrace(PTRACE_GETREGS, tid, NULL, &registers))
        return false;
    *nr = registers.orig_rax;
    *first = registers.rdi;
#else
    struct user_regs_struct registers;
    struct iovec all = {&registers, sizeof registers};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all))
        return false;
    *nr = registers.regs[8];
    *first = registers.regs[0];
#endif
    return true;
}

/* An exec that was looked at goes on or is refused; it is resumed. */
static void conclude(struct tracer *tracer, struct task *task, enum decision decision,
                     enum reason reason)
{
    if (reason != BY_TABLE || decision != ALLOW)
        gate_tell(tracer->engine, &tracer->scratch, &task->call, &task->approval, task->hold, decision,
                  reason);
    if (task->hold) {
        task->hold = 0;
        tracer->held--;
    }
    task->approval.decision = decision;
    if (decision != ALLOW) {
        record_head(&task->record)->result = -EACCES;
        record_head(&task->record)->kind = CALL;
        ring_put(&tracer->engine->ring, &task->record);
        task->in_call = false;
        if (!refuse_call(tracer, task->tid, EACCES))
            return;
    }
    resume(tracer, task, 0);
}

static void gate_exec(struct tracer *tracer, struct task *task)
{
    struct engine *engine = tracer->engine;
    enum reason reason = BY_TABLE;
    enum decision decision = gate_look(&engine->gate, &task->record, &task->call, task->shape,
                                       &task->approval, &reason);
    if (task->approval.left || decision != ASK) {
        conclude(tracer, task, decision == ASK ? ALLOW : decision, reason);
        return;
    }
    task->hold = ++engine->gate.holds;
    task->held_at = task->looked_at = now_ns();
    tracer->held++;
    tracer->tick_us = FIRST_TICK_US;
    gate_ask(engine, &task->record, task->hold);
}

/* A child that nobody would tell of (CLONE_UNTRACED) is told of as every other one. False where the
 * call was refused, or its caller killed. */
static bool keep_child(struct tracer *tracer, struct task *task)
{
    struct call *call = &task->call;
    uint64_t flags = call->args[0];
    if (task->shape->flags & CLONES_3) {
        if (read_memory(task->tid, call->args[0], &flags, sizeof flags) != sizeof flags)
            flags = CLONE_UNTRACED; /* what cannot be read is not let through */
        /* the flags are in its memory, and could be changed back: let it use clone(2) */
        return !(flags & CLONE_UNTRACED) || (refuse_call(tracer, task->tid, ENOSYS), false);
    }
    if (!(flags & CLONE_UNTRACED))
        return true;
    if (change_argument_0(task->tid, flags & ~(uint64_t)CLONE_UNTRACED))
        return true;
    engine_trouble(tracer->engine, task->tid, REGISTERS, errno);
    kill(task->tid, SIGKILL);
    return false;
}

/* `ours`: the filter that stopped it is ours, and not one of the program's own. */
static bool read_call(struct tracer *tracer, struct task *task, bool *ours)
{
    struct ptrace_syscall_info info;
    memset(&info, 0, sizeof info);
    if (ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, (void *)sizeof info, &info) < 0) {
        if (errno != ESRCH)
            engine_trouble(tracer->engine, task->tid, INFORMATION, errno);
        return false;
    }
    struct call *call = &task->call;
    *ours = info.op != PTRACE_SYSCALL_INFO_SECCOMP || info.seccomp.ret_data == OUR_STOP;
    call->tid = task->tid;
    call->nr = info.op == PTRACE_SYSCALL_INFO_SECCOMP ? info.seccomp.nr : info.entry.nr;
    for (int i = 0; i < 6; i++)
        call->args[i] =
            info.op == PTRACE_SYSCALL_INFO_SECCOMP ? info.seccomp.args[i] : info.entry.args[i];
    call->abi = NATIVE;
#if defined(__x86_64__)
    if (info.arch == AUDIT_ARCH_I386)
        call->abi = ABI_I386;
    else if (call->nr & 0x40000000) {
        call->abi = ABI_X32;
        call->nr &= ~0x40000000;
    }
#endif
    return true;
}

static void on_entry(struct tracer *tracer, struct task *task)
{
    struct engine *engine = tracer->engine;
    bool ours;
    task->in_call = false;
    if (!read_call(tracer, task, &ours)) {
        resume(tracer, task, 0);
        return;
    }
    if (!ours && !refuse_call(tracer, task->tid, ENOSYS)) /* as where nobody traces (seccomp(2)) */
        return;
    task->shape = shape_of(engine, &task->call);
    if (task->shape && task->shape->flags & SOCKETCALL && unfold_socketcall(&task->call))
        task->shape = shape_of(engine, &task->call);
    if (ours && task->shape && task->shape->flags & (CLONES | CLONES_3) &&
        (!keep_child(tracer, task) || !engine->everything)) {
        resume(tracer, task, 0);
        return;
    }
    if (!task->shape && !engine->everything) {
        resume(tracer, task, 0);
        return;
    }
    record_begin(&task->record, CALL, task->tid);
    describe_entry(engine, &task->record, &task->call, task->shape);
    task->in_call = true;
    if (ours && engine->gate.armed && task->shape && task->shape->flags & PROGRAM)
        gate_exec(tracer, task);
    else
        resume(tracer, task, 0);
}

static void on_return(struct tracer *tracer, struct task *task)
{
    struct ptrace_syscall_info info;
    memset(&info, 0, sizeof info);
    if (!task->in_call) {
        resume(tracer, task, 0);
        return;
    }
    task->in_call = false;
    if (ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, (void *)sizeof info, &info) < 0) {
        if (errno != ESRCH)
            engine_trouble(tracer->engine, task->tid, INFORMATION, errno);
        record_head(&task->record)->flags |= UNOBSERVED;
        ring_put(&tracer->engine->ring, &task->record);
        resume(tracer, task, 0);
        return;
    }
    int64_t result = info.exit.rval;
    struct head *head = record_head(&task->record);
    head->result = result;
    if (result <= -512 && result >= -516) /* ERESTARTSYS … of the kernel's own */
        head->flags |= RESTARTED;
    describe_exit(&task->record, &task->call, task->shape, result);
    ring_put(&tracer->engine->ring, &task->record);
    approval_clear(&task->approval);
    resume(tracer, task, 0);
}

/* --- new tasks */

/* A signal that comes before the answerer has taken a notification ends the wait for it as if the
 * call had been interrupted: a handler without SA_RESTART would let an open(2) of a file fail with
 * EINTR, which no kernel does. So such a call is begun again whatever the handler says
 * (-ERESTARTNOINTR in place of -ERESTARTSYS, which the kernel reads after this stop). Opens of what
 * can make one wait, FIFOs and devices, are left alone. Only x86_64 lets a tracer decide it. */
static void keep_whole(const struct tracer *tracer, const struct task *task)
{
#if defined(__x86_64__)
    enum { INTERRUPTED = -512, AGAIN = -513, OPEN_2 = 2, OPEN_AT = 257 };
    struct user_regs_struct registers;
    if (tracer->engine->listener < 0 || ptrace(PTRACE_GETREGS, task->tid, NULL, &registers) ||
        (long long)registers.rax != INTERRUPTED ||
        (registers.orig_rax != OPEN_2 && registers.orig_rax != OPEN_AT))
        return;
    bool at = registers.orig_rax == OPEN_AT;
    if (may_wait(task->tid, at ? (int)registers.rdi : -100, at ? registers.rsi : registers.rdi))
        return;
    registers.rax = AGAIN;
    ptrace(PTRACE_SETREGS, task->tid, NULL, &registers);
#else
    (void)tracer;
    (void)task;
#endif
}

static void tell_fork(struct tracer *tracer, pid_t parent, pid_t child, uint64_t flags, bool thread)
{
    struct record *record = &tracer->scratch;
    struct head *head = record_begin(record, FORK, parent);
    head->result = child;
    head->args[0] = flags;
    head->args[1] = thread;
    if (!thread)
        describe_pid(record, child, tracer->pid_space);
    ring_put(&tracer->engine->ring, record);
}

static void on_child(struct tracer *tracer, struct task *task, int event)
{
    struct engine *engine = tracer->engine;
    unsigned long child;
    if (ptrace(PTRACE_GETEVENTMSG, task->tid, NULL, &child)) {
        if (errno != ESRCH)
            engine_trouble(engine, task->tid, CHILD, errno);
        resume(tracer, task, 0);
        return;
    }
    long nr = -1;
    uint64_t flags = event == PTRACE_EVENT_VFORK ? CLONE_VM | CLONE_VFORK : 0, first;
    if (clone_call(task->tid, &nr, &first)) {
        if (nr == NR_CLONE)
            flags = first;
        else if (nr == NR_CLONE3 &&
                 read_memory(task->tid, first, &flags, sizeof flags) != sizeof flags)
            flags = 0;
    }
    bool thread = event == PTRACE_EVENT_CLONE && flags & CLONE_THREAD &&
                  syscall(SYS_tgkill, task->process, (pid_t)child, 0) == 0;
    tell_fork(tracer, task->tid, child, flags, thread);
    struct task *made = find_task(engine, child);
    if (!made) {
        made = add_task(engine, child, thread ? task->process : (pid_t)child);
        if (made)
            made->born = true;
        else
            ring_lose(&engine->ring, LOST_MEMORY);
    } else if (!made->born) {
        made->born = true;
        made->process = thread ? task->process : (pid_t)child;
        tracer->unborn--;
        if (made->waits) {
            made->waits = false;
            resume(tracer, made, 0);
        }
    }
    resume(tracer, task, 0);
}

/* Whether somebody who is still there will tell of a task. `exec_of`: a process that has exec'd:
 * of the threads that it had, none can tell any more. */
static bool has_teller(struct engine *engine, const struct task *task, pid_t exec_of)
{
    uint32_t process, parent;
    if (!read_parents(task->tid, &process, &parent))
        return false;
    pid_t teller = (pid_t)process != task->tid ? (pid_t)process : (pid_t)parent;
    return teller != exec_of && find_task(engine, teller);
}

/* Tasks whose parent was killed in the moment of the fork: nobody will tell of them. Called when a
 * task has ended, or exec'd. */
static void adopt_orphans(struct tracer *tracer, pid_t by, pid_t exec_of)
{
    struct engine *engine = tracer->engine;
    for (size_t i = 0; tracer->unborn && i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i]; task; task = task->next) {
            if (task->born || has_teller(engine, task, exec_of))
                continue;
            tell_fork(tracer, by, task->tid, 0, false);
            task->born = true;
            tracer->unborn--;
            if (task->waits) {
                task->waits = false;
                resume(tracer, task, 0);
            }
        }
}

/* --- exec */

static void on_exec(struct tracer *tracer, struct task *task, pid_t tid)
{
    struct engine *engine = tracer->engine;
    unsigned long old = tid;
    if (ptrace(PTRACE_GETEVENTMSG, tid, NULL, &old) && errno == ESRCH)
        return;
    if ((pid_t)old != tid) { /* a thread that was no leader: it has the leader's id now */
        struct task *caller = take_task(engine, old);
        if (caller) {
            struct task *leader = take_task(engine, tid);
            if (leader && leader->in_call) { /* it never comes back from it */
                record_head(&leader->record)->flags |= UNOBSERVED;
                ring_put(&engine->ring, &leader->record);
            }
            if (leader)
                free_task(tracer, leader);
            caller->tid = tid;
            put_back(engine, caller);
            task = caller;
        }
    }
    if (!task)
        return;
    task->process = tid;
    if (tracer->unborn)
        adopt_orphans(tracer, tid, tid);
    if (!task->in_call)
        record_begin(&task->record, EXEC, tid);
    task->in_call = false;
    struct head *head = record_head(&task->record);
    head->kind = EXEC;
    head->tid = tid;
    head->args[0] = (pid_t)old == tid ? 0 : old;
    struct image image = {0};
    uint64_t pointer;
    size_t width;
    if (stack_of(tid, &pointer, &width))
        describe_program(&task->record, tid, pointer, width, &image);
    record_head(&task->record)->args[1] = runs_script(tid, &task->record, &image);
    if (tid == engine->root && !task->ran) {
        describe_pid(&task->record, tid, tracer->pid_space);
        describe_cwd(&task->record, tid);
    }
    task->ran = true;
    ring_put(&engine->ring, &task->record);
    if (engine->gate.armed && !gate_matches(tid, &task->approval, &task->record, &image)) {
        task->hold = 0;
        gate_tell(engine, &tracer->scratch, &task->call, &task->approval, 0, KILL,
                  !task->approval.there || task->approval.left ? IS_UNAPPROVED : HAS_RACED);
        approval_clear(&task->approval);
        kill(tid, SIGKILL); /* before it has run one instruction */
        return;
    }
    approval_clear(&task->approval);
    resume(tracer, task, 0);
}

/* --- ends */

static void on_end(struct tracer *tracer, pid_t tid, int status, const struct rusage *used)
{
    struct engine *engine = tracer->engine;
    struct task *task = take_task(engine, tid);
    if (task && task->in_call) { /* it never came back from it: exit(2), or it was killed */
        record_head(&task->record)->flags |= UNOBSERVED;
        ring_put(&engine->ring, &task->record);
    }
    if (tracer->unborn) /* before the end of who may have made them is told */
        adopt_orphans(tracer, tid, 0);
    struct record *record = &tracer->scratch;
    struct head *head = record_begin(record, EXIT, tid);
    head->result = status;
    head->args[0] = (uint64_t)used->ru_utime.tv_sec * 1000000 + used->ru_utime.tv_usec;
    head->args[1] = (uint64_t)used->ru_stime.tv_sec * 1000000 + used->ru_stime.tv_usec;
    head->args[2] = used->ru_maxrss;
    head->args[3] = task && task->tid != task->process;
    ring_put(&engine->ring, record);
    if (task)
        free_task(tracer, task);
}

/* --- holds */

static void serve_holds(struct tracer *tracer)
{
    struct engine *engine = tracer->engine;
    struct answer answers[ANSWERS_AT_ONCE];
    size_t count;
    uint64_t now = now_ns();
    do {
        count = gate_answers(engine, answers);
        for (size_t i = 0; i < TASK_BUCKETS && tracer->held; i++)
            for (struct task *task = engine->tasks[i]; task; task = task->next)
                for (size_t k = 0; k < count; k++)
                    if (task->hold && task->hold == answers[k].hold)
                        conclude(tracer, task, answers[k].decision == ALLOW ? ALLOW : DENY,
                                 answers[k].reason);
    } while (count == ANSWERS_AT_ONCE);
    for (size_t i = 0; i < TASK_BUCKETS && tracer->held; i++)
        for (struct task *task = engine->tasks[i]; task; task = task->next) {
            if (!task->hold)
                continue;
            if (now - task->held_at > (uint64_t)engine->hold_ms * 1000000) {
                conclude(tracer, task, DENY, TIME_OUT);
            } else if (now - task->looked_at > LOOK_AFTER_MS * 1000000ull) {
                task->looked_at = now;
                if (is_dying(task->tid))
                    conclude(tracer, task, DENY, IS_DYING);
            }
        }
}

/* While something is held there are two things to wait for, and wait4(2) knows one: so it looks,
 * and sleeps on the bell, longer the longer nothing happens. */
static pid_t wait_next(struct tracer *tracer, int *status, struct rusage *used)
{
    while (tracer->held) {
        if (atomic_load(&tracer->engine->stopping)) {
            errno = EINTR;
            return -1;
        }
        pid_t tid = wait4(-1, status, __WALL | __WNOTHREAD | WNOHANG, used);
        if (tid != 0) {
            tracer->tick_us = FIRST_TICK_US;
            return tid;
        }
        struct pollfd bell = {.fd = tracer->engine->bell, .events = POLLIN};
        struct timespec tick = {.tv_nsec = tracer->tick_us * 1000l};
        if (ppoll(&bell, 1, &tick, NULL) == 0 && tracer->tick_us < LAST_TICK_US)
            tracer->tick_us *= 2;
        serve_holds(tracer);
    }
    return wait4(-1, status, __WALL | __WNOTHREAD, used);
}

/* --- the loop */

static void on_stop(struct tracer *tracer, pid_t tid, int status)
{
    struct engine *engine = tracer->engine;
    int signal = WSTOPSIG(status), event = status >> 16;
    struct task *task = find_task(engine, tid);
    if (event == PTRACE_EVENT_EXEC) {
        on_exec(tracer, task, tid);
        return;
    }
    if (!task) { /* it stops before its parent tells of it */
        task = add_task(engine, tid, tid);
        if (!task) {
            ring_lose(&engine->ring, LOST_MEMORY);
            ptrace(PTRACE_CONT, tid, NULL, NULL);
            return;
        }
        tracer->unborn++;
        task->waits = true;
        return;
    }
    switch (event) {
    case PTRACE_EVENT_SECCOMP:
        on_entry(tracer, task);
        return;
    case PTRACE_EVENT_FORK:
    case PTRACE_EVENT_VFORK:
    case PTRACE_EVENT_CLONE:
        on_child(tracer, task, event);
        return;
    case PTRACE_EVENT_STOP:
        if (signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU)
            ptrace(PTRACE_LISTEN, tid, NULL, NULL);
        else
            resume(tracer, task, 0);
        return;
    case 0:
        if (signal == (SIGTRAP | 0x80))
            on_return(tracer, task);
        else {
            keep_whole(tracer, task);
            resume(tracer, task, signal);
        }
        return;
    default:
        resume(tracer, task, 0);
    }
}

void *tracer_main(void *given)
{
    struct engine *engine = given;
    struct tracer tracer = {.engine = engine, .tick_us = FIRST_TICK_US};
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/pid", (int)engine->root);
    tracer.pid_space = open(path, O_RDONLY | O_CLOEXEC); /* -1: the long way (tracee.c) */
    struct task *root = add_task(engine, engine->root, engine->root);
    int failed = root ? 0 : ENOMEM;
    if (root)
        root->born = true;
    if (!failed && ptrace(PTRACE_SEIZE, engine->root, NULL, (void *)(long)OPTIONS))
        failed = errno;
    pthread_mutex_lock(&engine->state);
    engine->seize_errno = failed;
    pthread_cond_broadcast(&engine->seized);
    pthread_mutex_unlock(&engine->state);
    while (!failed) {
        int status;
        struct rusage used;
        pid_t tid = wait_next(&tracer, &status, &used);
        if (tid < 0) {
            if (atomic_load(&engine->stopping))
                break; /* EXITKILL ends what is left, with this thread */
            if (errno == EINTR)
                continue;
            if (errno != ECHILD)
                engine_trouble(engine, 0, WAIT, errno);
            break;
        }
        if (WIFSTOPPED(status))
            on_stop(&tracer, tid, status);
        else
            on_end(&tracer, tid, status, &used);
    }
    for (size_t i = 0; i < TASK_BUCKETS; i++)
        while (engine->tasks[i]) {
            struct task *left = take_task(engine, engine->tasks[i]->tid);
            free_task(&tracer, left);
        }
    record_free(&tracer.scratch);
    if (tracer.pid_space >= 0)
        close(tracer.pid_space);
    engine_ended(engine);
    return NULL;
}
