/* Calls at random, with arguments at random, by processes and threads at random, for a while.
 *
 *     chaos SEED SECONDS PROCESSES [UID]
 *
 * All stay in one group, which the first process leads and kills, and in the directory where they began; as
 * root it is to be given a UID that nobody else has, and has no network then. Only calls that can
 * do no harm there are made: none has a process, a path or an address in it that is not of the lists
 * below, or nonsense.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { SLOTS = 256, ROOM = 8192, LOW = 0x30000000 };

/* What all processes share. */
static struct shared {
    atomic_int processes, most;
    bool apart; /* by a user of their own: what goes wrong in one of us harms nobody else */
    time_t until;
    _Atomic pid_t pids[SLOTS]; /* some that were there */
} *shared;
static char *low;       /* a page below 4 GiB, with nothing behind it */
static char *pages;     /* room for arguments, with nothing behind it */
static char self[4096]; /* the name of this program */
static __thread uint64_t state;

static uint64_t dice(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
}

static unsigned below(unsigned most) { return dice() % most; }

static const char *const PATHS[] = {
    "a", "b", "d", "d/a", "d/l", "l", "loop", "", ".", "./a", "d/../a", "d//a", "s", "missing/a",
    "/proc/self/exe", "/proc/self/fd/3", "/proc/thread-self/cwd/a", "/dev/fd/5", "/proc/self/root/dev/null",
    "/dev/null", "/bin/true", "/bin/sh", "/usr/bin/../bin/true", "a\n\"\\\xff", "/proc/1/root",
};
enum { PATHS_COUNT = sizeof PATHS / sizeof *PATHS };

/* A pointer to something, or to nothing. `low_only`: below 4 GiB, where it points to anything. */
static void *some_text(bool low_only)
{
    char *base = low_only ? low : pages;
    size_t room = low_only ? 4096 : ROOM;
    const char *path = PATHS[below(PATHS_COUNT)];
    size_t length = strlen(path) + 1;
    switch (below(12)) {
    case 0: return NULL;
    case 1: return (void *)(uintptr_t)dice();
    case 2: return (void *)-1;
    case 3: return (void *)0xffff800000000000;
    case 4: return base + room - below(64); /* runs into nothing */
    case 5: /* as long as it gets */
        memset(base, 'x', room - 1);
        base[room - 1] = below(2) ? 0 : 'x';
        return base;
    case 6: return base + below(room); /* what lies there */
    default:
        break;
    }
    char *at = below(3) ? base + room - length : base + below(room - length);
    memcpy(at, path, length);
    return at;
}

static int some_fd(void)
{
    return below(4) ? (int)below(24) : below(2) ? AT_FDCWD : (int)dice();
}

/* An address of this machine, or of no machine; where there is a network, nothing else will do. */
static void *some_address(uint64_t *length)
{
    struct sockaddr_un local = {.sun_family = AF_UNIX};
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_port = below(65536),
                               .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    bool narrow = below(2);
    char *at = narrow ? pages + ROOM - sizeof here : pages + below(ROOM - sizeof local);
    snprintf(local.sun_path, sizeof local.sun_path, "%s", PATHS[below(PATHS_COUNT)]);
    if (narrow)
        memcpy(at, &here, sizeof here);
    else
        memcpy(at, &local, sizeof local);
    *length = below(3) ? (narrow ? sizeof here : 2 + below(110)) : below(200);
    if (!below(6))
        *length |= dice() << 32;
    return at;
}

static void *some_words(void)
{
    static __thread char *words[64];
    unsigned count = below(12);
    for (unsigned i = 0; i < count; i++)
        words[i] = some_text(false);
    words[count] = NULL;
    switch (below(8)) {
    case 0: return NULL;
    case 1: return (void *)(uintptr_t)dice();
    case 2: /* the end of them lies behind the end of memory */
        memcpy(pages + ROOM - 8, words, 8);
        return pages + ROOM - 8;
    case 3: /* a great many */
        for (unsigned i = 0; i < ROOM / 8 - 1; i++)
            memcpy(pages + 8 * i, &(char *){pages + ROOM - 16}, 8);
        memset(pages + ROOM - 16, 0, 16);
        return pages;
    default: return words;
    }
}

