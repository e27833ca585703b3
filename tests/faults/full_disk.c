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

/* A function of the C library in place of ours of the same name. */
#define STANDING(name, type, arguments, values, refused) \
    type name arguments { \
        static type (*real) arguments; \
        if (refused) { errno = ENOSPC; return -1; } \
        if (!real) real = (type (*) arguments)dlsym(RTLD_NEXT, #name); \
        return real values; \
    }

STANDING(write, ssize_t, (int file, const void *from, size_t size), (file, from, size), full(file))
STANDING(writev, ssize_t, (int file, const struct iovec *parts, int count), (file, parts, count), full(file))
STANDING(pwrite, ssize_t, (int file, const void *from, size_t size, off_t at), (file, from, size, at), full(file))
STANDING(pwrite64, ssize_t, (int file, const void *from, size_t size, off_t at), (file, from, size, at), full(file))
STANDING(ftruncate64, int, (int file, off_t size), (file, size), size && full(file))
