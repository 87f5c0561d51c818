/* New tasks: each is told of once, before anything that it does.
 *
 * A task may stop, or end, before the event of its parent comes; then it waits, unborn. Where no
 * event can come, the parent was killed in the moment of the fork, it is adopted: somebody is named
 * who made it. */
#include "tracer.h"
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    LOST_MS = 250,  /* how long nobody tells of a task before it is let go */
    LATE_MS = 5000, /* a parent's event comes before that, or not at all */
};

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

static bool is_older(const struct task *task, uint64_t ms)
{
    return now_ns() - task->unborn_since >= ms * 1000000;
}

/* Somebody has told of it: what waited for that happens now. */
static void be_born(struct tracer *tracer, struct task *task)
{
    task->born = true;
    tracer->unborn--;
    if (task->ended) {
        ring_put(&tracer->engine->ring, &task->record);
        if (task->adopted)
            empty_task(tracer, task);
        else
            free_task(tracer, take_task(tracer->engine, task->tid));
    } else if (task->waits) {
        task->waits = false;
        stay_or_resume(tracer, task, task->first_signal);
    }
}

/* Tasks whose parent was killed in the moment of the fork: nobody will tell of them, so somebody is
 * named: of a thread its process, else the parent that it has now, else `by`. */
void adopt(struct tracer *tracer, struct task *task, pid_t by)
{
    struct engine *engine = tracer->engine;
    uint32_t process, parent;
    bool thread = false;
    if (!task->ended && read_parents(task->tid, &process, &parent)) {
        thread = (pid_t)process != task->tid && is_alive(engine, process);
        if (thread)
            set_process(engine, task, process);
        if (thread || is_alive(engine, parent))
            by = thread ? process : parent;
    }
    tell_fork(tracer, by, task->tid, 0, thread);
    if (thread)
        find_task(engine, process)->threads++;
    task->adopted = true;
    be_born(tracer, task);
}

/* Whether somebody who is still there may tell of a task. `exec_of`: a process that has exec'd: of
 * the threads that it had, none can tell any more. */
static bool has_teller(struct engine *engine, const struct task *task, pid_t exec_of)
{
    uint32_t process, parent;
    if (task->ended) /* who made it is not known: it is waited for */
        return true;
    if (!read_parents(task->tid, &process, &parent))
        return false;
    pid_t teller = (pid_t)process != task->tid ? (pid_t)process : (pid_t)parent;
    return teller != exec_of && is_alive(engine, teller);
}

/* Called when a task has ended, or exec'd. */
void adopt_orphans(struct tracer *tracer, pid_t by, pid_t exec_of)
{
    struct engine *engine = tracer->engine;
    for (size_t i = 0; tracer->unborn && i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i], *next; task; task = next) {
            next = task->next;
            if (!task->born && !has_teller(engine, task, exec_of))
                adopt(tracer, task, by);
        }
}

/* Called now and then while somebody is not told of. That the parent may still tell is no reason to
 * wait for ever: who is there may not be the one who made it (PR_SET_CHILD_SUBREAPER, CLONE_PARENT),
 * and nothing else may ever happen. */
void adopt_late(struct tracer *tracer)
{
    struct engine *engine = tracer->engine;
    for (size_t i = 0; tracer->unborn && i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i], *next; task; task = next) {
            next = task->next;
            if (task->born)
                continue;
            if (is_older(task, LOST_MS) || (is_older(task, ORPHAN_MS) && !has_teller(engine, task, 0)))
                adopt(tracer, task, engine->root);
        }
}

struct task *add_unborn(struct tracer *tracer, pid_t tid)
{
    struct task *task = add_task(tracer->engine, tid, tid);
    if (!task)
        return NULL;
    task->unborn_since = now_ns();
    tracer->unborn++;
    return task;
}

/* Another one has the number of a task that has ended: what was kept of that is told. */
void give_up(struct tracer *tracer, struct task *task)
{
    pid_t tid = task->tid;
    if (!task->born)
        adopt(tracer, task, tracer->engine->root);
    free_task(tracer, take_task(tracer->engine, tid));
}

void on_child(struct tracer *tracer, struct task *task, int event)
{
    struct engine *engine = tracer->engine;
    unsigned long child;
    if (ptrace(PTRACE_GETEVENTMSG, task->tid, NULL, &child)) {
        if (errno != ESRCH)
            engine_trouble(engine, task->tid, CHILD, errno);
        resume(tracer, task, 0);
        return;
    }
    uint64_t flags;
    bool thread = clone_flags(task->tid, event, &flags)
                      ? event == PTRACE_EVENT_CLONE && flags & CLONE_THREAD
                      : syscall(SYS_tgkill, task->process, (pid_t)child, 0) == 0;
    struct task *made = find_task(engine, child), *leader = find_task(engine, task->process);
    if (made && made->ended && made->born && is_older(made, LATE_MS)) {
        give_up(tracer, made);
        made = NULL;
    }
    if (!made || !made->born) {
        tell_fork(tracer, task->tid, child, flags, thread);
        if (thread && leader)
            leader->threads++;
    }
    if (!made) {
        made = add_task(engine, child, thread ? task->process : (pid_t)child);
        if (made)
            made->born = true;
        else
            ring_lose(&engine->ring, LOST_MEMORY);
    } else if (!made->born) {
        set_process(engine, made, thread ? task->process : (pid_t)child);
        be_born(tracer, made);
    } else if (made->ended) { /* it was adopted, and that was all of it */
        free_task(tracer, take_task(engine, child));
    } else {
        made->adopted = false;
    }
    resume(tracer, task, 0);
}
