/* What the tracer's parts share: the tasks that it knows, and itself. All of it is the tracer's
 * thread's own, but for what engine_kill reads of the table. */
#ifndef SUBSTRATE_TRACER_H
#define SUBSTRATE_TRACER_H
#include "engine.h"

enum {
    FIRST_TICK_US = 100, LAST_TICK_US = 5000, /* between two looks while something is held */
    ORPHAN_MS = 50, /* how long nobody tells of a task before it is looked for who could */
};
#if defined(__x86_64__)
enum { X32_BIT = 0x40000000 };
#elif !defined(__aarch64__)
#error "x86_64 and aarch64 only"
#endif

struct task {
    struct task *next;
    pid_t tid, process;
    bool born;    /* its FORK was told */
    bool ran;     /* it has exec'd */
    bool waits;   /* it has stopped for the first time, and is not let go before that */
    bool ended;   /* there is none any more. Not born: `record` is its EXIT, which waits for its FORK;
                   * born: its parent's event may still come, and says nothing new (adopted) */
    bool adopted; /* its FORK was made up */
    bool in_call; /* between the entry and the exit of a call */
    int first_signal;     /* of its first stop */
    size_t threads;       /* of a leader: about how many others its process has */
    uint64_t unborn_since;
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
    unsigned tick_us, events; /* how many came since the holds were served */
    int pid_space; /* the namespace of the command's pids */
    int timer;     /* ends waits while a task is not told of; -1: there is none */
    bool timer_runs;
};

/* --- the table (tasks.c) */

static inline struct task **place_of(struct engine *engine, pid_t tid)
{
    struct task **place = &engine->tasks[(unsigned)tid % TASK_BUCKETS];
    while (*place && (*place)->tid != tid)
        place = &(*place)->next;
    return place;
}

static inline struct task *find_task(struct engine *engine, pid_t tid)
{
    return *place_of(engine, tid);
}

static inline bool is_alive(struct engine *engine, pid_t tid)
{
    struct task *task = find_task(engine, tid);
    return task && !task->ended;
}

/* Both NULL where there is none: no memory, no such task. One that was taken is free_task's. */
struct task *add_task(struct engine *engine, pid_t tid, pid_t process);
struct task *take_task(struct engine *engine, pid_t tid);
/* One that was taken, by the number that it has now. */
void put_back(struct engine *engine, struct task *task);
void set_process(struct engine *engine, struct task *task, pid_t process);
void empty_task(struct tracer *tracer, struct task *task);
void free_task(struct tracer *tracer, struct task *task);

/* --- new tasks (births.c) */

/* Of a task that has stopped, or ended, before anybody told of it; NULL: no memory. */
struct task *add_unborn(struct tracer *tracer, pid_t tid);
/* Somebody is named who made it, `by` where nobody better is known. */
void adopt(struct tracer *tracer, struct task *task, pid_t by);
void adopt_orphans(struct tracer *tracer, pid_t by, pid_t exec_of);
void adopt_late(struct tracer *tracer);
void give_up(struct tracer *tracer, struct task *task);
/* PTRACE_EVENT_FORK, _VFORK or _CLONE; the parent is resumed. */
void on_child(struct tracer *tracer, struct task *task, int event);

/* --- registers (registers.c) */

bool refuse_call(struct engine *engine, pid_t tid, int number);
bool change_argument_0(pid_t tid, enum abi abi, uint64_t word);
bool stack_of(pid_t tid, uint64_t *pointer, size_t *width);
bool clone_flags(pid_t tid, int event, uint64_t *flags);
void keep_whole(const struct engine *engine, pid_t tid);

/* --- execs that wait for an answer (holds.c) */

/* Asks the gate about the exec that a task begins; it is resumed, or held. */
void gate_exec(struct tracer *tracer, struct task *task);
void serve_holds(struct tracer *tracer);

/* --- stops (tracer.c) */

void resume(struct tracer *tracer, const struct task *task, int signal);
void stay_or_resume(struct tracer *tracer, const struct task *task, int signal);
#endif
