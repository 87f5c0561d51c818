/* The exec gate: what an exec would run, before it happens, and whether that is what runs then
 * (policy.md §4).
 *
 * The first look reads memory and files that other threads can change before the kernel reads
 * them, so by itself it holds nobody. The second look, at PTRACE_EVENT_EXEC, is at what the kernel
 * has taken: the name (AT_EXECFN), the argument vector on the new stack, the file that is mapped.
 * Nothing of the program has run by then. */
#include "engine.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_TABLE = 64 << 20 };

/* --- the table */

static uint32_t hash_of(const unsigned char *path, size_t length)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < length; i++)
        hash = (hash ^ path[i]) * 16777619u;
    return hash;
}

/* What may be said of a program before it runs, from the laxest on; KILL comes after it only. */
static int strictness(enum decision decision)
{
    switch (decision) {
    case ALLOW: return 1;
    case ASK_FILE: return 2;
    case ASK: return 3;
    case DENY: return 4;
    default: return 0;
    }
}

static bool is_answer(int decision)
{
    return strictness(decision) > 0;
}

/* What ASK_FILE comes to. Behind the name stands nothing, or text that is run instead of a file: then
 * there is none. */
static enum decision of_words(enum decision decision, const unsigned char *argv, size_t length)
{
    if (decision != ASK_FILE)
        return decision;
    size_t first = strnlen((const char *)argv, length) + 1;
    if (first >= length || (length - first >= 3 && !memcmp(argv + first, "-c", 3)))
        return ALLOW;
    return ASK;
}

/* The same for the interpreter of a script, which is asked about as itself: only an argument in its first
 * line can name another file. */
static enum decision of_line(enum decision decision, bool has_argument)
{
    return decision != ASK_FILE ? decision : has_argument ? ASK : ALLOW;
}

int gate_load(struct gate *gate, const unsigned char *bytes, size_t length, enum decision otherwise)
{
    /* entries: u8 decision, u8 zero, u16 length, path */
    size_t count = 0;
    if (length > MOST_TABLE)
        return EINVAL;
    for (size_t at = 0; at < length; count++) {
        uint16_t size;
        if (length - at < 4)
            return EINVAL;
        memcpy(&size, bytes + at + 2, 2);
        if (!is_answer(bytes[at]) || size > length - at - 4)
            return EINVAL;
        at += 4 + size;
    }
    size_t places = 16;
    while (places < 2 * count)
        places *= 2;
    if (!is_answer(otherwise) || otherwise == ASK_FILE)
        return EINVAL;
    gate->bytes = malloc(length + 1);
    gate->entries = calloc(places, sizeof *gate->entries);
    gate->words = malloc(MOST_ARGV);
    if (!gate->bytes || !gate->entries || !gate->words)
        return ENOMEM;
    memcpy(gate->bytes, bytes, length);
    gate->mask = places - 1;
    for (size_t at = 0; at < length;) {
        uint16_t size;
        memcpy(&size, gate->bytes + at + 2, 2);
        const unsigned char *path = gate->bytes + at + 4;
        uint32_t place = hash_of(path, size) & gate->mask;
        while (gate->entries[place].path &&
               !(gate->entries[place].length == size &&
                 !memcmp(gate->entries[place].path, path, size)))
            place = (place + 1) & gate->mask;
        if (strictness(gate->bytes[at]) > strictness(gate->entries[place].decision))
            gate->entries[place] =
                (struct gate_entry){.length = size, .decision = gate->bytes[at], .path = path};
        at += 4 + size;
    }
    gate->otherwise = otherwise;
    gate->armed = true;
    return 0;
}

void gate_free(struct gate *gate)
{
    free(gate->bytes);
    free(gate->entries);
    free(gate->words);
    memset(gate, 0, sizeof *gate);
}

static enum decision find_entry(const struct gate *gate, const unsigned char *path, size_t length)
{
    uint32_t place = hash_of(path, length) & gate->mask;
    for (; gate->entries[place].path; place = (place + 1) & gate->mask)
        if (gate->entries[place].length == length &&
            !memcmp(gate->entries[place].path, path, length))
            return gate->entries[place].decision;
    return 0;
}

