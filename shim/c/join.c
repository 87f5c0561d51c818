/* Standing in for a shell that the supervisor runs: our fds are its fds, what reaches us by signal
 * reaches it, and we stop and end as it does. The terminal stays ours: where the supervisor gives the
 * shell a terminal of its own ("terminal": true in its answer), ours is raw meanwhile. If we die, our
 * socket closes, and the supervisor ends the command. */
#define _GNU_SOURCE
#include "stub.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

static const int FORWARDED[] = {SIGHUP,  SIGINT,  SIGQUIT, SIGTERM,  SIGUSR1,
                                SIGUSR2, SIGALRM, SIGTSTP, SIGWINCH, SIGCONT};
#define COUNT (sizeof FORWARDED / sizeof *FORWARDED)

static struct termios cooked;
static bool is_raw;

static bool has_terminal(const struct caller *caller) {
    return !caller->closed[0] && !caller->closed[1] && isatty(0) && isatty(1) && tcgetpgrp(0) == getpgrp();
}

static void make_raw(void) {
    struct termios raw;
    if (tcgetattr(0, &cooked) != 0)
        return;
    raw = cooked;
    cfmakeraw(&raw);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    is_raw = tcsetattr(0, TCSADRAIN, &raw) == 0;
}

static void restore(void) {
    if (is_raw)
        tcsetattr(0, TCSADRAIN, &cooked);
    is_raw = false;
}

/* `"cmd"` with the text: one byte of it needs two at most. */
static size_t add_text(char *flags, const char *text) {
    char *at = flags;
    at = stpcpy(at, ",\"cmd\":\"");
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\' || *text == '\n' || *text == '\t')
            *at++ = '\\';
        *at++ = *text == '\n' ? 'n' : *text == '\t' ? 't' : *text;
    }
    *at++ = '"';
    return (size_t)(at - flags);
}

/* Of whom to hear by `signals`: what is ignored (nohup) stays so, for the command as well. */
static int hear(sigset_t *signals, char *flags, size_t room, const struct caller *caller, const char *text) {
    size_t used;
    const char *between = "";
    used = (size_t)snprintf(flags, room, "{\"closed\":[");
    for (int fd = 0; fd < 3; fd++)
        if (caller->closed[fd]) {
            used += (size_t)snprintf(flags + used, room - used, "%s%d", between, fd);
            between = ",";
        }
    used += (size_t)snprintf(flags + used, room - used, "],\"ignored\":[");
    between = "";
    sigemptyset(signals);
    for (size_t at = 0; at < COUNT; at++) {
        struct sigaction now;
        sigaction(FORWARDED[at], NULL, &now);
        if (now.sa_handler != SIG_IGN) {
            sigaddset(signals, FORWARDED[at]);
            continue;
        }
        used += (size_t)snprintf(flags + used, room - used, "%s%d", between, FORWARDED[at]);
        between = ",";
    }
    used += (size_t)snprintf(flags + used, room - used, "]");
    if (has_terminal(caller)) {
        struct winsize size = {0, 0, 0, 0};
        ioctl(0, TIOCGWINSZ, &size);
        used += (size_t)snprintf(flags + used, room - used, ",\"terminal\":[%u,%u]",
                                 size.ws_col ? size.ws_col : 80u, size.ws_row ? size.ws_row : 24u);
    }
    if (text != NULL)
        used += add_text(flags + used, text);
    snprintf(flags + used, room - used, "}");
    sigprocmask(SIG_BLOCK, signals, NULL);
    return signalfd(-1, signals, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void forward(int socket, int signals) {
    struct signalfd_siginfo arrived;
    char number[16];
    while (read(signals, &arrived, sizeof arrived) == (ssize_t)sizeof arrived) {
        if (arrived.ssi_signo == SIGCONT) {
            call_tell(socket, 'C', NULL);
            continue;
        }
        snprintf(number, sizeof number, "%u", arrived.ssi_signo);
        call_tell(socket, 'K', number); /* who has gone is noticed by the next receive */
    }
}

/* The command has stopped: so do we, until somebody lets us go on, which `forward` passes on. */
static void stop(void) {
    bool was_raw = is_raw;
    restore();
    raise(SIGSTOP);
    if (was_raw && tcgetpgrp(0) == getpgrp())
        make_raw();
}

/* Ends as the command did: a shim by the same signal, where it was one, without a second core file, as the
 * shell would that it stands for; the command `substrate` by a number (shell.md). */
static int end(const struct packet *packet, bool is_shim) {
    long status = field_number(packet_field(packet, 0), 255);
    long number = json_number(packet_field(packet, 1), "signal", 64);
    restore();
    if (packet_field(packet, 2).size > 0)
        say("", packet_field(packet, 2).at, packet_field(packet, 2).size);
    if (is_shim && number > 0 && status == 128 + number) {
        struct rlimit none = {0, 0};
        sigset_t all;
        setrlimit(RLIMIT_CORE, &none);
        signal((int)number, SIG_DFL);
        sigfillset(&all);
        sigprocmask(SIG_UNBLOCK, &all, NULL);
        raise((int)number);
    }
    return status < 0 ? STATUS_FAILED : (int)status;
}

int join_run(const struct caller *caller, int socket, const char *file, const char *text) {
    char flags[256 + 2 * TEXT_MOST + 16];
    struct trouble trouble;
    struct packet packet;
    sigset_t signals;
    int status;
    int arriving = hear(&signals, flags, sizeof flags, caller, text);
    if (arriving < 0) {
        trouble_errno(&trouble, "raise the limit: ulimit -n", "signalfd");
        goto failed;
    }
    if (!call_send(caller, socket, "command", file, flags, true, &trouble))
        goto failed;
    for (;;) {
        struct pollfd ready[2] = {{socket, POLLIN, 0}, {arriving, POLLIN, 0}};
        if (poll(ready, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            trouble_errno(&trouble, "run it again", "poll");
            goto failed;
        }
        if (ready[1].revents)
            forward(socket, arriving);
        if (!ready[0].revents)
            continue;
        if (!call_receive(socket, &packet, &trouble))
            goto failed;
        switch (packet.kind) {
        case 'A':
            if (has_terminal(caller) && json_is(packet_field(&packet, 2), "terminal", "true"))
                make_raw();
            break;
        case 'T':
            say("", packet_field(&packet, 0).at, packet_field(&packet, 0).size);
            break;
        case 'S':
            stop();
            break;
        case 'E':
            return end(&packet, text == NULL);
        default:
            restore();
            status = call_refused(&packet);
            return text != NULL && packet.kind == 'F' ? STATUS_FAILED : status; /* as in cli/join.py */
        }
    }
failed:
    restore();
    say_trouble(caller->name, &trouble);
    return STATUS_FAILED;
}
