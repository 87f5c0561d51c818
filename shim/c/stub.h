/* The stub: what a shim is. Theory of operation.
 *
 * A directory of shims holds one copy of this program and a link to it for each command. Whoever
 * looks `git` up in PATH starts us; we ask the supervisor of the session whether that may run, and
 * then become the real `git` (execve, same process, same argv). A shell (sh, bash, zsh) is run
 * differently outside of a world: there its whole command has to run in one, so the supervisor
 * starts it with our fds and we stand in for it, until it is over (join.c).
 *
 *   stub.c      what happens, in its order            original.c  the real command further down PATH
 *   session.c   whose supervisor is asked, checked    call.c      argv, cwd, environment for it
 *   packet.c    the bytes of the protocol             join.c      standing in for a shell
 *   text.c      what is said on standard error        launch.c    as the command `substrate` itself
 *
 * Not here: any decision. Invariants: nothing of a tree, of the environment or of a packet is
 * trusted before it was checked; no session that can be asked means 125, never the real command,
 * but where the directory's owner wrote otherwise; besides the new environment nothing is allocated.
 * Spec: shell.md §2, §3; docs/adr/0021.
 */
#ifndef SUBSTRATE_STUB_H
#define SUBSTRATE_STUB_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#define PACKET_MOST 65536
#define FIELDS_MOST 8
#define CALL_MOST (4u << 20)
#define PATH_ROOM 4096

enum { STATUS_FAILED = 125, STATUS_DENIED = 126, STATUS_NOT_FOUND = 127 };

/* --- packet.c */

struct field {
    const char *at;
    size_t size;
};

struct packet {
    char kind;
    unsigned count;
    struct field fields[FIELDS_MOST];
};

struct packing {
    unsigned char *at;
    size_t size, room;
    bool cut;
};

/* Whether the bytes are a packet of at most FIELDS_MOST fields; its fields point into them. */
bool packet_parse(const unsigned char *bytes, size_t size, struct packet *into);
/* Field `index`, an empty one where there is none. */
struct field packet_field(const struct packet *packet, unsigned index);
void packing_begin(struct packing *packing, unsigned char *room, size_t size, char kind);
void packing_add(struct packing *packing, const char *bytes, size_t size);
/* A field that is a number, 0 to `most`; -1 for anything else. */
long field_number(struct field field, long most);
/* The value of a key of a JSON object that is a number, 0 to `most`; -1 for anything else. */
long json_number(struct field json, const char *key, long most);
/* Whether the value of a key of a JSON object is just this text: `true`, `"recorded"`. */
bool json_is(struct field json, const char *key, const char *value);
/* `ses_` or `spn_` and a UUIDv7 in small hexadecimal digits. */
bool is_id(const char *prefix, const char *text, size_t size);

/* --- text.c */

struct trouble {
    char text[PATH_ROOM + 256];
    char hint[512];
};

/* Both always give false, so that a check can end with them. */
bool trouble_say(struct trouble *trouble, const char *hint, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
bool trouble_errno(struct trouble *trouble, const char *hint, const char *what);
/* A line on standard error; control characters of others' text are shown, not obeyed. */
void say(const char *before, const char *text, size_t size);
void say_trouble(const char *name, const struct trouble *trouble);

/* --- stub.c */

struct caller {
    int argc;
    char **argv;
    char **envp;
    const char *name;    /* of the command: git */
    bool closed[3];      /* of the standard streams */
    char exe[PATH_ROOM]; /* this program */
    struct stat exe_stat;
    char directory[PATH_ROOM]; /* of the shims */
    struct stat directory_stat;
    bool fail_open;            /* from here on: what its owner wrote */
    char substrate[PATH_ROOM]; /* the command, empty where unknown */
};

/* The value of a variable, NULL where it is not set. The first one counts. */
const char *variable(const struct caller *caller, const char *name);

/* Whether we are in the foreground of a terminal, on which a person can be asked. */
bool has_person(void);

/* Says what a packet that is no leave has to say; the status to end with. */
int call_refused(const struct packet *packet);

/* --- session.c */

enum found { SESSION_INSIDE, SESSION_OUTSIDE, SESSION_NONE, SESSION_REFUSED };

/* Connects to the supervisor that is to be asked. SESSION_NONE: there is none; SESSION_REFUSED: what
 * is there is not what it has to be. `trouble` says why for both. */
enum found session_find(const struct caller *caller, int *socket, struct trouble *trouble);

/* --- original.c */

/* The command further down PATH; 0, or the status to end with. */
int original_find(const struct caller *caller, char path[PATH_ROOM], struct trouble *trouble);
#define MARKER ".substrate-shims"

/* --- call.c */

/* Sends EXECUTE; `standard`: with our standard streams. False with `trouble` where that failed. */
bool call_send(const struct caller *caller, int socket, const char *mode, const char *file,
               const char *flags, bool standard, struct trouble *trouble);
/* The next packet; its fields point into a buffer of the module, until the next call. */
bool call_receive(int socket, struct packet *packet, struct trouble *trouble);
/* A packet of one field at most. False where the other side has gone. */
bool call_tell(int socket, char kind, const char *field);

/* --- join.c */

/* Runs the shell by the session's supervisor and ends as it does. `text`: that of -c where we are `substrate`, which
 * tells it apart from argv and says a signal by a number; printable ASCII, tabs and line feeds, of TEXT_MOST
 * bytes at most. NULL: we are a shim. */
int join_run(const struct caller *caller, int socket, const char *file, const char *text);
#define TEXT_MOST 2048

/* --- launch.c */

/* Whether this program is installed as `substrate`, by whatever name it is started. */
bool is_launcher(void);
/* What `substrate` does: joins a session if that is all that is asked for, else becomes the one in Python. */
int launch(struct caller *caller);

#endif
