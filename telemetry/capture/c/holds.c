/* Execs at their entry, where the gate is armed: each goes on, is refused, or waits for an answer.
 *
 * None waits for ever: what nobody answers in time, and what cannot be asked, is denied. */
#include "tracer.h"

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
        record_rest(&task->record);
        task->in_call = false;
        if (!refuse_call(tracer->engine, task->tid, EACCES))
            return;
    }
    resume(tracer, task, 0);
}

void gate_exec(struct tracer *tracer, struct task *task)
{
    struct engine *engine = tracer->engine;
    enum reason reason = BY_TABLE;
    enum decision decision = gate_look(&engine->gate, &task->record, &task->call, task->shape,
                                       &task->approval, &reason);
    if (task->approval.left || decision != ASK) {
        conclude(tracer, task, decision == ASK ? ALLOW : decision, reason);
        return;
    }
    if (tracer->held == MOST_HELD) {
        conclude(tracer, task, DENY, CLIENT_GONE);
        return;
    }
    task->hold = ++engine->gate.holds;
    task->held_at = task->looked_at = now_ns();
    tracer->held++;
    tracer->tick_us = FIRST_TICK_US;
    if (!gate_ask(engine, &task->record, &task->approval, task->hold))
        /* nobody will answer what was not asked */
        conclude(tracer, task, DENY, CLIENT_GONE);
}

void serve_holds(struct tracer *tracer)
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
