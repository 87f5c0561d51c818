/* io_uring: what it opens goes past every system call. Either it cannot be had, or the capture
 * declares that it does not see it. Told by /proc or liburing it is not: raw calls and a mapping. */
#include "tell.h"
#include <linux/io_uring.h>

int main(int argc, char **argv) {
    (void)argc;
    BEGIN();
    struct io_uring_params params = {0};
    long ring = syscall(SYS_io_uring_setup, 4, &params);
    if (ring < 0) {
        if (errno != ENOSYS && errno != EPERM) broken("io_uring_setup", -errno);
        leave(0);
    }
    size_t size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
    if (cq_size > size) size = cq_size;
    char *rings = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(NULL, params.sq_entries * sizeof *entry, PROT_READ | PROT_WRITE,
                                      MAP_SHARED, (int)ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || entry == MAP_FAILED) broken("mmap", -errno);
    *entry = (struct io_uring_sqe){.opcode = IORING_OP_OPENAT, .fd = AT_FDCWD, .len = 0600,
                                   .addr = (uintptr_t)"by a ring", .open_flags = O_WRONLY | O_CREAT};
    ((uint32_t *)(rings + params.sq_off.array))[0] = 0;
    __atomic_store_n((uint32_t *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    WANT(1, syscall(SYS_io_uring_enter, (int)ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0));
    struct io_uring_cqe *done = (void *)(rings + params.cq_off.cqes);
    TELL(.kind = "call", .call = "openat", .path = P("by a ring"), .result = must("open", done->res),
         .spot = "io_uring");
    leave(0);
}
