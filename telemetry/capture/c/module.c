/* The engine as Python sees it: one type, and nothing that needs more than the stable ABI. */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include "engine.h"
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { END_MS = 10000 };

typedef struct {
    PyObject_HEAD
    struct engine *engine;
    bool attaching; /* without the GIL: nobody closes it meanwhile */
} Object;

/* Only ends a wait of one of our threads. */
static void nothing(int signal)
{
    (void)signal;
}

static int wake_signal(void)
{
    return SIGRTMIN + 9;
}

void engine_ended(struct engine *engine)
{
    atomic_fetch_sub(&engine->running, 1);
    ring_call(&engine->ring);
}

void engine_trouble(struct engine *engine, pid_t tid, enum step step, int number)
{
    struct record record = {0};
    struct head *head = record_begin(&record, TROUBLE, tid);
    head->nr = step;
    head->result = -number;
    ring_put(&engine->ring, &record);
    record_free(&record);
}

/* --- making and ending */

static void stop(struct engine *engine)
{
    atomic_store(&engine->stopping, true);
    ring_shut(&engine->ring);
    engine_kill(engine);
    struct timespec pause = {.tv_nsec = 1000000};
    for (int ms = 0; atomic_load(&engine->running) > 0 && ms < END_MS; ms++) {
        if (engine->tracer_runs)
            pthread_kill(engine->tracer, wake_signal());
        if (engine->answerer_runs)
            pthread_kill(engine->answerer, wake_signal());
        nanosleep(&pause, NULL);
    }
    bool ended = atomic_load(&engine->running) == 0;
    if (engine->tracer_runs && ended)
        pthread_join(engine->tracer, NULL);
    if (engine->answerer_runs && ended)
        pthread_join(engine->answerer, NULL);
    engine->tracer_runs = engine->answerer_runs = false;
}

/* In a child of fork(2) there is a copy of the engine and of its descriptors, and none of its threads;
 * its locks may be held by them for ever. The tree is not this process' to end. */