/* The stricter of what is said of the whole path and of its last name. Of a file that has lost its name,
 * the kernel says the last one, and that it is deleted: that is as good as the name. */
static enum decision ask_table(const struct gate *gate, const unsigned char *path, size_t length)
{
    static const char deleted[] = " (deleted)";
    const size_t more = sizeof deleted - 1;
    enum decision decision = ALLOW;
    if (length > more && !memcmp(path + length - more, deleted, more)) {
        decision = ask_table(gate, path, length - more);
    }
    size_t name = length;
    while (name && path[name - 1] != '/')
        name--;
    enum decision whole = find_entry(gate, path, length),
                  last = find_entry(gate, path + name, length - name);
    if (strictness(last) > strictness(whole))
        whole = last;
    if (!whole)
        whole = gate->otherwise;
    return strictness(whole) > strictness(decision) ? whole : decision;
}

/* What is said of a name that a program is only called by: a path's or an argv[0]'s last one, without a
 * login shell's dash. It can make it stricter, no more; what the table does not know it says nothing
 * of, but where all such is asked about. */
static enum decision ask_called(const struct gate *gate, const unsigned char *called, size_t length,
                                enum decision decision)
{
    size_t name = length;
    while (name && called[name - 1] != '/')
        name--;
    if (length - name > 1 && called[name] == '-')
        name++;
    enum decision said = length > name ? find_entry(gate, called + name, length - name) : ALLOW;
    if (!said)
        said = gate->otherwise == ASK ? ASK : ALLOW;
    return strictness(said) > strictness(decision) ? said : decision;
}

/* --- the first look */

/* The kernel puts an interpreter, and perhaps its argument, before the words that are there. */
static bool put_before(struct approval *approval, const struct first_line *line)
{
    unsigned char words[LINE_OF_SCRIPT + 2];
    size_t name = strlen(line->interpreter) + 1,
           argument = line->argument ? strlen(line->argument) + 1 : 0;
    if (!approval->before)
        approval->before = malloc(MOST_BEFORE);
    if (!approval->before || name + argument > sizeof words ||
        approval->before_length + name + argument > MOST_BEFORE)
        return false;
    memcpy(words, line->interpreter, name);
    if (argument)
        memcpy(words + name, line->argument, argument);
    memmove(approval->before + name + argument, approval->before, approval->before_length);
    memcpy(approval->before, words, name + argument);
    approval->before_length += name + argument;
    return true;
}

static bool keep(unsigned char **into, size_t *length, const unsigned char *bytes, size_t size)
{
    *into = malloc(size + 1);
    if (!*into)
        return false;
    memcpy(*into, bytes, size);
    *length = size;
    return true;
}

/* What the process says it wants to run. False where that cannot be read, or kept. */
static bool read_request(struct gate *gate, struct record *record, const struct call *call,
                         const struct shape *shape, struct approval *approval)
{
    unsigned char name[MOST_PATH];
    bool cut;
    ssize_t length = read_text(call->tid, call->args[shape->path], name, sizeof name, &cut);
    if (length < 0 || cut)
        return false;
    ssize_t words = read_argv(call->tid, call->args[shape->path + 1], call->abi, gate->words,
                              MOST_ARGV, &approval->argv_cut);
    if (words < 0 || !keep(&approval->name, &approval->name_length, name, length) ||
        !keep(&approval->argv, &approval->argv_length, gate->words, words))
        return false;
    record_item(record, ARGV, approval->argv_cut, gate->words, words);
    return true;
}

/* Asks the table of one file. Takes `target`; fills `line` where it is a script. `has_argument`: the
 * line that names it has one. False where nothing further is to be looked at: then `decision` is the last word. */
