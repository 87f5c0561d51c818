"""The program that the ways of gate_ways.py try to run, and what helps them to get there."""

import hashlib
import os
import subprocess
from pathlib import Path

#: what is denied: it leaves a mark, named by $WAY, or by its last argument where that is taken away
FORBIDDEN = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#ifdef OTHER
static const char other[] = "another program";
#endif
int main(int c, char **v) {
  char path[4096];
  const char *way = getenv("WAY");
  if (!way) way = c > 1 ? v[c - 1] : "lost";
  snprintf(path, sizeof path, RAN "/%s", way);
#ifdef OTHER
  if (!other[0]) return 1;
#endif
  int fd = open(path, O_WRONLY | O_CREAT, 0666);
  if (fd >= 0) close(fd);
  return fd < 0;
}
"""

#: a library that execs it, and one that does its work
EXECS = r"""
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void begin(void) {
  unsetenv("LD_PRELOAD"); unsetenv("LD_AUDIT"); unsetenv("LD_LIBRARY_PATH");
  char *v[] = {"x", 0}; execv(getenv("F"), v);
}
unsigned la_version(unsigned v) { return v; }
"""
WORKS = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
__attribute__((constructor)) static void begin(void) {
  char path[4096];
  snprintf(path, sizeof path, RAN "/%s", getenv("WAY"));
  open(path, O_WRONLY | O_CREAT, 0666);
}
"""

#: `run MODE PROGRAM`: execs it in ways that only a program can
RUN = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <sched.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
extern char **environ;
static char *words[] = {"x", 0};
static const char *mode, *file;
static int at(int d, const char *n, int f) { return syscall(SYS_execveat, d, n, words, environ, f); }
static int is(const char *m) { return !strcmp(mode, m); }
static void fill(int fd) {
  char b[65536]; ssize_t n; int in = open(file, O_RDONLY);
  while ((n = read(in, b, sizeof b)) > 0) if (write(fd, b, n) != n) _exit(3);
  close(in);
}
static int again(void *x) { (void)x; execv(file, words); _exit(1); }
static void *in_thread(void *x) { (void)x; execv(file, words); return 0; }