static void forget(struct engine *engine)
{
    int fds[] = {engine->listener, engine->bell, engine->ring.urgent, engine->ring.soft};
    for (int i = 0; i < 4; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

static void destroy(struct engine *engine)
{
    if (engine->owner != getpid()) {
        forget(engine);
        return;
    }
    stop(engine);
    if (atomic_load(&engine->running))
        return; /* a thread hangs in the kernel and uses it: better lost than freed */
    if (engine->listener >= 0)
        close(engine->listener);
    if (engine->bell >= 0)
        close(engine->bell);
    gate_free(&engine->gate);
    for (int i = 0; i < ABIS; i++)
        free(engine->tables[i]);
    ring_free(&engine->ring);
    pthread_mutex_destroy(&engine->state);
    pthread_cond_destroy(&engine->seized);
    free(engine);
}

/* Whether the arguments that its flags speak of are there. */
static bool has_what_it_needs(const struct shape *shape)
{
    return !(shape->flags & PROGRAM && shape->path > 4) &&
           !(shape->flags & (HAS_PAIR | HAS_HOW | MESSAGE | MESSAGES) && shape->extra == NO_ARGUMENT) &&
           !(shape->flags & ADDRESS_OUT && shape->address == NO_ARGUMENT) &&
           !(shape->flags & (LISTENS | REACHES) && shape->dir == NO_ARGUMENT);
}

static bool load_table(struct engine *engine, int abi, const char *bytes, Py_ssize_t length)
{
    /* entries: u32 number, then a shape */
    const Py_ssize_t step = 4 + sizeof(struct shape);
    if (length % step)
        return false;
    struct table *table = calloc(1, sizeof *table);
    if (!table)
        return false;
    engine->tables[abi] = table;
    for (Py_ssize_t at = 0; at < length; at += step) {
        uint32_t nr;
        memcpy(&nr, bytes + at, 4);
        if (nr >= MOST_CALLS)
            return false;
        memcpy(&table->shapes[nr], bytes + at + 4, sizeof(struct shape));
        struct shape *shape = &table->shapes[nr];
        uint8_t *arguments[] = {&shape->path, &shape->dir, &shape->path2, &shape->dir2,
                                &shape->address, &shape->extra};
        for (int i = 0; i < 6; i++)
            if (*arguments[i] > (i >= 4 ? 4 : 5) && *arguments[i] != NO_ARGUMENT)
                return false; /* for these two the argument behind is read as well */
        if (!has_what_it_needs(shape))
            return false;
        table->known[nr] = 1;
    }
    return true;
}

static PyObject *engine_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"tables", "denied", "ring_size", "policy", "everything", NULL};
    const char *native, *narrow, *wide, *denied;
    Py_ssize_t native_length, narrow_length, wide_length, denied_length;
    unsigned long ring_size;
    int policy, everything;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "(y#y#y#)y#kip", names, &native, &native_length, &narrow,
            &narrow_length, &wide, &wide_length, &denied, &denied_length, &ring_size, &policy,
            &everything))
        return NULL;
    if (ring_size < 65536 || ring_size > 1ul << 30 || ring_size & (ring_size - 1) ||
        policy < BLOCK || policy > HALT || denied_length > (Py_ssize_t)(2 * MOST_CALLS)) {
        PyErr_SetString(PyExc_ValueError, "ring_size is a power of two from 65536 to 2**30, "
                                          "policy 0 to 2, denied one u16 a call");
        return NULL;
    }
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return PyErr_NoMemory();
    engine->listener = engine->bell = -1;
    engine->seize_errno = -1;
    engine->wake_signal = wake_signal();
    engine->owner = getpid();
    engine->everything = everything;
    engine->ring.urgent = engine->ring.soft = -1;
    pthread_mutex_init(&engine->state, NULL);
    pthread_cond_init(&engine->seized, NULL);
    memcpy(engine->denied, denied, denied_length);
    int failed = ring_make(&engine->ring, ring_size, policy);
    engine->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!failed && engine->bell < 0)
        failed = errno;
    bool loaded = load_table(engine, NATIVE, native, native_length) &&
                  load_table(engine, ABI_I386, narrow, narrow_length) &&
                  load_table(engine, ABI_X32, wide, wide_length);
    Object *self = NULL;
    if (failed) {
        errno = failed;
        PyErr_SetFromErrno(PyExc_OSError);
    } else if (!loaded) {
        PyErr_SetString(PyExc_ValueError, "a table of calls is not well formed");
    } else {
        allocfunc make = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
        self = (Object *)make(type, 0);
    }
    if (!self) {
        destroy(engine);
        return NULL;
    }
    self->engine = engine;
    return (PyObject *)self;
}

static struct engine *alive(Object *self)
{
    if (!self->engine)
        PyErr_SetString(PyExc_ValueError, "the engine is closed");
    else if (self->engine->owner != getpid()) {
        PyErr_SetString(PyExc_ValueError, "the engine is of another process: this one was forked");
        return NULL;
    }
    return self->engine;
}