static bool look_at_file(struct gate *gate, struct record *record, int target, int depth,
                         bool has_argument, struct approval *approval, struct first_line *line,
                         enum decision *decision, enum reason *reason)
{
    struct file_status status;
    unsigned char found[MOST_PATH];
    char link[64];
    int script = -1;
    ssize_t size = -1;
    snprintf(link, sizeof link, "/proc/self/fd/%d", target);
    bool known = read_file_status(target, "", &status);
    bool program = known && is_program(&status);
    if (program)
        size = readlink(link, (char *)found, sizeof found);
    if (size > 0)
        script = read_first_line(target, line);
    close(target);
    if (known && !program) { /* the kernel says so; if it runs all the same it is killed */
        approval->left = true;
        *decision = ALLOW;
        return false;
    }
    if (size <= 0 || script < 0) {
        *reason = IS_UNREADABLE;
        *decision = DENY;
        return false;
    }
    record_item(record, depth ? OPENED : EXE, 0, found, size);
    enum decision said = ask_table(gate, found, size);
    said = depth ? of_line(said, has_argument) : of_words(said, approval->argv, approval->argv_length);
    if (strictness(said) > strictness(*decision))
        *decision = said;
    approval->image = (struct file_id){status.dev, status.ino};
    if (!depth)
        approval->file = approval->image;
    return *decision != DENY && script && depth < MOST_INTERPRETERS;
}

enum decision gate_look(struct gate *gate, struct record *record, const struct call *call,
                        const struct shape *shape, struct approval *approval, enum reason *reason)
{
    approval_clear(approval);
    approval->there = true;
    *reason = IS_UNREADABLE;
    if (!read_request(gate, record, call, shape, approval))
        return DENY;
    *reason = BY_TABLE;
    int dir = shape->dir == NO_ARGUMENT ? AT_THE_CWD : (int)call->args[shape->dir];
    size_t first = strnlen((char *)approval->argv, approval->argv_length);
    enum decision decision = ask_called(gate, approval->name, approval->name_length, ALLOW);
    decision = ask_called(gate, approval->argv, first, decision);
    decision = of_words(decision, approval->argv, approval->argv_length);
    int target = open_target(call->tid, dir, approval->name, approval->name_length, true);
    bool has_argument = false;
    for (int depth = 0;; depth++) {
        struct first_line line;
        if (target < 0) {
            /* missing: the kernel says so; if it runs all the same it is killed */
            approval->left = is_refusal(errno);
            *reason = approval->left ? BY_TABLE : IS_UNREADABLE;
            return approval->left ? ALLOW : DENY;
        }
        if (!look_at_file(gate, record, target, depth, has_argument, approval, &line, &decision,
                          reason))
            return decision;
        approval->is_script = true;
        if (!put_before(approval, &line)) {
            *reason = IS_UNREADABLE;
            return DENY;
        }
        size_t length = strlen(line.interpreter);
        decision = ask_called(gate, (const unsigned char *)line.interpreter, length, decision);
        has_argument = line.argument != NULL;
        decision = of_line(decision, has_argument);
        target = open_target(call->tid, AT_THE_CWD, (const unsigned char *)line.interpreter, length,
                             true);
    }
}

/* --- the second look */

/* Whether what is left of the words, from `now` on, is what is left of those that were told. */
static bool same_rest(const unsigned char *now, size_t length, bool now_cut,
                      const unsigned char *told, size_t told_length, bool told_cut)
{
    if (now_cut || told_cut) { /* too long to be had whole: what was had of both */
        size_t shorter = length < told_length ? length : told_length;
        return shorter && (now_cut || length >= told_length) && !memcmp(now, told, shorter - 1);
    }
    return length == told_length && !memcmp(now, told, length);
}

/* `cut`: there is more than can be compared; then as far as it is there. */
static bool same_words(const unsigned char *now, size_t length, bool cut,
                       const struct approval *approval, const unsigned char *name,
                       size_t name_length)
{
    const unsigned char *told = approval->argv;
    size_t told_length = approval->argv_length;
    if (!approval->is_script) {
        if (!told_length && length == 1 && now[0] == 0)
            return true; /* no words at all: the kernel gives an empty one (Linux 5.18) */
        return same_rest(now, length, cut, told, told_length, approval->argv_cut);
    }
    /* In place of the caller's first word stand the interpreters and the script's name. */
    const unsigned char *end = memchr(told, 0, told_length);
    size_t first = end ? (size_t)(end - told) + 1 : told_length, at = approval->before_length;
    if (length < at + name_length + 1 || memcmp(now, approval->before, at) ||
        memcmp(now + at, name, name_length) || now[at + name_length])
        return false;
    at += name_length + 1;
    return same_rest(now + at, length - at, cut, told + first, told_length - first,
                     approval->argv_cut);
}

