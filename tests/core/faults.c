/* Preloaded into a publisher: of the Nth write to a file below a folder, half is written. strace, which makes all other
 * calls fail, can only pretend that. Nothing is cut before cut() was called. */
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static const char *folder;
static long first, calls;
static int ever;

void cut(const char *path, long n, int for_ever) {
    folder = strdup(path);
    first = n;
    ever = for_ever;
}

static size_t shorter(int fd, size_t n) {
    char link[64], path[4096];
    if (!folder) return n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path);
    if (length < 0 || strncmp(path, folder, strlen(folder))) return n;
    calls++;
    return n > 1 && (ever ? calls >= first : calls == first) ? n / 2 : n;
}

ssize_t write(int fd, const void *bytes, size_t n) { return syscall(SYS_write, fd, bytes, shorter(fd, n)); }
ssize_t pwrite64(int fd, const void *bytes, size_t n, off64_t at) {
    return syscall(SYS_pwrite64, fd, bytes, shorter(fd, n), at);
}
ssize_t pwrite(int fd, const void *bytes, size_t n, off_t at) { return pwrite64(fd, bytes, n, at); }
