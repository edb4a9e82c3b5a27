/* Bytes that live in blocks from posix_memalign, from which PyTorch's CPU allocator takes its memory.
 *
 * For LD_PRELOAD. Unlike a profiler it keeps no events, so a step may run for hours; it asks for nothing
 * of PyTorch. Blocks of other callers of posix_memalign are counted too. meter_reset() starts from what
 * lives then; frees of older blocks do not count, as in memfit.pytorch.measure.
 */
#include <errno.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *block);

enum { SLOTS = 1 << 23 };
static struct { uintptr_t block; size_t size; } table[SLOTS]; /* open addressing, linear probing */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t count;
static long long live, peak;
static int counting;

static size_t home(uintptr_t block) { return (size_t)((block >> 4) * 0x9E3779B97F4A7C15ull >> 41); }

static void add(uintptr_t block, size_t size) {
    size_t i = home(block);
    if (count >= SLOTS / 2)
        __builtin_trap(); /* more blocks than the table is meant for: no answer beats a wrong one */
    while (table[i].block)
        i = (i + 1) % SLOTS;
    table[i].block = block;
    table[i].size = size;
    ++count;
    live += (long long)size;
    if (live > peak)
        peak = live;
}

static void drop(uintptr_t block) {
    size_t i = home(block);
    while (table[i].block && table[i].block != block)
        i = (i + 1) % SLOTS;
    if (!table[i].block)
        return;
    live -= (long long)table[i].size;
    --count;
    /* Entries behind the hole move up where their home allows, so that probing finds them. */
    for (size_t j = (i + 1) % SLOTS; table[j].block; j = (j + 1) % SLOTS) {
        size_t at = home(table[j].block);
        if ((j - at) % SLOTS >= (j - i) % SLOTS) {
            table[i] = table[j];
            i = j;
        }
    }
    table[i].block = 0;
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    void *block = __libc_memalign(alignment, size);
    if (!block)
        return ENOMEM;
    *out = block;
    if (__atomic_load_n(&counting, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&lock);
        add((uintptr_t)block, size);
        pthread_mutex_unlock(&lock);
    }
    return 0;
}

void free(void *block) {
    if (block && __atomic_load_n(&counting, __ATOMIC_RELAXED)) {
        pthread_mutex_lock(&lock);
        drop((uintptr_t)block);
        pthread_mutex_unlock(&lock);
    }
    __libc_free(block);
}

void meter_reset(void) {
    pthread_mutex_lock(&lock);
    for (size_t i = 0; count && i < SLOTS; ++i)
        table[i].block = 0;
    count = 0;
    live = peak = 0;
    __atomic_store_n(&counting, 1, __ATOMIC_RELAXED);
    pthread_mutex_unlock(&lock);
}

long long meter_peak_bytes(void) {
    __atomic_store_n(&counting, 0, __ATOMIC_RELAXED);
    return peak;
}