/* Whether a script's name still leads to the file that was looked at. The interpreter opens it by that name
 * once more, later, so this is no proof of what it reads; what is seen to be another one does not run. */
static bool same_script(pid_t tid, const struct approval *approval, const unsigned char *name,
                        size_t length)
{
    struct file_status now;
    int file = open_target(tid, AT_THE_CWD, name, length, true);
    if (file < 0)
        return false;
    bool same = read_file_status(file, "", &now) && now.dev == approval->file.dev &&
                now.ino == approval->file.ino;
    close(file);
    return same;
}

bool gate_matches(pid_t tid, const struct approval *approval, const struct record *record,
                  const struct image *image)
{
    char path[64];
    struct file_status status;
    if (!approval->there || approval->left || approval->decision != ALLOW || record->failed ||
        !image->name_known || !image->argv_known)
        return false;
    snprintf(path, sizeof path, "/proc/%d/exe", (int)tid);
    if (!read_file_status(AT_FDCWD, path, &status) || status.dev != approval->image.dev ||
        status.ino != approval->image.ino)
        return false;
    const unsigned char *name = record->bytes + image->name_at,
                        *words = record->bytes + image->argv_at;
    size_t at = 0, length = image->name_length;
    /* execveat(2): /dev/fd/N, or /dev/fd/N/path, stands for a name relative to a descriptor */
    if (length >= 8 && !memcmp(name, "/dev/fd/", 8) &&
        !(approval->name_length && approval->name[0] == '/')) {
        at = 8;
        while (at < length && name[at] >= '0' && name[at] <= '9')
            at++;
        if (at < length && name[at] == '/')
            at++;
    }
    if (length - at != approval->name_length || memcmp(name + at, approval->name, length - at))
        return false;
    if (approval->is_script && !same_script(tid, approval, name, length))
        return false;
    return same_words(words, image->argv_length, image->argv_cut, approval, name, length);
}

void approval_clear(struct approval *approval)
{
    free(approval->name);
    free(approval->argv);
    free(approval->before);
    memset(approval, 0, sizeof *approval);
}

/* --- what both threads need of it */

void gate_tell(struct engine *engine, struct record *record, const struct call *call,
               const struct approval *approval, uint64_t hold, enum decision decision,
               enum reason reason)
{
    struct head *head = record_begin(record, GATE, call->tid);
    head->nr = call->nr;
    head->abi = call->abi;
    head->result = decision;
    head->args[0] = hold;
    head->args[1] = reason;
    if (approval->name)
        record_item(record, PATH, 0, approval->name, approval->name_length);
    if (approval->argv)
        record_item(record, ARGV, approval->argv_cut, approval->argv, approval->argv_length);
    ring_put(&engine->ring, record);
}

bool gate_ask(struct engine *engine, struct record *record, const struct approval *approval,
              uint64_t hold)
{
    size_t length = record->length;
    if (approval->before_length) /* for who is asked; of what runs then argv has it */
        record_item(record, DATA, 0, approval->before, approval->before_length);
    struct head *head = record_head(record);
    uint64_t first = head->args[0];
    uint8_t kind = head->kind;
    head->kind = HOLD;
    head->args[0] = hold;
    bool asked = ring_put(&engine->ring, record);
    head = record_head(record);
    head->kind = kind;
    head->args[0] = first;
    record->length = length;
    ring_call(&engine->ring);
    return asked;
}

size_t gate_answers(struct engine *engine, struct answer *into)
{
    uint64_t rung;
    ssize_t done = read(engine->bell, &rung, sizeof rung);
    (void)done; /* EAGAIN: nobody rang */
    pthread_mutex_lock(&engine->state);
    size_t count =
        engine->answered_count < ANSWERS_AT_ONCE ? engine->answered_count : ANSWERS_AT_ONCE;
    memcpy(into, engine->answered, count * sizeof *into);
    engine->answered_count -= count;
    memmove(engine->answered, engine->answered + count, engine->answered_count * sizeof *into);
    pthread_mutex_unlock(&engine->state);
    return count;
}
