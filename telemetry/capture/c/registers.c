/* The registers of a task that has stopped: what each machine keeps where (ptrace(2), syscall(2)). */
#include "tracer.h"
#include <elf.h>
#include <sched.h>
#include <signal.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>

#ifndef NT_ARM_SYSTEM_CALL
#define NT_ARM_SYSTEM_CALL 0x404
#endif
#if defined(__x86_64__)
enum { NR_CLONE = 56, I386_CLONE = 120 };
#endif

/* `size`: of what the kernel has of them, which is less for a program of 32 bits on aarch64. */
static bool read_registers(pid_t tid, struct user_regs_struct *registers, size_t *size)
{
#if defined(__x86_64__)
    *size = sizeof *registers;
    return ptrace(PTRACE_GETREGS, tid, NULL, registers) == 0;
#else
    struct iovec all = {registers, sizeof *registers};
    if (ptrace(PTRACE_GETREGSET, tid, (void *)NT_PRSTATUS, &all))
        return false;
    *size = all.iov_len;
    return true;
#endif
}

/* All of them, as read_registers had them. */
static bool write_registers(pid_t tid, struct user_regs_struct *registers)
{
#if defined(__x86_64__)
    return ptrace(PTRACE_SETREGS, tid, NULL, registers) == 0;
#else
    struct iovec all = {registers, sizeof *registers};
    return ptrace(PTRACE_SETREGSET, tid, (void *)NT_PRSTATUS, &all) == 0;
#endif
}

/* The registers that make it not happen: number -1, and a result. */
bool refuse_call(struct engine *engine, pid_t tid, int number)
{
    struct user_regs_struct registers;
    size_t size;
    bool refused = read_registers(tid, &registers, &size);
    if (refused) {
#if defined(__x86_64__)
        registers.orig_rax = -1;
        registers.rax = -(long)number;
        refused = write_registers(tid, &registers);
#else
        int none = -1;
        struct iovec call = {&none, sizeof none};
        registers.regs[0] = -(long)number;
        refused = write_registers(tid, &registers) &&
                  ptrace(PTRACE_SETREGSET, tid, (void *)NT_ARM_SYSTEM_CALL, &call) == 0;
#endif
    }
    if (refused)
        return true;
    /* a call that was to be refused and is not must not happen */
    if (errno != ESRCH)
        engine_trouble(engine, tid, REGISTERS, errno);
    kill(tid, SIGKILL);
    return false;
}

bool change_argument_0(pid_t tid, enum abi abi, uint64_t word)
{
    struct user_regs_struct registers;
    size_t size;
    if (!read_registers(tid, &registers, &size))
        return false;
#if defined(__x86_64__)
    if (abi == ABI_I386)
        registers.rbx = word;
    else
        registers.rdi = word;
#else
    (void)abi;
    registers.regs[0] = word;
#endif
    return write_registers(tid, &registers);
}

/* The stack pointer of a new program, and how wide its words are. */
bool stack_of(pid_t tid, uint64_t *pointer, size_t *width)
{
    struct user_regs_struct registers;
    size_t size;
    if (!read_registers(tid, &registers, &size))
        return false;
#if defined(__x86_64__)
    *pointer = registers.rsp;
    *width = registers.cs == 0x23 ? 4 : 8; /* __USER32_CS; x32 has words of 8 bytes there too */
#else
    *pointer = registers.sp;
    *width = size == sizeof registers ? 8 : 4;
#endif
    return true;
}

/* The flags of the call that makes a child right now, at its event. The number says which machine's
 * call it is: no call of the other one with that number makes any. clone3(2) makes none (keep_child). */
bool clone_flags(pid_t tid, int event, uint64_t *flags)
{
    struct user_regs_struct registers;
    size_t size;
    *flags = event == PTRACE_EVENT_VFORK ? CLONE_VM | CLONE_VFORK : 0;
    if (!read_registers(tid, &registers, &size))
        return false;
#if defined(__x86_64__)
    if ((registers.orig_rax & ~(uint64_t)X32_BIT) == NR_CLONE)
        *flags = registers.rdi;
    else if (registers.orig_rax == I386_CLONE)
        *flags = (uint32_t)registers.rbx;
#else
    *flags = registers.regs[0];
#endif
    return true;
}

/* A signal that comes before the answerer has taken a notification ends the wait for it as if the
 * call had been interrupted: a handler without SA_RESTART would let an open(2) of a file fail with
 * EINTR, which no kernel does. So such a call is begun again whatever the handler says
 * (-ERESTARTNOINTR in place of -ERESTARTSYS, which the kernel reads after this stop). Opens of what
 * can make one wait, FIFOs and devices, are left alone. Only x86_64 lets a tracer decide it. */
void keep_whole(const struct engine *engine, pid_t tid)
{
#if defined(__x86_64__)
    enum { INTERRUPTED = -512, AGAIN = -513, OPEN_2 = 2, OPEN_AT = 257 };
    struct user_regs_struct registers;
    if (!engine->listens || ptrace(PTRACE_GETREGS, tid, NULL, &registers) ||
        (long long)registers.rax != INTERRUPTED ||
        (registers.orig_rax != OPEN_2 && registers.orig_rax != OPEN_AT))
        return;
    bool at = registers.orig_rax == OPEN_AT;
    if (may_wait(tid, at ? (int)registers.rdi : -100, at ? registers.rsi : registers.rdi))
        return;
    registers.rax = AGAIN;
    ptrace(PTRACE_SETREGS, tid, NULL, &registers);
#else
    (void)engine;
    (void)tid;
#endif
}
