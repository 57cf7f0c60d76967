/* The text file that a stub library answers from: lines `key value`, read again whenever it was written.
 *
 * The file is replaced, not changed in place, so that no call sees half of it.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char buffer[1 << 18];

static void reread(void) {
    static struct stat last;
    struct stat now;
    const char *path = getenv(STUB_FILE);
    if (!path || stat(path, &now)) { buffer[0] = 0; memset(&last, 0, sizeof last); return; }
    if (now.st_ino == last.st_ino && now.st_mtim.tv_sec == last.st_mtim.tv_sec
        && now.st_mtim.tv_nsec == last.st_mtim.tv_nsec) return;
    last = now;
    FILE *file = fopen(path, "r");
    size_t size = file ? fread(buffer + 1, 1, sizeof buffer - 2, file) : 0;
    buffer[0] = '\n';
    buffer[size + 1] = 0;
    if (file) fclose(file);
}

static const char *find(const char *key) { /* the value, up to the end of its line; NULL: no such key */
    static char values[8][512];
    static int turn;
    char wanted[128];
    snprintf(wanted, sizeof wanted, "\n%s ", key);
    char *at = strstr(buffer, wanted);
    if (!at) return NULL;
    at += strlen(wanted);
    char *out = values[turn = (turn + 1) % 8];
    snprintf(out, 512, "%.*s", (int)strcspn(at, "\n"), at);
    return out;
}

static const char *of(int device, const char *key) {
    char whole[96];
    snprintf(whole, sizeof whole, "%d.%s", device, key);
    return find(whole);
}

__attribute__((unused)) static const char *ofn(int device, const char *key, int n) {
    char whole[96];
    snprintf(whole, sizeof whole, "%s.%d", key, n);
    return of(device, whole);
}

static void hang_while(int device, const char *key) { /* device -1: the key of the whole library */
    const char *said;
    while ((said = device < 0 ? find(key) : of(device, key)) && atoi(said)) { usleep(20000); reread(); }
}

static void trouble(void) {
    const char *said;
    reread();
    if ((said = find("crash")) && atoi(said)) abort();
    hang_while(-1, "hang");
}
