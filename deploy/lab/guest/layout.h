/* What the lab's guest disks hold: shared by the program that makes them and the one that runs
 * in the guest. All offsets are bytes; everything on disk is little-endian. */
#ifndef VMR_LAB_LAYOUT_H
#define VMR_LAB_LAYOUT_H
#include <stdint.h>
#include <string.h>

#define SECTOR 512u
#define BLOCK 4096u
#define LAYOUT_OFFSET 65536ull       /* struct layout, one sector */
#define NONCE_OFFSET 131072ull       /* struct nonce, one sector, vda only */
#define RING_OFFSET 1048576ull       /* ring_slots records of one sector */
#define LAYOUT_MAGIC 0x31424c524d56ull /* "VMRLB1" */
#define NONCE_MAGIC 0x4e524d56ull
#define RECORD_MAGIC 0x5245434f5244ull /* "RECORD" */

struct layout {
    uint64_t magic, disk, size_bytes, ring_slots;
    uint64_t fill_offset, fill_bytes, fill_seed; /* incompressible, never written again */
    uint64_t scribble_offset, scribble_bytes;    /* where background writes go */
    uint64_t rate_bytes_per_s, period_ms;        /* background writes; pause between records */
    uint64_t check;
};

struct nonce {
    uint64_t magic, nonce, check;
};

struct record {
    uint64_t magic, n, disk;
    uint64_t fill[61]; /* a function of nonce, n and disk: the nonce itself is on vda only */
};

static inline uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* splitmix64: `words` numbers, the stream being named by `seed`. */
static inline void stream(uint64_t *out, unsigned words, uint64_t seed)
{
    uint64_t s = mix(seed + 0x9e3779b97f4a7c15ull);
    for (unsigned i = 0; i < words; i++)
        out[i] = mix(s += 0x9e3779b97f4a7c15ull);
}

static inline uint64_t check_of(const void *bytes, unsigned words)
{
    const uint64_t *w = bytes;
    uint64_t h = 0x7f4a7c15ull;
    for (unsigned i = 0; i < words; i++)
        h = mix(h ^ w[i]) + 1;
    return h;
}

static inline void make_record(struct record *r, uint64_t nonce, uint64_t n, uint64_t disk)
{
    r->magic = RECORD_MAGIC;
    r->n = n;
    r->disk = disk;
    stream(r->fill, 61, mix(nonce) ^ mix(n * 4 + disk + 1));
}

static inline void fill_block(uint64_t *out, const struct layout *l, uint64_t block)
{
    stream(out, BLOCK / 8, mix(l->fill_seed) ^ mix(block * 4 + l->disk + 1));
}
#endif
