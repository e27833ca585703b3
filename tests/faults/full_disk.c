/* Loaded before the C library (LD_PRELOAD): files whose path has the text of FULL in it are on a full disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int file) {
    const char *text = getenv("FULL");
    if (!text || !*text) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, text) != NULL;
}

#define REAL(name) (name##_real ? name##_real : (name##_real = dlsym(RTLD_NEXT, #name)))

static ssize_t (*write_real)(int, const void *, size_t);
static ssize_t (*writev_real)(int, const struct iovec *, int);
static ssize_t (*pwrite64_real)(int, const void *, size_t, off_t);
static int (*ftruncate64_real)(int, off_t);

ssize_t write(int file, const void *from, size_t size) {
    if (full(file)) { errno = ENOSPC; return -1; }
    return REAL(write)(file, from, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    if (full(file)) { errno = ENOSPC; return -1; }
    return REAL(writev)(file, parts, count);
}

ssize_t pwrite64(int file, const void *from, size_t size, off_t at) {
    if (full(file)) { errno = ENOSPC; return -1; }
    return REAL(pwrite64)(file, from, size, at);
}

int ftruncate64(int file, off_t size) {
    if (size && full(file)) { errno = ENOSPC; return -1; }
    return REAL(ftruncate64)(file, size);
}