static PyObject *engine_arm(Object *self, PyObject *args)
{
    const char *table;
    Py_ssize_t length;
    int otherwise;
    unsigned int hold_ms;
    struct engine *engine = alive(self);
    if (!engine || !PyArg_ParseTuple(args, "y#iI", &table, &length, &otherwise, &hold_ms))
        return NULL;
    if (engine->running || engine->gate.armed || 
        (otherwise != ALLOW && otherwise != DENY && otherwise != ASK)) {
        PyErr_SetString(PyExc_ValueError, "a gate is armed once, before attach, with ALLOW, DENY or ASK");
        return NULL;
    }
    engine->hold_ms = hold_ms;
    int failed = gate_load(&engine->gate, (const unsigned char *)table, length, otherwise);
    if (failed) {
        gate_free(&engine->gate);
        errno = failed;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* Starts a thread that takes no signals of the process', but SIGCHLD: the kernel sends one to the tracer
 * at each stop. It drops what is ignored at once, which it is where nobody has a handler; what a
 * thread blocks it keeps, and wakes another one of the process with it. */
static int start_thread(pthread_t *thread, void *(*run)(void *), struct engine *engine)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, wake_signal());
    sigdelset(&all, SIGCHLD);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    atomic_fetch_add(&engine->running, 1);
    int failed = pthread_create(thread, NULL, run, engine);
    if (failed)
        atomic_fetch_sub(&engine->running, 1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

static PyObject *engine_attach(Object *self, PyObject *args)
{
    int pid, listener, traces, failed = 0;
    enum step step = THREAD;
    struct engine *engine = alive(self);
    if (!engine || !PyArg_ParseTuple(args, "iip", &pid, &listener, &traces))
        return NULL;
    if (engine->root || pid <= 0) {
        PyErr_SetString(PyExc_ValueError, "an engine is for one command");
        return NULL;
    }
    engine->root = pid;
    engine->listener = listener;
    engine->listens = listener >= 0;
    engine->traces = traces;
    self->attaching = true;
    Py_BEGIN_ALLOW_THREADS
    struct sigaction action = {.sa_handler = nothing};
    sigaction(wake_signal(), &action, NULL);
    if (traces) {
        failed = start_thread(&engine->tracer, tracer_main, engine);
        engine->tracer_runs = !failed;
        if (!failed) {
            pthread_mutex_lock(&engine->state);
            while (engine->seize_errno < 0)
                pthread_cond_wait(&engine->seized, &engine->state);
            failed = engine->seize_errno;
            pthread_mutex_unlock(&engine->state);
            step = SEIZE;
        }
    }
    if (!failed && listener >= 0) {
        step = THREAD;
        failed = start_thread(&engine->answerer, answerer_main, engine);
        engine->answerer_runs = !failed;
    }
    Py_END_ALLOW_THREADS
    self->attaching = false;
    if (failed)
        return Py_BuildValue("ii", step, failed);
    Py_RETURN_NONE;
}

/* --- using */

static PyObject *engine_fileno(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    return engine ? PyLong_FromLong(engine->ring.urgent) : NULL;
}

static PyObject *engine_soft_fileno(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    return engine ? PyLong_FromLong(engine->ring.soft) : NULL;
}

static PyObject *engine_drain(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    if (!engine)
        return NULL;
    /* Memory first: what is taken out is nowhere else. The GIL is kept, so that nobody closes the
     * engine meanwhile; a lock of the ring is held for a copy only. */
    size_t ready = ring_ready(&engine->ring);
    PyObject *taken = PyBytes_FromStringAndSize(NULL, ready);
    if (taken)
        ring_take(&engine->ring, (unsigned char *)PyBytes_AsString(taken), ready);
    return taken;
}

static PyObject *engine_finished(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    if (!engine)
        return NULL;
    return PyBool_FromLong(engine->root && atomic_load(&engine->running) == 0 &&
                           ring_empty(&engine->ring));
}

static PyObject *engine_lost(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    if (!engine)
        return NULL;
    pthread_mutex_lock(&engine->ring.lock);
    uint64_t lost[LOSSES];
    memcpy(lost, engine->ring.lost, sizeof lost);
    bool halted = engine->ring.halted;
    pthread_mutex_unlock(&engine->ring.lock);
    return Py_BuildValue("KKKN", (unsigned long long)lost[LOST_FULL],
                         (unsigned long long)lost[LOST_MEMORY],
                         (unsigned long long)lost[LOST_ENDED], PyBool_FromLong(halted));
}

static PyObject *engine_answer(Object *self, PyObject *args)
{
    unsigned long long hold;
    int decision, reason;
    struct engine *engine = alive(self);
    if (!engine || !PyArg_ParseTuple(args, "Kii", &hold, &decision, &reason))
        return NULL;
    pthread_mutex_lock(&engine->state);
    bool taken = engine->answered_count < MOST_ANSWERS;
    if (taken)
        engine->answered[engine->answered_count++] =
            (struct answer){.hold = hold, .decision = decision, .reason = reason};
    pthread_mutex_unlock(&engine->state);
    if (taken) {
        uint64_t one = 1;
        ssize_t done = write(engine->bell, &one, sizeof one);
        (void)done; /* it fails only where it rings already */
    }
    return PyBool_FromLong(taken);
}

static PyObject *engine_kill_all(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = alive(self);
    if (!engine)
        return NULL;
    atomic_store(&engine->killing, true);
    engine_kill(engine);
    Py_RETURN_NONE;
}

static PyObject *engine_close(Object *self, PyObject *unused)
{
    (void)unused;
    struct engine *engine = self->engine;
    if (self->attaching) {
        PyErr_SetString(PyExc_ValueError, "the engine attaches in another thread");
        return NULL;
    }
    self->engine = NULL;
    if (engine) {
        Py_BEGIN_ALLOW_THREADS
        destroy(engine);
        Py_END_ALLOW_THREADS
    }
    Py_RETURN_NONE;
}

static void engine_dealloc(Object *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->engine)
        destroy(self->engine);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyMethodDef methods[] = {
    {"arm", (PyCFunction)engine_arm, METH_VARARGS, "arm(table, otherwise, hold_ms): sets up the exec gate"},
    {"attach", (PyCFunction)engine_attach, METH_VARARGS,
     "attach(pid, listener, traces): None, or (step, errno) where it failed"},
    {"fileno", (PyCFunction)engine_fileno, METH_NOARGS, "readable: drain now"},
    {"soft_fileno", (PyCFunction)engine_soft_fileno, METH_NOARGS, "readable: there is something"},
    {"drain", (PyCFunction)engine_drain, METH_NOARGS, "whole records, as bytes"},
    {"finished", (PyCFunction)engine_finished, METH_NOARGS, "no process is left, all was drained"},
    {"lost", (PyCFunction)engine_lost, METH_NOARGS, "(full, memory, ended, halted)"},
    {"answer", (PyCFunction)engine_answer, METH_VARARGS, "answer(hold, decision, reason): was it taken"},
    {"kill", (PyCFunction)engine_kill_all, METH_NOARGS, "SIGKILL to every task that is traced"},
    {"close", (PyCFunction)engine_close, METH_NOARGS, "ends it, and what is still traced"},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot slots[] = {
    {Py_tp_new, engine_new},
    {Py_tp_dealloc, engine_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_doc, "Engine(tables, denied, ring_size, policy, everything): one command's capture"},
    {0, NULL},
};
static PyType_Spec spec = {
    .name = "substrate.telemetry.capture._engine.Engine",
    .basicsize = sizeof(Object),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = slots,
};

static PyObject *take_records(const struct bpf_ring *ring, uint64_t most)
{
    static const char *const faults[] = {
        [RING_POSITION] = "written to %llu, read to %llu",
        [RING_LENGTH] = "a record is too long: written to %llu, read to %llu",
        [RING_END] = "a record ends behind what was written: to %llu, read to %llu",
    };
    struct bpf_ring_part part = {.from = *ring->read};
    enum bpf_ring_fault fault = bpf_ring_look(ring, most, &part);
    if (fault)
        return PyErr_Format(PyExc_ValueError, faults[fault], (unsigned long long)part.written,
                            (unsigned long long)part.to);
    PyObject *taken = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)part.size);
    if (taken && !bpf_ring_copy(ring, &part, (unsigned char *)PyBytes_AsString(taken))) {
        Py_DECREF(taken);
        return PyErr_Format(PyExc_ValueError, "a record has changed");
    }
    return taken;
}

static PyObject *take_bpf_ring(PyObject *module, PyObject *arguments)
{
    (void)module;
    Py_buffer theirs, mine;
    Py_ssize_t page, size, longest, most;
    if (!PyArg_ParseTuple(arguments, "y*w*nnnn", &theirs, &mine, &page, &size, &longest, &most))
        return NULL;
    PyObject *taken = NULL;
    if (page < 8 || size <= 0 || (size & (size - 1)) || longest < 0 || longest > size || most < 0 ||
        theirs.len < page || theirs.len - page - size < longest || mine.len < 8) {
        PyErr_SetString(PyExc_ValueError, "no ring can be like this");
    } else {
        struct bpf_ring ring = {theirs.buf, mine.buf, (const unsigned char *)theirs.buf + page,
                                (size_t)size, (size_t)longest};
        taken = take_records(&ring, (uint64_t)most);
    }
    PyBuffer_Release(&theirs);
    PyBuffer_Release(&mine);
    return taken;
}

static PyMethodDef functions[] = {
    {"take_bpf_ring", take_bpf_ring, METH_VARARGS,
     "take_bpf_ring(theirs, mine, page, size, longest, most): whole records, as bytes"},
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &spec, NULL);
    if (!type)
        return -1;
    int failed = PyModule_AddObjectRef(module, "Engine", type);
    Py_DECREF(type);
    return failed;
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, execute}, {0, NULL}};
static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, .m_name = "_engine", .m_size = 0, .m_methods = functions,
    .m_slots = module_slots,
    .m_doc = "Capture's engine in C; used by engine.py only.",
};

PyMODINIT_FUNC PyInit__engine(void)
{
    return PyModuleDef_Init(&definition);
}
