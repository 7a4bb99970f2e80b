/* What a machine can do at best, for comparison: only the reads, without answers. Compiled by _kernels.py. */

#include <stddef.h>
#include <stdint.h>

enum { WORDS = 8, MOST_AHEAD = 1024 };

/* The same arithmetic as kserve/layout.pxd; lookup_many checks that both find the same lines. */
static inline uint64_t mix(uint64_t x) {
    x ^= x >> 27;
    x *= 0x3C79AC492BA7B653ULL;
    x ^= x >> 33;
    x *= 0x1C69B3F74AC4AE35ULL;
    return x ^ (x >> 27);
}

static inline size_t home(uint64_t id, uint64_t lines) {
    return (size_t)(((unsigned __int128)mix(id) * lines) >> 64);
}

static inline uint64_t sum_of(const uint64_t *line) {
    uint64_t sum = 0;
    for (int i = 0; i < WORDS; i++)
        sum += line[i];
    return sum;
}

/* The sum of all words of the ids' home lines; a group is asked for before its first line is read. */
uint64_t read_grouped(const uint64_t *lines, uint64_t n_lines, const uint64_t *ids, size_t n, size_t group) {
    const uint64_t *at[MOST_AHEAD];
    uint64_t sum = 0;
    for (size_t start = 0; start < n; start += group) {
        const size_t size = n - start < group ? n - start : group;
        for (size_t i = 0; i < size; i++) {
            at[i] = lines + WORDS * home(ids[start + i], n_lines);
            __builtin_prefetch(at[i]);
        }
        for (size_t i = 0; i < size; i++)
            sum += sum_of(at[i]);
    }
    return sum;
}

/* The same, with one line asked for as one is read. `ahead` is a power of two, at most MOST_AHEAD. */
uint64_t read_rolling(const uint64_t *lines, uint64_t n_lines, const uint64_t *ids, size_t n, size_t ahead) {
    const uint64_t *at[MOST_AHEAD];
    uint64_t sum = 0;
    size_t asked = 0;
    for (size_t i = 0; i < n; i++) {
        for (; asked < n && asked < i + ahead; asked++) {
            at[asked & (ahead - 1)] = lines + WORDS * home(ids[asked], n_lines);
            __builtin_prefetch(at[asked & (ahead - 1)]);
        }
        sum += sum_of(at[i & (ahead - 1)]);
    }
    return sum;
}

/* All words from beginning to end. */
uint64_t read_through(const uint64_t *words, size_t n) {
    uint64_t sums[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 * WORDS <= n; i += 4 * WORDS)
        for (int k = 0; k < 4; k++)
            sums[k] += sum_of(words + i + WORDS * k);
    for (; i < n; i++)
        sums[0] += words[i];
    return sums[0] + sums[1] + sums[2] + sums[3];
}
