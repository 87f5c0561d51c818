/* The tracer: one thread, the ptracer of a command's tree (ptrace(2), capture.md §3).
 *
 * It seizes the waiting command and then waits by itself (__WALL | __WNOTHREAD, so that no child
 * of another thread is taken). A call that the filter answers with RET_TRACE stops twice: at its
 * entry, where a record is begun, and at its exit, where it gets the result. Everything else runs
 * free. Rules: SEIZE and never ATTACH; a group stop is left by LISTEN, so that job control works;
 * signals go on as they came; a new task is told before anything that it does (births.c); EXITKILL
 * ends the tree with us. */
#include "tracer.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <linux/audit.h>
#include <linux/ptrace.h>
#include <linux/seccomp.h>

#ifndef PTRACE_EVENT_STOP
#define PTRACE_EVENT_STOP 128
#endif
#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

enum {
    OPTIONS = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK |
              PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_TRACESECCOMP | PTRACE_O_EXITKILL,
    OUR_STOP = 0x5353, /* filters.py, OURS: SECCOMP_RET_DATA of our filter */
    MOST_EVENTS = 64, /* between two looks at what is held: in a busy tree there is always another one */
};
#if defined(__x86_64__)
enum { NR_SECCOMP = 317, I386_SECCOMP = 354 };
#endif

/* --- stops */

void resume(struct tracer *tracer, const struct task *task, int signal)
{
    long how = task->in_call ? PTRACE_SYSCALL : PTRACE_CONT;
    if (atomic_load(&tracer->engine->killing)) { /* made after everybody was killed */
        kill(task->tid, SIGKILL);
        return;
    }
    if (ptrace(how, task->tid, NULL, (void *)(long)signal) && errno != ESRCH)
        engine_trouble(tracer->engine, task->tid, RESUME, errno);
}

static bool is_group_stop(int signal)
{
    return signal == SIGSTOP || signal == SIGTSTP || signal == SIGTTIN || signal == SIGTTOU;
}

/* A task stops with its group, or it goes on. */
void stay_or_resume(struct tracer *tracer, const struct task *task, int signal)
{
    if (is_group_stop(signal) && !atomic_load(&tracer->engine->killing))
        ptrace(PTRACE_LISTEN, task->tid, NULL, NULL);
    else
        resume(tracer, task, 0);
}

/* A child that nobody would tell of (CLONE_UNTRACED) is told of as every other one. clone3(2) has
 * its flags in memory, where another thread changes them after every look: it is not there, as on
 * a kernel before 5.3, and libc uses clone(2). False where the call does not happen. */
static bool keep_child(struct tracer *tracer, struct task *task)
{
    struct call *call = &task->call;
    uint64_t flags = call->args[0];
    if (task->shape->flags & CLONES_3) {
        refuse_call(tracer->engine, task->tid, ENOSYS);
        return false;
    }
    if (!(flags & CLONE_UNTRACED))
        return true;
    if (change_argument_0(task->tid, call->abi, flags & ~(uint64_t)CLONE_UNTRACED))
        return true;
    if (errno != ESRCH) /* else it was killed meanwhile */
        engine_trouble(tracer->engine, task->tid, REGISTERS, errno);
    kill(task->tid, SIGKILL);
    return false;
}

/* A call that makes a child. True where it is to be told of, and has not happened yet. */
static bool on_clone(struct tracer *tracer, struct task *task)
{
    bool happens = keep_child(tracer, task);
    if (happens && tracer->engine->everything)
        return true;
    if (tracer->engine->everything) {
        record_begin(&task->record, CALL, task->tid)->result = -ENOSYS;
        describe_entry(&task->record, &task->call, task->shape);
        ring_put(&tracer->engine->ring, &task->record);
    }
    resume(tracer, task, 0);
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
    else if (call->nr & X32_BIT) {
        call->abi = ABI_X32;
        call->nr &= ~X32_BIT;
    }
    narrow_call(call);
#else
    if (info.arch != AUDIT_ARCH_AARCH64) { /* of 32 bits: no table knows it, and nothing passes unseen */
        engine_trouble(tracer->engine, task->tid, INFORMATION, ENOEXEC);
        kill(task->tid, SIGKILL);
        return false;
    }
#endif
    return true;
}

/* A listener of a program's own would be asked in our place. Of calls that are native the filter knows
 * it (filters.py, listener_chunks); those of another machine come here, all of them. */