static uint64_t some_message(void)
{
    static __thread struct mmsghdr messages[4];
    static __thread struct iovec parts[2];
    uint64_t length;
    memset(messages, 0, sizeof messages);
    for (int i = 0; i < 4; i++) {
        messages[i].msg_hdr.msg_name = some_address(&length);
        messages[i].msg_hdr.msg_namelen = length;
        messages[i].msg_hdr.msg_iov = below(4) ? parts : (void *)(uintptr_t)dice();
        messages[i].msg_hdr.msg_iovlen = below(3);
        parts[i & 1].iov_base = some_text(false);
        parts[i & 1].iov_len = below(600);
    }
    return below(5) ? (uintptr_t)messages : dice();
}

/* --- one call. The letters say what its arguments are: t text, f a descriptor, n a small number,
 * w any word, o flags of an open, a an address and its length, m messages, v words of a program, h a
 * struct of the size behind it, 0 nothing */
static const struct {
    int nr;
    char arguments[7];
} CALLS[] = {
#ifdef __x86_64__
    {SYS_open, "ton"}, {SYS_creat, "tn"}, {SYS_unlink, "t"}, {SYS_rmdir, "t"}, {SYS_rename, "tt"},
    {SYS_link, "tt"}, {SYS_symlink, "tt"}, {SYS_mkdir, "tn"}, {SYS_chmod, "tn"}, {SYS_pipe, "t"},
    {SYS_stat, "tt"}, {SYS_access, "tn"}, {SYS_readlink, "ttn"}, {SYS_utime, "t0"}, {SYS_lchown, "tww"},
#endif
    {SYS_openat, "fton"}, {SYS_openat, "fton"}, {SYS_openat2, "fth"}, {SYS_unlinkat, "ftn"},
    {SYS_renameat2, "ftftn"}, {SYS_linkat, "ftftn"}, {SYS_symlinkat, "tft"}, {SYS_mkdirat, "ftn"},
    {SYS_truncate, "tn"}, {SYS_ftruncate, "fn"}, {SYS_fchmod, "fn"}, {SYS_fchmodat, "ftn"},
    {SYS_fchownat, "ftwwn"}, {SYS_setxattr, "tttnn"}, {SYS_removexattr, "tt"}, {SYS_utimensat, "ft0n"},
    {SYS_chdir, "t"}, {SYS_fchdir, "f"}, {SYS_chroot, "t"}, {SYS_socket, "nnn"}, {SYS_socketpair, "1nnt"},
    {SYS_connect, "fa"}, {SYS_bind, "fa"}, {SYS_listen, "fn"}, {SYS_sendto, "ftnna"},
    {SYS_sendmsg, "fm"}, {SYS_sendmmsg, "fmnn"}, {SYS_dup, "f"}, {SYS_dup3, "fnn"}, {SYS_close, "n"},
    {SYS_pipe2, "tn"}, {SYS_memfd_create, "tn"}, {SYS_newfstatat, "fttn"}, {SYS_statx, "ftnwt"},
    {SYS_faccessat, "ftn"}, {SYS_readlinkat, "fttn"}, {SYS_getdents64, "ftn"}, {SYS_execve, "tv0"},
    {SYS_execve, "tvv"}, {SYS_execveat, "ftv0n"}, {SYS_execveat, "ftvve"}, {SYS_io_uring_setup, "nt"},
    {SYS_seccomp, "nnw"}, {SYS_setresuid, "..."}, {SYS_getpid, ""}, {SYS_clone3, "tn"},
};

static uint64_t some_word(char kind, uint64_t *next)
{
    switch (kind) {
    case 't': return (uintptr_t)some_text(false);
    case 'f': return some_fd();
    case 'n': return below(8) ? below(9) : below(5000);
    case 'w': return dice();
    case 'o': return (below(4) ? (uint64_t)(dice() & 0143) : dice()) | O_NONBLOCK;
    case 'a': return (uintptr_t)some_address(next);
    case 'm': return some_message();
    case 'v': return (uintptr_t)some_words();
    case 'h':
        *next = below(3) ? 24 : below(100);
        return (uintptr_t)some_text(false);
    case 'e': return AT_EMPTY_PATH;
    case '1': return AF_UNIX;
    case '.': return (uint32_t)-1; /* stays as it is */
    default: return 0;
    }
}

