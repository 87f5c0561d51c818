/* The capture engine: what its parts share (capture.md §3).
 *
 * Two threads a command, both without Python: the tracer (tracer.c), which is the ptracer of the
 * tree, and the answerer (answer.c), which serves the listener of the seccomp filter. Both read
 * what the kernel shows of a process (tracee.c) and of the program that it runs (program.c), make
 * records of it (record.c) and put them into one ring (ring.c), which Python empties (module.c). Of
 * the tracer are, too (tracer.h): the tasks that it knows (tasks.c, births.c), their registers
 * (registers.c) and the execs that wait (holds.c) for an answer of the gate (gate.c), which finds
 * files as a process would (target.c, script.c). No formatting, hashing or joining of paths happens
 * here.
 *
 * Every byte that comes from a traced process is hostile: lengths are bounded before they are
 * used, memory is read with process_vm_readv(2), and nothing that was read is ever a format, a
 * name of a file on our side, or trusted to be the same when it is read again.
 */
#ifndef SUBSTRATE_ENGINE_H
#define SUBSTRATE_ENGINE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/types.h>

/* --- records (records.py says what they mean) */

enum kind { CALL = 1, FORK, EXEC, EXIT, LOST, HOLD, GATE, DENIED, TROUBLE };
enum record_flag { UNOBSERVED = 1, UNREADABLE = 2, RESTARTED = 4, CUT = 8 };
enum tag {
    PATH = 1, PATH2, BASE, BASE2, OPENED, ARGV, ADDRESS, EXE, EXEC_NAME, CWD, ROOT, CREDENTIALS,
    FD, HOW, DATA, PAIR, FILE_ID, PIDS, AUXV, LOCAL,
};
enum loss { LOST_FULL, LOST_MEMORY, LOST_ENDED, LOSSES };
enum { MOST_PATH = 4096, MOST_ARGV = 256 * 1024, MOST_FDS = 256, MOST_DATA = 512 };
/* a record keeps so much memory for the next one: of ten thousand tasks each has one */
enum { KEPT_ROOM = 16 * 1024 };

struct head {
    uint32_t size;
    uint8_t kind, flags;
    uint16_t abi;
    uint32_t tid;
    int32_t nr;
    uint64_t time_ns;
    int64_t result;
    uint64_t args[6];
};

/* A record that is being made. Its memory is used again for the next one. */
struct record {
    unsigned char *bytes;
    size_t length, room;
    bool failed;       /* no memory: it is given up, and counted */
    struct head spare; /* takes what is said of a record without memory; no record is made of it */
};

struct head *record_begin(struct record *record, enum kind kind, uint32_t tid);
struct head *record_head(struct record *record);
void record_item(struct record *record, enum tag tag, unsigned more, const void *bytes, size_t length);
/* Room for an item of at most `most` bytes; `record_close` says how many it has. */
unsigned char *record_open(struct record *record, size_t most);
void record_close(struct record *record, enum tag tag, unsigned more, size_t length);
/* It was put: gives back what a long one took. */
void record_rest(struct record *record);
void record_free(struct record *record);
uint64_t now_ns(void);

/* --- shapes (calls.py) */

enum { NO_ARGUMENT = 255, MOST_CALLS = 600 };
enum shape_flag {
    OPENS = 1 << 0, MOVES = 1 << 1, ROOTS = 1 << 2, PROGRAM = 1 << 3, HAS_PAIR = 1 << 4,
    HAS_HOW = 1 << 5, MESSAGE = 1 << 6, MESSAGES = 1 << 7, ADDRESS_OUT = 1 << 8, CLONES = 1 << 9,
    CLONES_3 = 1 << 10, NAME = 1 << 11, TARGET = 1 << 12, HAS_DATA = 1 << 13,
    SOCKETCALL = 1 << 14, NEW_SOCKET = 1 << 15, LISTENS = 1 << 18,
    REACHES = 1 << 19,
};
struct shape {
    uint8_t path, dir, path2, dir2, address, extra, level, intent;
    uint32_t flags, reserved;
};
enum abi { NATIVE, ABI_I386, ABI_X32, ABIS };
struct table {
    struct shape shapes[MOST_CALLS];
    uint8_t known[MOST_CALLS];
};