/* races: what is named is `true` and, a moment later, the program */
static volatile char *path; static char good[64], bad[64];
static void *flip(void *x) {
  (void)x;
  for (;;) {
    if (is("race_path")) {
      for (int i = 0; bad[i]; i++) path[i] = bad[i];
      for (volatile int i = 0; i < 300; i++);
      for (int i = 0; good[i]; i++) path[i] = good[i];
      for (volatile int i = 0; i < 300; i++);
    } else if (is("race_link")) {
      symlink(bad, "t1"); rename("t1", "l"); symlink(good, "t2"); rename("t2", "l");
    } else {
      rename(bad, "there"); rename("there", bad);
    }
  }
}
static void race(void) {
  strcpy(good, "./aaaa"); strcpy(bad, "./forb");
  /* the name of what is denied is the last one of where the link leads */
  mkdir("d", 0755); symlink(file, "forb"); symlink("/bin/true", "aaaa"); symlink("aaaa", "l");
  if (is("race_rename")) { unlink("forb"); symlink(file, "forb"); }
  for (int i = 0; i < 400; i++) {
    pid_t p = fork();
    if (!p) {
      static char name[64];
      strcpy(name, is("race_path") ? good : is("race_link") ? "./l" : "./there");
      path = name;
      pthread_t t; pthread_create(&t, 0, flip, 0);
      usleep(i % 7 * 10);
      for (int k = 0; k < 50; k++) execve(name, words, environ);
      _exit(1);
    }
    waitpid(p, 0, 0);
  }
}
int main(int c, char **v) {
  mode = v[1]; file = v[2]; (void)c;
  char *none[] = {0}, *lies[] = {"ls", "-l", 0}, name[64];
  if (is("execve")) execve(file, words, environ);
  else if (is("no-argv")) execve(file, none, environ);
  else if (is("null-argv")) execve(file, 0, environ);
  else if (is("lies")) execve(file, lies, environ);
  else if (is("posix_spawn")) { pid_t p; posix_spawn(&p, file, 0, 0, words, environ); waitpid(p, 0, 0); }
  else if (is("vfork")) { pid_t p = vfork(); if (!p) { execve(file, words, environ); _exit(1); } waitpid(p, 0, 0); }
  else if (is("clone_vm")) {
    char *s = mmap(0, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pid_t p = clone(again, s + (1 << 20), CLONE_VM | CLONE_VFORK | SIGCHLD, 0); waitpid(p, 0, 0);
  } else if (is("clone3")) {
    uint64_t a[11] = {0}; a[4] = SIGCHLD;
    long p = syscall(SYS_clone3, a, sizeof a);
    if (p < 0) p = fork();
    if (!p) { execve(file, words, environ); _exit(1); }
    waitpid(p, 0, 0);
  } else if (is("untraced")) {
    long p = syscall(SYS_clone, 0x00800000 | SIGCHLD, 0, 0, 0, 0);
    if (!p) { execve(file, words, environ); _exit(1); }
    waitpid(p, 0, 0);
  } else if (is("fexecve")) fexecve(open(file, O_RDONLY), words, environ);
  else if (is("empty_path")) at(open(file, O_RDONLY), "", AT_EMPTY_PATH);
  else if (is("o_path")) at(open(file, O_PATH), "", AT_EMPTY_PATH);
  else if (is("directory")) {
    char d[4096]; strcpy(d, file); *strrchr(d, '/') = 0;
    at(open(d, O_DIRECTORY), strrchr(file, '/') + 1, 0);
  } else if (is("nofollow")) at(AT_FDCWD, file, AT_SYMLINK_NOFOLLOW);
  else if (is("thread")) { pthread_t t; pthread_create(&t, 0, in_thread, 0); pthread_join(t, 0); }
  else if (is("daemon")) {
    if (!fork()) { setsid(); if (!fork()) { usleep(50000); execv(file, words); } _exit(0); }
  } else if (is("filter")) { /* a filter of its own that would let execve pass without its tracer */
    struct sock_filter f[] = {{6, 0, 0, 0x7fff0000}};
    struct sock_fprog p = {1, f};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); prctl(PR_SET_SECCOMP, 2, &p); execv(file, words);
  } else if (is("memfd")) { int m = memfd_create("m", MFD_CLOEXEC); fill(m); at(m, "", AT_EMPTY_PATH); }
  else if (is("memfd_proc")) { int m = memfd_create("m", 0); fill(m); sprintf(name, "/proc/self/fd/%d", m); execv(name, words); }
  else if (is("tmpfile")) {
    int m = open(".", O_TMPFILE | O_RDWR, 0755), r; fill(m); sprintf(name, "/proc/self/fd/%d", m);
    r = open(name, O_RDONLY); close(m); at(r, "", AT_EMPTY_PATH);
  } else if (is("loads")) return !dlopen(file, RTLD_NOW);
  else if (!strncmp(mode, "race", 4)) race();
  return 0;
}
"""


def build(base: Path, ran: str) -> dict[str, str]:
    """Compiles everything below `base`; `ran`: where marks are left. Returns hex digests of what is
    denied, by what it is."""
    bin_, tools = base / "bin", base / "tools"
    for folder in (bin_, bin_ / "static", tools):
        folder.mkdir(parents=True)
    mark = f'-DRAN="{ran}"'
    sources = {"forbidden.c": FORBIDDEN, "execs.c": EXECS, "works.c": WORKS, "run.c": RUN}
    for name, text in sources.items():
        (tools / name).write_text(text)
    source = f'#define RAN "{ran}"\n{FORBIDDEN}'
    _compile(tools / "forbidden.c", bin_ / "forbidden", mark)
    _compile(tools / "forbidden.c", bin_ / "static" / "forbidden", mark, "-static")
    _compile(tools / "execs.c", tools / "execs.so", "-shared", "-fPIC")
    _compile(tools / "works.c", tools / "works.so", "-shared", "-fPIC", mark)
    _compile(tools / "run.c", tools / "run", "-pthread", "-ldl")
    (tools / "forbidden.c").write_text(source)
    (tools / "page.1").write_text(".TH X 1\n.SH NAME\nx\n")
    files = {"plain": bin_ / "forbidden", "static": bin_ / "static" / "forbidden"}
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def _compile(source: Path, to: Path, *words: str) -> None:
    subprocess.run(["gcc", "-w", "-O1", source, "-o", to, *words], check=True)
    os.chmod(to, 0o755)
