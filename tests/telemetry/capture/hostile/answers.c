/* Sends its own calls to a listener of its own, whose word goes before a tracer's (seccomp(2)): a
 * thread lets all of them go on. argv[1]: `syscall` or `int80`; argv[2]: a file that is made and
 * removed. Ends with 3 when it got no listener. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct sock_filter code[] = {
    BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 1, 0),
    BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_unlinkat, 0, 1),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
    BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
};
static struct sock_fprog program = {sizeof code / sizeof *code, code};
static struct { uint16_t length; uint32_t code; } narrow;
static int ready[2];

static void *answer(void *unused)
{
    int listener;
    struct seccomp_notif asked;
    struct seccomp_notif_resp response;
    if (read(ready[0], &listener, sizeof listener) != sizeof listener)
        return unused;
    for (;;) {
        memset(&asked, 0, sizeof asked);
        memset(&response, 0, sizeof response);
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &asked))
            return unused;
        response.id = asked.id;
        response.flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE;
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &response);
    }
}

static int listen_to_me(const char *way)
{
#ifdef __x86_64__
    if (!strcmp(way, "int80")) {
        long result;
        narrow.length = program.len;
        narrow.code = (uint32_t)(uintptr_t)code;
        __asm__ volatile("int $0x80"
                         : "=a"(result)
                         : "0"(354L), "b"(1L), "c"(8L), "d"(&narrow)
                         : "r8", "r9", "r10", "r11", "memory");
        return (int)result;
    }
#endif
    (void)way, (void)narrow;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

int main(int argc, char **argv)
{
    pthread_t thread;
    if (argc < 3 || pipe(ready) || pthread_create(&thread, NULL, answer, NULL))
        return 2;
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    int listener = listen_to_me(argv[1]);
    if (listener >= 0 && write(ready[1], &listener, sizeof listener) < 0)
        return 2;
    int fd = openat(AT_FDCWD, argv[2], O_WRONLY | O_CREAT, 0600);
    if (fd < 0 || close(fd) || unlinkat(AT_FDCWD, argv[2], 0))
        return 2;
    _exit(listener < 0 ? 3 : 0);
}