/* --- the ring */

enum policy { BLOCK, DROP, HALT };
struct ring {
    pthread_mutex_t lock;
    pthread_cond_t space;
    unsigned char *bytes;
    size_t size, head, tail; /* head: written so far, tail: read so far; both only grow */
    enum policy policy;
    bool open;   /* nobody reads any more: records are lost, and nobody waits */
    bool halted;
    int urgent, soft; /* eventfds: much has come, or the end; something has come */
    bool soft_told, urgent_told;
    uint64_t lost[LOSSES], untold[LOSSES];
};

int ring_make(struct ring *ring, size_t size, enum policy policy);
/* False where it was lost; that is counted. */
bool ring_put(struct ring *ring, struct record *record);
/* The same of what `happens(given)` does, if it says that it did: nothing is told, or lost, else. It is
 * called once, when there is room, and may put nothing itself. */
bool ring_put_after(struct ring *ring, struct record *record, bool (*happens)(void *), void *given);
void ring_lose(struct ring *ring, enum loss why);
/* Bytes of the records that are there, notes of losses included. */
size_t ring_ready(struct ring *ring);
/* Copies `ready` bytes out, which ring_ready told of. There is one reader. */
void ring_take(struct ring *ring, unsigned char *into, size_t ready);
bool ring_empty(struct ring *ring);
void ring_shut(struct ring *ring);
void ring_call(struct ring *ring); /* wakes the reader now */
void ring_free(struct ring *ring);

/* --- what the kernel shows of a process */

/* A system call as a stop or a notification tells it. */
struct call {
    uint32_t tid;
    enum abi abi;
    int nr;
    uint64_t args[6];
};

enum { PAGE = 4096, AT_THE_CWD = -100 };

/* Word `index` of those that a process keeps there, of `width` bytes, 4 or 8. */
static inline uint64_t word_at(const unsigned char *bytes, size_t index, size_t width)
{
    if (width == 4) {
        uint32_t word;
        memcpy(&word, bytes + 4 * index, 4);
        return word;
    }
    uint64_t word;
    memcpy(&word, bytes + 8 * index, 8);
    return word;
}

ssize_t read_memory(pid_t tid, uint64_t address, void *into, size_t length);
/* Text up to a NUL, at most `room` bytes without it; -1 where nothing could be read. `cut`: no NUL
 * was found. */
ssize_t read_text(pid_t tid, uint64_t address, unsigned char *into, size_t room, bool *cut);
/* argv at `address`: words with a NUL behind each; -1 where a part of it cannot be read. */
ssize_t read_argv(pid_t tid, uint64_t address, enum abi abi, unsigned char *into, size_t room, bool *cut);
/* The text of a link of /proc/<tid>: "cwd", "exe", "fd/7". */
ssize_t read_link(pid_t tid, const char *name, unsigned char *into, size_t room);
/* A file of /proc/<tid>, as much of it as there is room for. */
ssize_t read_proc(pid_t tid, const char *name, unsigned char *into, size_t room);

struct engine;
/* Adds what the arguments of a call point to. */
void describe_entry(struct record *record, const struct call *call,
                    const struct shape *shape);
/* Adds what only its end tells: of an error nothing, but for the port of one that reached out. */
void describe_exit(struct record *record, const struct call *call, const struct shape *shape,
                   int64_t result);
/* Gives back what a thread keeps of the process that it looked at last. */
void forget_process(void);
/* The process of a task, and that one's parent; false where it is not there any more. */
bool read_parents(pid_t tid, uint32_t *process, uint32_t *parent);
/* Adds the number of a task in the namespace `pid_space`, or the innermost that it has. */
void describe_pid(struct record *record, pid_t tid, int pid_space);
/* Whether a signal that will end it waits for a process that is held. */
bool is_dying(pid_t tid);
/* Adds the text of a link of /proc/<tid>. */
void describe_link(struct record *record, pid_t tid, const char *name, enum tag tag);
void describe_cwd(struct record *record, pid_t tid);
/* What the kernel knows of a file without asking who serves it: a server that is traced, too, could
 * not answer while we wait for it (statx(2), AT_STATX_DONT_SYNC). `name` is relative to `dir`, or
 * "" for `dir` itself; numbers are as stat(2) has them. */
