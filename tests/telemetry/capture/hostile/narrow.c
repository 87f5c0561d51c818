/* What lies at the very end of memory, or says it is longer than it is. argv[1]: the way. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A page with nothing behind it, in the low 2 GiB. */
static char *last_page(void)
{
    char *at = mmap((void *)0x20000000, 8192, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    munmap(at + 4096, 4096);
    return at;
}

#ifdef __x86_64__
static long int80(long number, long a, long b)
{
    long result;
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(number), "b"(a), "c"(b), "d"(0L), "S"(0L), "D"(0L)
                     : "r8", "r9", "r10", "r11", "memory");
    return (int)result;
}

/* A thread by i386's clone(2); it ends at once. */
static int thread(void)
{
    static volatile int there = 1;
    char *stack = last_page() + 4096 - 64;
    long result;
    int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_CHILD_CLEARTID;
    __asm__ volatile("int $0x80\n\t"
                     "testl %%eax, %%eax\n\t"
                     "jnz 1f\n\t"
                     "movl $60, %%eax\n\t"
                     "xorl %%edi, %%edi\n\t"
                     "syscall\n"
                     "1:"
                     : "=a"(result)
                     : "0"(120L), "b"((long)flags), "c"(stack), "d"(0L), "S"(0L), "D"(&there)
                     : "r8", "r9", "r10", "r11", "memory");
    if ((int)result < 0)
        return 2;
    for (int i = 0; there && i < 10000; i++)
        usleep(1000);
    return there;
}
#else
static long int80(long number, long a, long b) { return (void)number, (void)a, (void)b, -1; }
static int thread(void) { return 77; }
#endif

int main(int argc, char **argv)
{
    const char *way = argc > 1 ? argv[1] : "";
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (!strcmp(way, "thread"))
        return thread();
    if (!strcmp(way, "long-address")) {
        char *end = last_page() + 4096 - sizeof address;
        memcpy(end, &address, sizeof address);
        return syscall(SYS_connect, fd, end, (1ul << 32) + sizeof address) != 0;
    }
    uint32_t words[2] = {socket(AF_INET, SOCK_STREAM, 0), 1};
    char *end = last_page() + 4096 - sizeof words;
    memcpy(end, words, sizeof words);
    return int80(102, 4, (long)end) != 0; /* socketcall: listen */
}