static void random_call(void)
{
    unsigned which = below(sizeof CALLS / sizeof *CALLS);
    const char *kinds = CALLS[which].arguments;
    uint64_t words[8] = {0};
    for (int i = 0; i < 6 && kinds[i]; i++) {
        uint64_t next = 0;
        words[i] = some_word(kinds[i], &next);
        if (kinds[i] == 'a' || kinds[i] == 'h')
            words[i + 1] = next;
    }
    if (CALLS[which].nr == SYS_close && words[0] < 3)
        return;
    if (CALLS[which].nr == SYS_clone3) { /* flags that go not together: nothing is made */
        struct { uint64_t flags, more[10]; } args = {.flags = (dice() & ~(uint64_t)CLONE_VM) | CLONE_SIGHAND};
        syscall(SYS_clone3, &args, sizeof args);
        return;
    }
    syscall(CALLS[which].nr, words[0], words[1], words[2], words[3], words[4], words[5]);
}

/* The same by the door of i386, with words above what it takes. */
static void random_int80(void)
{
#ifdef __x86_64__
    static const struct { int nr; char kinds[4]; } calls[] = {
        {5, "ton"}, {10, "t"}, {39, "tn"}, {40, "t"}, {38, "tt"}, {11, "t00"}, {15, "tn"}, {295, "fto"},
        {102, "nt"}, {20, ""}, {12, "t"}, {322, "nn"},
    };
    unsigned which = below(sizeof calls / sizeof *calls);
    uint64_t words[4] = {0}, high = below(2) ? dice() << 32 : 0;
    for (int i = 0; i < 3 && calls[which].kinds[i]; i++) {
        char kind = calls[which].kinds[i];
        words[i] = kind == 't' ? (uintptr_t)some_text(true) : some_word(kind, &(uint64_t){0});
        words[i] = (uint32_t)words[i] | high;
    }
    if (calls[which].nr == 102 && (uint32_t)words[0] != 1)
        words[0] = 4; /* listen, or a socket: nothing that sends */
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"((long)calls[which].nr), "b"(words[0]), "c"(words[1]), "d"(words[2]), "S"(0L), "D"(0L)
                     : "r8", "r9", "r10", "r11", "memory");
#endif
}

/* --- what lives */

static bool is_over(void) { return time(NULL) >= shared->until; }

static void note_pid(void)
{
    shared->pids[below(SLOTS)] = getpid();
}

/* Writes into another of us, where its words and its stack are. */
static void disturb(void)
{
    pid_t pid = shared->apart ? shared->pids[below(SLOTS)] : 0;
    uint64_t word = dice();
    struct iovec ours = {&word, 1 + below(8)},
                 theirs = {below(2) ? pages + below(ROOM) : (char *)&ours - below(65536) * 8, ours.iov_len};
    if (pid > 1 && pid != getpid())
        process_vm_writev(pid, &ours, 1, &theirs, 1, 0);
}

static void live(uint64_t seed);

static void make_process(void)
{
    if (atomic_fetch_add(&shared->processes, 1) >= shared->most) {
        atomic_fetch_sub(&shared->processes, 1);
        return;
    }
    uint64_t seed = dice();
    static const unsigned long flags[] = {0, 0, 0, CLONE_UNTRACED, CLONE_PARENT, CLONE_FS, CLONE_FILES};
    long pid = syscall(SYS_clone, flags[below(7)] | SIGCHLD, 0, 0, 0, 0);
    if (pid == 0)
        live(seed);
    if (pid < 0)
        atomic_fetch_sub(&shared->processes, 1);
}

static void *thread(void *seed);

static void make_thread(void)
{
    pthread_t made;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&attributes, 262144);
    (void)!pthread_create(&made, &attributes, thread, (void *)(uintptr_t)(dice() | 1));
}