struct file_status {
    uint64_t dev, ino, changed_ns;
    uint64_t mount; /* the number of its mount; 0 where the kernel does not tell (before 5.8) */
    uint32_t mode;
};
bool read_file_status(int dir, const char *name, struct file_status *status);
/* Adds which file that is: a name can be given to another one before anybody looks. */
void describe_file(struct record *record, const struct file_status *status);
const struct shape *shape_of(const struct engine *engine, const struct call *call);
/* Its arguments as its kind of call has them. */
void narrow_call(struct call *call);
/* i386's socketcall(2) as the call that it stands for; false where it cannot be read. */
bool unfold_socketcall(struct call *call);

/* --- programs */

/* What the kernel has made of an exec, as it stands in the record. */
struct image {
    size_t argv_at, argv_length, name_at, name_length;
    bool argv_known, argv_cut, name_known;
};
/* Adds what a process is, right after its exec: `width` of the words on its stack, in bytes. */
void describe_program(struct record *record, pid_t tid, uint64_t stack_pointer, size_t width,
                      struct image *image);
/* Of an exec that is seen at its entry only: makes the record one of EXEC where there is a program
 * that can be run, by its own name. */
void expect_program(struct record *record, const struct call *call, const struct shape *shape);

/* --- files as a process would find them */

/* O_PATH of what `name` means to the process, relative to `dir`; -1 and errno. */
int open_target(pid_t tid, int dir, const unsigned char *name, size_t length, bool follow);
/* Whether the kernel would refuse to run what was not found, and why. Everything else is a trouble
 * of ours, and no reason to believe that it will. */
bool is_refusal(int number);
bool is_program(const struct file_status *status);
/* Whether an open of what a process names may have to wait: a FIFO, a device. */
bool may_wait(pid_t tid, int dir, uint64_t path);

enum {
    MOST_INTERPRETERS = 5,
    LINE_OF_SCRIPT = 256, /* so much of a first line the kernel reads (BINPRM_BUF_SIZE) */
};
struct first_line {
    char text[LINE_OF_SCRIPT + 1]; /* zeros behind what was read */
    const char *interpreter, *argument; /* NULL: there is none */
};
/* Reads the first line of a file: 1 for a script, 0 for none, -1 and errno. */
int read_first_line(int target, struct first_line *line);
/* Whether what was exec'd is a script: the image is not the file that was named. Adds which file
 * the script is. */
bool runs_script(pid_t tid, struct record *record, const struct image *image);

/* --- the gate */

/* ASK_FILE stands in a table only: of an interpreter that is asked about where its words may name a file */
enum decision { ALLOW = 1, DENY, KILL, ASK, ASK_FILE };
enum reason {
    BY_TABLE = 1, BY_CALLBACK, IS_UNREADABLE, HAS_RACED, IS_UNAPPROVED, TIME_OUT, CLIENT_GONE,
    IS_DYING,
};
enum { MOST_BEFORE = MOST_INTERPRETERS * (LINE_OF_SCRIPT + 1) };

struct file_id {
    uint64_t dev, ino;
};
/* What an exec was allowed to run. */
struct approval {
    bool there;      /* it was looked at: what runs must be it */
    bool left;       /* the kernel was expected to refuse it */
    enum decision decision;
    unsigned char *name, *argv;
    size_t name_length, argv_length;
    bool argv_cut, is_script;
    struct file_id image; /* of what runs in the end: the last interpreter, or the file itself */
    struct file_id file;  /* of what was named: the script itself, where it is one */
    /* of a script: the words that the kernel puts before its name, each with a NUL behind */
    unsigned char *before;
    size_t before_length;
};
struct gate_entry {
    uint32_t length;
    uint8_t decision;
    const unsigned char *path;
};
struct gate {
    bool armed;
    enum decision otherwise;
    unsigned char *bytes; /* of the table, as Python packed it */
    struct gate_entry *entries;
    uint32_t mask; /* entries: a power of two, less one */
    uint64_t holds; /* how many there were */
    unsigned char *words; /* room for an argument vector that is looked at */
};
int gate_load(struct gate *gate, const unsigned char *bytes, size_t length, enum decision otherwise);
void gate_free(struct gate *gate);
/* Looks at an exec before it happens. Fills `approval`, adds items to `record`. ASK: a callback
 * has to decide. */