static bool makes_listener(const struct call *call)
{
#if defined(__x86_64__)
    int nr = call->abi == ABI_I386 ? I386_SECCOMP : call->abi == ABI_X32 ? NR_SECCOMP : -1;
    return call->nr == nr && call->args[1] & SECCOMP_FILTER_FLAG_NEW_LISTENER;
#else
    (void)call;
    return false;
#endif
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
    if (!ours && !refuse_call(tracer->engine, task->tid, ENOSYS)) /* as where nobody traces (seccomp(2)) */
        return;
    if (makes_listener(&task->call) && !refuse_call(tracer->engine, task->tid, EBUSY))
        return;
    task->shape = shape_of(engine, &task->call);
    if (task->shape && task->shape->flags & SOCKETCALL && unfold_socketcall(&task->call))
        task->shape = shape_of(engine, &task->call);
    if (ours && task->shape && task->shape->flags & (CLONES | CLONES_3) &&
        !on_clone(tracer, task))
        return;
    if (!task->shape && !engine->everything) {
        resume(tracer, task, 0);
        return;
    }
    record_begin(&task->record, CALL, task->tid);
    describe_entry(&task->record, &task->call, task->shape);
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
    long told = ptrace(PTRACE_GET_SYSCALL_INFO, task->tid, (void *)sizeof info, &info);
    if (told < 0 || info.op != PTRACE_SYSCALL_INFO_EXIT) {
        if (told >= 0 || errno != ESRCH)
            engine_trouble(tracer->engine, task->tid, INFORMATION, told < 0 ? errno : EPROTO);
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
    record_rest(&task->record);
    approval_clear(&task->approval);
    resume(tracer, task, 0);
}

/* --- exec and ends */

/* It never came back from a call: exit(2), or it was killed. */
static void put_unfinished(struct tracer *tracer, struct task *task)
{
    if (!task->in_call)
        return;
    task->in_call = false;
    record_head(&task->record)->flags |= UNOBSERVED;
    ring_put(&tracer->engine->ring, &task->record);
}

/* Why what was loaded does not run. A program that nobody may look into (its file cannot be read by its caller, or the
 * caller is not dumpable) tells nothing of itself where we have no rights over it. */
static enum reason why_not(const struct approval *approval, const struct image *image)
{
    if (!approval->there || approval->left)
        return IS_UNAPPROVED;
    return image->name_known && image->argv_known ? HAS_RACED : IS_UNREADABLE;
}

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
            caller->threads = leader ? leader->threads : 1;
            caller->adopted = leader && leader->adopted; /* that is said of the number */
            caller->unborn_since = leader ? leader->unborn_since : 0;
            if (leader) {
                put_unfinished(tracer, leader);
                free_task(tracer, leader);
            }
            caller->tid = tid;
            put_back(engine, caller);
            task = caller;
        }
    }
    if (!task) { /* there was no memory for it: what cannot be told of does not run */
        kill(tid, SIGKILL);
        return;
    }
    set_process(engine, task, tid);
    task->call.tid = tid;
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
        gate_tell(engine, &tracer->scratch, &task->call, &task->approval, 0, KILL,
                  why_not(&task->approval, &image));
        approval_clear(&task->approval);
        record_rest(&task->record);
        kill(tid, SIGKILL); /* before it has run one instruction */
        return;
    }
    approval_clear(&task->approval);
    record_rest(&task->record);
    resume(tracer, task, 0);
}

static void make_exit(struct record *record, pid_t tid, int status, const struct rusage *used,
                      bool thread)
{
    struct head *head = record_begin(record, EXIT, tid);
    head->result = status;
    head->args[0] = (uint64_t)used->ru_utime.tv_sec * 1000000 + used->ru_utime.tv_usec;
    head->args[1] = (uint64_t)used->ru_stime.tv_sec * 1000000 + used->ru_stime.tv_usec;
    head->args[2] = used->ru_maxrss;
    head->args[3] = thread;
}

/* Killed before its parent's event has come: that is told first, whenever it comes. False where
 * there is no memory to wait. */
static bool end_unborn(struct tracer *tracer, struct task *task, pid_t tid, int status,
                       const struct rusage *used)
{
    if (!task)
        task = add_unborn(tracer, tid);
    if (!task)
        return false;
    pthread_mutex_lock(&tracer->engine->state);
    task->ended = true;
    pthread_mutex_unlock(&tracer->engine->state);
    task->waits = false;
    make_exit(&task->record, tid, status, used, false);
    return true;
}

/* A process has ended with all its threads. One of them may not have been told of as ended: it was
 * killed in its exec, when it had the leader's number already and had not stopped with it yet. */
static void end_threads(struct tracer *tracer, pid_t process)
{
    static const struct rusage unknown;
    struct engine *engine = tracer->engine;
    for (size_t i = 0; i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i], *next; task; task = next) {
            next = task->next;
            if (task->process != process || task->ended || !task->born)
                continue;
            put_unfinished(tracer, task);
            make_exit(&tracer->scratch, task->tid, -1, &unknown, true);
            ring_put(&engine->ring, &tracer->scratch);
            free_task(tracer, take_task(engine, task->tid));
        }
}

static void on_end(struct tracer *tracer, pid_t tid, int status, const struct rusage *used)
{
    struct engine *engine = tracer->engine;
    struct task *task = find_task(engine, tid);
    if (task && task->ended) {
        give_up(tracer, task);
        task = NULL;
    }
    if ((!task || !task->born) && end_unborn(tracer, task, tid, status, used))
        return;
    task = take_task(engine, tid);
    if (task)
        put_unfinished(tracer, task);
    if (tracer->unborn) /* before the end of who may have made them is told */
        adopt_orphans(tracer, tid, 0);
    bool thread = task && task->tid != task->process;
    struct task *leader = thread ? find_task(engine, task->process) : NULL;
    if (leader && leader->threads)
        leader->threads--;
    if (task && task->threads)
        end_threads(tracer, tid);
    make_exit(&tracer->scratch, tid, status, used, thread);
    ring_put(&engine->ring, &tracer->scratch);
    if (task && task->adopted) {
        task->ended = true;
        empty_task(tracer, task);
        put_back(engine, task);
    } else if (task) {
        free_task(tracer, task);
    }
}