static void run_program(void)
{
    char seed[32], *words[] = {self, seed, "again", NULL}, *none[] = {NULL};
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)dice());
    if (below(2)) { /* this process, by whatever thread, goes on as another one */
        execv(self, words);
        return;
    }
    pid_t pid = vfork();
    if (!pid) {
        execve(below(2) ? "/bin/true" : "./s", below(4) ? (char *[]){"x", NULL} : none, none);
        _exit(1);
    }
}

/* Not exact: programs of run_program are among them. */
static void reap(void)
{
    while (waitpid(-1, NULL, WNOHANG | __WALL) > 0)
        if (atomic_fetch_sub(&shared->processes, 1) <= 0)
            shared->processes = 0;
}

static void step(void)
{
    unsigned what = below(1000);
    if (what < 800)
        random_call();
    else if (what < 870)
        random_int80();
    else if (what < 900)
        disturb();
    else if (what < 930)
        make_process();
    else if (what < 945)
        make_thread();
    else if (what < 950)
        run_program();
    else if (what < 952)
        kill(getpid(), SIGSTOP); /* the first process lets it go on */
    else if (what < 954)
        _exit(below(256));
    else if (what < 955)
        kill(getpid(), below(2) ? SIGKILL : SIGSEGV);
    else if (what < 958)
        syscall(SYS_exit, 0); /* this thread only, the first one perhaps */
    else
        reap();
}

static void *thread(void *seed)
{
    state = (uintptr_t)seed * 0x9e3779b97f4a7c15 | 1;
    note_pid();
    while (!is_over())
        step();
    return NULL;
}

static void live(uint64_t seed)
{
    signal(SIGPIPE, SIG_IGN);
    alarm(1 + below(3)); /* who waits for something ends, too */
    thread((void *)(uintptr_t)(seed | 1));
    _exit(0);
}

static void map_memory(bool again)
{
    int fd = again ? 100 : memfd_create("shared", MFD_ALLOW_SEALING);
    if (!again && (ftruncate(fd, sizeof *shared) || dup2(fd, 100) != 100 ||
                   fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW)))
        _exit(90);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, 100, 0);
    low = mmap((void *)LOW, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pages = mmap(NULL, ROOM + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || low == MAP_FAILED || pages == MAP_FAILED)
        _exit(91);
    munmap(low + 4096, 4096);
    munmap(pages + ROOM, 4096);
}

/* The first process: makes a new one for each that ended, lets stopped ones go on, ends all. */
static void guard(uint64_t seed)
{
    state = seed | 1;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    while (!is_over()) {
        reap();
        make_process();
        struct timespec pause = {.tv_nsec = 3000000};
        nanosleep(&pause, NULL);
        kill(0, SIGCONT);
    }
}

int main(int argc, char **argv)
{
    struct rlimit most = {1 << 20, 1 << 20};
    if (argc < 3 || readlink("/proc/self/exe", self, sizeof self - 1) < 0)
        return 2;
    setrlimit(RLIMIT_FSIZE, &most);
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    uint64_t seed = strtoull(argv[1], NULL, 10);
    if (!strcmp(argv[2], "again")) {
        if (fcntl(100, F_GETFD) < 0)
            return 0; /* it was closed */
        map_memory(true);
        live(seed);
    }
    if (argc < 4)
        return 2;
    if (argc > 4) {
        uid_t uid = atoi(argv[4]);
        if (unshare(CLONE_NEWNET) || setresgid(uid, uid, uid) || setresuid(uid, uid, uid))
            return 3;
        prctl(PR_SET_DUMPABLE, 1);
    }
    map_memory(false);
    shared->until = time(NULL) + atoi(argv[2]);
    shared->most = atoi(argv[3]);
    shared->apart = argc > 4;
    mkdir("d", 0755);
    (void)!symlink("a", "l");
    (void)!symlink("loop", "loop");
    int script = open("s", O_WRONLY | O_CREAT, 0755);
    (void)!write(script, "#!/bin/true word\n", 17);
    close(script);
    guard(seed);
    kill(0, SIGKILL); /* all of us: nobody has left the group, and this one leads it */
    return 0;
}