enum decision gate_look(struct gate *gate, struct record *record, const struct call *call,
                        const struct shape *shape, struct approval *approval, enum reason *reason);
/* Whether what runs now is what was allowed. */
bool gate_matches(pid_t tid, const struct approval *approval, const struct record *record,
                  const struct image *image);
void approval_clear(struct approval *approval);

/* --- the engine */

enum step {
    SEIZE = 1, THREAD, LISTENER, RECEIVE, ANSWER, WAIT, INFORMATION, REGISTERS, RESUME, CHILD,
};

enum { TASK_BUCKETS = 4096, MOST_ANSWERS = 1024, ANSWERS_AT_ONCE = 64, LOOK_AFTER_MS = 50 };
/* so many execs wait at once; one more is denied: each keeps its argument vector with us */
enum { MOST_HELD = 512 };
struct task;
struct answer {
    uint64_t hold;
    enum decision decision;
    enum reason reason;
};

struct engine {
    struct ring ring;
    struct table *tables[ABIS];
    uint16_t denied[MOST_CALLS]; /* errno for a call that the filter leaves to us; 0: it goes on */
    struct gate gate;
    uint32_t hold_ms;
    bool everything; /* level `all`: calls without a shape are told too */

    pid_t root;
    int listener; /* -1 from when its thread ends on */
    bool listens; /* there was one */
    bool traces;
    pthread_t tracer, answerer;
    bool tracer_runs, answerer_runs;
    atomic_int running; /* threads that have not ended */
    atomic_bool stopping;
    atomic_bool trace_ended; /* nobody is traced any more: the answerer finds out by itself that it is over */
    atomic_int receiver;     /* the answerer's tid while it may wait in a receive; 0: it does not */
    atomic_bool killing; /* whoever stops now is killed: see engine_kill */
    int wake_signal;     /* ends a wait of a thread of ours, and does nothing else */
    pid_t owner;         /* the process that made it: a child that was forked has no threads of ours */

    pthread_mutex_t state; /* of what is below */
    pthread_cond_t seized;
    int seize_errno; /* -1: not yet */
    struct task *tasks[TASK_BUCKETS];
    size_t task_count;
    struct answer answered[MOST_ANSWERS];
    size_t answered_count;
    int bell; /* eventfd: an answer has come */
};

/* Tells what was decided of an exec; asks the callback, with the record of the call as it is; takes
 * at most ANSWERS_AT_ONCE answers, and says how many. gate_ask: false where the question is lost. */
void gate_tell(struct engine *engine, struct record *record, const struct call *call,
               const struct approval *approval, uint64_t hold, enum decision decision,
               enum reason reason);
bool gate_ask(struct engine *engine, struct record *record, const struct approval *approval,
              uint64_t hold);
size_t gate_answers(struct engine *engine, struct answer *into);

void *tracer_main(void *engine);
void *answerer_main(void *engine);
void engine_kill(struct engine *engine);
void engine_ended(struct engine *engine);
void engine_trouble(struct engine *engine, pid_t tid, enum step step, int number);

/* bpf_ring.c */
struct bpf_ring {
    const uint64_t *written;
    uint64_t *read;
    const unsigned char *data; /* `size` bytes, and behind them the first ones again */
    size_t size, longest;
};
struct bpf_ring_part {
    uint64_t from, to, written;
    size_t size; /* of its records without their heads */
};
enum bpf_ring_fault { RING_GOOD, RING_POSITION, RING_LENGTH, RING_END };
/* What can be taken from `part->from` on, about `most` bytes of it. */
enum bpf_ring_fault bpf_ring_look(const struct bpf_ring *ring, uint64_t most, struct bpf_ring_part *part);
/* Copies that, and gives its memory back; false where the kernel has changed it meanwhile. */
bool bpf_ring_copy(const struct bpf_ring *ring, const struct bpf_ring_part *part, unsigned char *into);
#endif
