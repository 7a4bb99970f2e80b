/* Preloaded into a publisher: the Nth call of one function on a file below KSERVE_FAULT_DIR fails, or kills the process.
 * KSERVE_FAULT=function:N:action, where action is an errno number, or "kill"; "N+" fails the Nth call and all later ones.
 * Touches KSERVE_FAULT_MARK when it strikes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int calls;

static int below(const char *path) {
    const char *folder = getenv("KSERVE_FAULT_DIR");
    return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int on_file(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path);
}

static int strikes(const char *name) {
    const char *plan = getenv("KSERVE_FAULT");
    size_t length = strlen(name);
    if (!plan || strncmp(plan, name, length) || plan[length] != ':') return 0;
    char *rest;
    long wanted = strtol(plan + length + 1, &rest, 10);
    int forever = *rest == '+';
    rest += forever;
    calls++;
    if (forever ? calls < wanted : calls != wanted) return 0;
    int mark = open(getenv("KSERVE_FAULT_MARK"), O_CREAT | O_WRONLY, 0600);
    if (mark >= 0) close(mark);
    if (!strcmp(rest, ":kill")) kill(getpid(), SIGKILL);
    return errno = atoi(rest + 1);
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

int fsync(int fd) { return on_file(fd) && strikes("fsync") ? -1 : REAL(int, fsync, int)(fd); }
int fchmod(int fd, mode_t mode) { return on_file(fd) && strikes("fchmod") ? -1 : REAL(int, fchmod, int, mode_t)(fd, mode); }
int rename(const char *from, const char *to) {
    return below(to) && strikes("rename") ? -1 : REAL(int, rename, const char *, const char *)(from, to);
}
int mkdir(const char *path, mode_t mode) {
    return below(path) && strikes("mkdir") ? -1 : REAL(int, mkdir, const char *, mode_t)(path, mode);
}
ssize_t write(int fd, const void *bytes, size_t n) {
    return on_file(fd) && strikes("write") ? -1 : REAL(ssize_t, write, int, const void *, size_t)(fd, bytes, n);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) {
    return on_file(fd) && strikes("pwrite") ? -1 : REAL(ssize_t, pwrite, int, const void *, size_t, off_t)(fd, bytes, n, at);
}
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    return on_file(fd) && strikes("pwrite") ? -1 : REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t)(fd, bytes, n, at);
}
int posix_fallocate(int fd, off_t at, off_t n) {
    return on_file(fd) && strikes("fallocate") ? errno : REAL(int, posix_fallocate, int, off_t, off_t)(fd, at, n);
}
int posix_fallocate64(int fd, off64_t at, off64_t n) {
    return on_file(fd) && strikes("fallocate") ? errno : REAL(int, posix_fallocate64, int, off64_t, off64_t)(fd, at, n);
}