static void make_timer(struct tracer *tracer, int wake_signal)
{
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = wake_signal};
    event.sigev_notify_thread_id = (pid_t)syscall(SYS_gettid);
    /* not by libc: before glibc 2.34 that is in a library of its own */
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &tracer->timer))
        tracer->timer = -1; /* orphans are looked for when somebody ends, then */
}

static void set_timer(struct tracer *tracer, bool runs)
{
    /* again and again: one tick may come when there is no wait yet that it could end */
    long every_ns = runs ? ORPHAN_MS * 1000000l : 0;
    struct itimerspec ticks = {.it_value.tv_nsec = every_ns, .it_interval.tv_nsec = every_ns};
    if (tracer->timer >= 0 && runs != tracer->timer_runs &&
        syscall(SYS_timer_settime, tracer->timer, 0, &ticks, NULL) == 0)
        tracer->timer_runs = runs;
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
        if (tracer->events++ < MOST_EVENTS) {
            pid_t tid = wait4(-1, status, __WALL | __WNOTHREAD | WNOHANG, used);
            if (tid != 0) {
                tracer->tick_us = FIRST_TICK_US;
                return tid;
            }
            struct pollfd bell = {.fd = tracer->engine->bell, .events = POLLIN};
            struct timespec tick = {.tv_nsec = tracer->tick_us * 1000l};
            if (ppoll(&bell, 1, &tick, NULL) == 0 && tracer->tick_us < LAST_TICK_US)
                tracer->tick_us *= 2;
        }
        tracer->events = 0;
        serve_holds(tracer);
        if (tracer->unborn)
            adopt_late(tracer);
    }
    if (tracer->unborn) /* so that this wait ends */
        set_timer(tracer, true);
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
    if (task && task->ended) {
        give_up(tracer, task);
        task = NULL;
    }
    if (!task) { /* it stops before its parent tells of it */
        task = add_unborn(tracer, tid);
        if (!task) { /* what cannot be told of does not run */
            ring_lose(&engine->ring, LOST_MEMORY);
            kill(tid, SIGKILL);
            return;
        }
        task->waits = true;
        task->first_signal = signal;
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
        stay_or_resume(tracer, task, signal);
        return;
    case 0:
        if (signal == (SIGTRAP | 0x80))
            on_return(tracer, task);
        else {
            keep_whole(engine, tid);
            resume(tracer, task, signal);
        }
        return;
    default:
        resume(tracer, task, 0);
    }
}

/* Nobody is left: whoever waits to receive from them is called, until it has seen that. */
static void call_receiver(struct engine *engine)
{
    struct timespec pause = {.tv_nsec = 1000000};
    int tid;
    atomic_store(&engine->trace_ended, true);
    while ((tid = atomic_load(&engine->receiver))) {
        syscall(SYS_tgkill, getpid(), tid, engine->wake_signal);
        nanosleep(&pause, NULL);
    }
}

void *tracer_main(void *given)
{
    struct engine *engine = given;
    struct tracer tracer = {.engine = engine, .tick_us = FIRST_TICK_US};
    make_timer(&tracer, engine->wake_signal);
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
    /* looked at each time: a tree that always makes more of itself never lets a wait be interrupted */
    while (!failed && !atomic_load(&engine->stopping)) {
        int status;
        struct rusage used;
        pid_t tid = wait_next(&tracer, &status, &used);
        if (tid < 0) {
            if (errno == EINTR) {
                adopt_late(&tracer);
                if (!tracer.unborn)
                    set_timer(&tracer, false);
                continue;
            }
            if (errno != ECHILD)
                engine_trouble(engine, 0, WAIT, errno);
            break;
        }
        if (WIFSTOPPED(status))
            on_stop(&tracer, tid, status);
        else
            on_end(&tracer, tid, status, &used);
    }
    /* EXITKILL ends what is left, with this thread */
    for (size_t i = 0; i < TASK_BUCKETS; i++)
        while (engine->tasks[i]) {
            if (engine->tasks[i]->ended && !engine->tasks[i]->born) {
                adopt(&tracer, engine->tasks[i], engine->root);
                continue;
            }
            struct task *left = take_task(engine, engine->tasks[i]->tid);
            free_task(&tracer, left);
        }
    record_free(&tracer.scratch);
    forget_process();
    if (tracer.timer >= 0)
        syscall(SYS_timer_delete, tracer.timer);
    if (tracer.pid_space >= 0)
        close(tracer.pid_space);
    call_receiver(engine);
    engine_ended(engine);
    return NULL;
}
