// How m8n8k4's operands leave shared memory, 16 bytes a lane for two products, and which rows, keys and dims its lanes then hold.
// Lane l: b0 = l%2, b1 = l/2%2, c = l/4%2 and r = l/8%2 (quad pair 2 r + c), u = l/16.
#pragma once

#include "iterator/iterator.cuh"
#include "ptx/memory.cuh"
#include "smem/quad_pair.cuh"

// The lane holds of a slab rows 8 r + 4 u + b0 and + 2. Pair array j (of 8 keys, or of half of 16 dims): keys 8 j + 4 c + 2 b1 and + 1.
struct M8n8k4Map {
    static constexpr int kRowStep = 2;
    static constexpr int kRowLanes[2] = {2, 4};

    static DEVICE int row(int lane) { return (lane & 8) + lane / 16 * 4 + (lane & 1); }
    static DEVICE int key(int lane) { return lane & 6; }
    // Dims 32 (j / 4) + 16 c + 8 (j % 2) + 4 (j / 2 % 2) + 2 b1: one 16-byte read of V feeds two products.
    static DEVICE int chunk(int lane) { return (lane & 4) / 2; }
    static DEVICE int byte(int lane) { return (lane & 2) * 2; }
    static constexpr int chunks(int j) { return j / 4 * 4 + j % 2; }
    static constexpr int bytes(int j) { return j / 2 % 2 * 8; }
};

// K as B by columns: column n of pair c is key n%4 + 4 c + 8 (n/4) of 16, so that eight lanes meet eight rows.
template<class T, class SmemLayout>
struct QuadPairIterK: BaseSmemIterator<T, SmemLayout> {
    DEVICE QuadPairIterK(u32 tile, int lane): BaseSmemIterator<T, SmemLayout>(tile + SmemLayout::offset(lane % 8 + lane / 16 * 8, 0)) {}

    // Keys [16 key, 16 key + 16), dims [8 chunk, 8 chunk + 8).
    DEVICE void Load(u32 (&d)[4], int key, int chunk) const { ld_shared(d, SmemLayout::step(this->smem_, 16 * key, chunk)); }
};

template<class T, class SmemLayout>
struct QuadPairIterQ: BaseSmemIterator<T, SmemLayout> {
    DEVICE QuadPairIterQ(u32 rows, int lane)
        : BaseSmemIterator<T, SmemLayout>(rows + SmemLayout::offset((lane & 8) + lane / 16 * 4 + lane % 4, 0))
    {}

    DEVICE void Load(u32 (&d)[4], int slab, int chunk) const { ld_shared(d, SmemLayout::step(this->smem_, 16 * slab, chunk)); }
};

// V as B by rows: row k of step `step` is key (k&1) + 2 step + 8 (k/2) + 4 c of 16; c is the pair's own, or that of the other pair, whose P
// it takes.
template<class T, class SmemLayout>
struct QuadPairIterV: BaseSmemIterator<T, SmemLayout> {
    u32 other_;
    int lane_;

    DEVICE QuadPairIterV(u32 tile, int lane)
        : BaseSmemIterator<T, SmemLayout>(tile + SmemLayout::offset(row(lane) + (lane & 4), chunk(lane))),
          other_(tile + SmemLayout::offset(row(lane) + (~lane & 4), chunk(lane))), lane_(lane)
    {}

    // Dims [32 dim + 16 c + 8 u, + 8).
    template<bool kOther>
    DEVICE void Load(u32 (&d)[4], int key, int step, int dim) const
    {
        ld_shared(d, SmemLayout::step(kOther ? other_ : this->smem_, 16 * key + 2 * step, 4 * dim));
    }

private:
    static DEVICE int row(int lane) { return (lane & 1) + (lane & 2) * 4; }
    static DEVICE int chunk(int lane) { return (lane & 4) / 2 + lane / 16; }
};
