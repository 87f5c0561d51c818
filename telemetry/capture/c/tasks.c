/* The table of the tasks that are traced, by their numbers.
 *
 * The tracer alone changes it, so it reads without a lock; engine_kill reads it from any thread, and
 * what that looks at is changed under `state`. */
#include "tracer.h"
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

struct task *add_task(struct engine *engine, pid_t tid, pid_t process)
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

struct task *take_task(struct engine *engine, pid_t tid)
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

void put_back(struct engine *engine, struct task *task)
{
    pthread_mutex_lock(&engine->state);
    struct task **place = place_of(engine, task->tid);
    task->next = *place;
    *place = task;
    engine->task_count++;
    pthread_mutex_unlock(&engine->state);
}

/* Nobody answers it any more, and nothing is told of what it began. */
void empty_task(struct tracer *tracer, struct task *task)
{
    if (task->hold)
        tracer->held--;
    task->hold = 0;
    task->in_call = false;
    approval_clear(&task->approval);
    record_free(&task->record);
}

void free_task(struct tracer *tracer, struct task *task)
{
    if (!task->born)
        tracer->unborn--;
    empty_task(tracer, task);
    free(task);
}

void engine_kill(struct engine *engine)
{
    pthread_mutex_lock(&engine->state);
    for (size_t i = 0; i < TASK_BUCKETS; i++)
        for (struct task *task = engine->tasks[i]; task; task = task->next)
            if (!task->ended) /* its number may be another's by now */
                syscall(SYS_tgkill, task->process, task->tid, SIGKILL);
    pthread_mutex_unlock(&engine->state);
}

/* What engine_kill reads of a task that stands in the table is changed under its lock. */
void set_process(struct engine *engine, struct task *task, pid_t process)
{
    pthread_mutex_lock(&engine->state);
    task->process = process;
    pthread_mutex_unlock(&engine->state);
}
