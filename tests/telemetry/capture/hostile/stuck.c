/* Opens a path whose memory nobody ever provides (userfaultfd(2)): who reads it waits. Says "ready"
 * before. The descriptor is number 9. */
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

int main(void)
{
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
    if (fd < 0)
        return 77;
    fd = dup2(fd, 9);
    struct uffdio_api api = {.api = UFFD_API};
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct uffdio_register range = {
        .range = {.start = (unsigned long)page, .len = 4096}, .mode = UFFDIO_REGISTER_MODE_MISSING,
    };
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range))
        return 77;
    puts("ready");
    fflush(stdout);
    open(page, O_WRONLY);
    return 0;
}
