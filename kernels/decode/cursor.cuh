// The flat list of key tiles, and a warp's place in it.
// A segment is one (sequence, KV head, pack of query heads). The list holds all segments, one after the other; each is kSegmentUnits units
// of overhead, then one unit a tile. Every warp takes an equal, contiguous range of units, so ragged batches balance themselves.
#pragma once

#include "core/context.cuh"
#include "core/divide.cuh"
#include "core/warp.cuh"

constexpr int kSegmentUnits = 1;  // what starting a segment costs, in tiles

// Which query heads a segment is of: pack `index` of a KV head's group.
struct Pack {
    int kv_head, index;

    template<class Params>
    DEVICE Pack(const Params& p, int slot): kv_head(slot), index(0)
    {
        if (p.head_packs > 1) {  // most often 1
            kv_head = divide(slot, p.packs_factor, p.packs_shift);
            index = slot - kv_head * p.head_packs;
        }
    }

    template<int kHeads, class Params>
    DEVICE int first_head(const Params& p) const
    {
        return kv_head * p.group_size + index * kHeads;
    }

    template<int kHeads, class Params>
    DEVICE int heads(const Params& p) const
    {
        return min(kHeads, p.group_size - index * kHeads);
    }
};

template<class Params, int CTA_S>
struct Cursor {
    using Ahead = Cursor;
    int b, slot;      // sequence; segment within it: KV head * head_packs + pack
    int tile, tiles;  // tile within the segment, and how many there are
    int stop;         // tiles [tile, stop) of the segment are left to the warp; none: it is done
    int len, low;     // keys of the sequence that are here; the first of them that the window lets through
    int start;        // unit at which the segment begins

    DEVICE static int slots(const Params& p) { return p.num_kv_heads * p.head_packs; }

    // Every lane has the same: see `uniform`.
    DEVICE void unify()
    {
        b = uniform(b);
        slot = uniform(slot);
        tile = uniform(tile);
        tiles = uniform(tiles);
        stop = uniform(stop);
        len = uniform(len);
        low = uniform(low);
        start = uniform(start);
    }

    // Decode takes sequences with exactly one query.
    DEVICE static bool takes(const Params& p, int b)
    {
        return !(p.cu_seqlens_q && p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] != 1) && !(p.extras.finished && p.extras.finished[b]);
    }

    // The keys of sequence b that are here and that its query sees: [low, len), if there are any.
    DEVICE static bool any_keys(const Params& p, int b, int& len, int& low)
    {
        len = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
        low = p.window_size ? max(len - p.window_size, 0) : 0;
        own_keys(p, len, low);
        return low < len;
    }

    DEVICE void enter(const Params& p, int sequence)
    {
        b = sequence;
        tiles = any_keys(p, b, len, low) && takes(p, b) ? (int)((u32)(len + CTA_S - 1) / CTA_S - (u32)low / CTA_S) : 0;
    }

    // Units of one segment; none if it has no keys.
    DEVICE int units() const { return tiles > 0 ? tiles + kSegmentUnits : 0; }

    // The warp's range of units ends at `end`.
    DEVICE void end_at(const Params&, int end) { stop = min(tiles, end - start - kSegmentUnits); }

    // Before the first tile.
    DEVICE void begin(const Params& p, int end) { end_at(p, end); }

    DEVICE bool done() const { return tile >= stop; }
    DEVICE bool last() const { return tile + 1 >= stop; }

    // A piece ends here. Another begins at `leave`, of another segment: the queries change.
    DEVICE bool paused() const { return done(); }
    DEVICE bool entered() const { return true; }
    DEVICE void enter(const Params&) {}

    // The first tile that the window lets through.
    DEVICE int first() const { return (u32)low / CTA_S; }

    // The first key of the tile, and of it the first and one past the last key that count; below 0 or above CTA_S: all of that side.
    DEVICE int key() const { return (first() + tile) * CTA_S; }
    DEVICE int from() const { return low - key(); }
    DEVICE int to() const { return len - key(); }

    DEVICE int segment(const Params& p) const { return b * slots(p) + slot; }

    // What is to be known at a segment's first tile.
    struct Segment {
        int b, slot, tiles, stop, len, low, start;
    };

    DEVICE Segment entered_segment() const { return {b, slot, tiles, stop, len, low, start}; }

    // After the last of its tiles: to the first one of the next segment, which whoever looks ahead has found.
    DEVICE void leave(const Segment& next)
    {
        b = next.b;
        slot = next.slot;
        tile = 0;
        tiles = next.tiles;
        stop = next.stop;
        len = next.len;
        low = next.low;
        start = next.start;
    }

    // The same where nobody has: to the next segment that has keys, if the range reaches it.
    DEVICE void leave(const Params& p, int end)
    {
        if (stop == tiles) {
            enter_next(p);
            end_at(p, end);
        }
        if (done()) {
            rest();
        }
    }

    // On a tile that surely exists, of whichever sequence.
    DEVICE void rest()
    {
        low = tile = stop = 0;
        len = 1;
    }

    DEVICE void enter_next(const Params& p)
    {
        tile = 0;
        start += tiles + kSegmentUnits;
        if (++slot < slots(p)) {
            return;
        }
        slot = 0;
        tiles = 0;
        while (tiles <= 0 && ++b < p.batch_size) {
            enter(p, b);
        }
    }
};

// How the list is shared out: the first `rest` of `workers` warps take `per` + 1 units, the others `per`.
struct Shares {
    int per, rest;

    static DEVICE Shares of(u32 total, u32 workers)
    {
        const u32 per = total / workers;  // unsigned: fewer instructions where every one is waited for
        return {(int)per, (int)(total - per * workers)};
    }

    DEVICE int begin(int worker) const { return worker * per + min(worker, rest); }

    DEVICE int worker_of(int unit) const
    {
        const int big = rest * (per + 1);
        return unit < big ? (u32)unit / (u32)(per + 1) : rest + (u32)(unit - big) / (u32)max(per, 1);
    }
};

// CTAs take equal shares of the list: they differ by one unit, and so do those of a CTA's warps. Short lists go to as few CTAs as give every
// warp a unit.
struct GridShares {
    u32 ctas;
    Shares shares;

    DEVICE GridShares(u32 total, u32 warps): ctas(min(gridDim.x, (max(total, 1u) - 1) / warps + 1)), shares(Shares::of(total, ctas)) {}

    DEVICE int begin(u32 cta) const { return shares.begin(min(cta, ctas)); }
};

// The list's length, and where a unit of it is. Each lane looks at sequences lane, 32 + lane, ...; what it found of the first is kept.
template<class Params, int CTA_S>
struct FlatPlan {
    using Place = Cursor<Params, CTA_S>;
    Place first;  // of the lane: tiles, len, low
    int total;

    DEVICE FlatPlan(const Params& p, int lane)
    {
        first.tiles = total = 0;
#pragma unroll 1
        for (int b = lane; b < p.batch_size; b += kWarpSize) {
            Place found;
            found.enter(p, b);
            total += found.units();
            if (b == lane) {
                first = found;
            }
        }
        total = warp_sum(total) * Place::slots(p);
    }

    // The place of unit `at`, which must be below the total.
    DEVICE Place find(const Params& p, int lane, int at) const
    {
        const int slots = Place::slots(p);
        Place c = first;
        int base = 0;
#pragma unroll 1
        for (int b = lane;;) {
            const int units = c.units() * slots;
            int upto = units;  // inclusive scan over the lanes
#pragma unroll
            for (int k = 1; k < kWarpSize; k <<= 1) {
                const int other = __shfl_up_sync(kFullWarp, upto, k);
                upto += lane >= k ? other : 0;
            }
            const u32 hit = __ballot_sync(kFullWarp, base + upto > at);
            if (hit) {
                const int owner = __ffs(hit) - 1;
                base += __shfl_sync(kFullWarp, upto - units, owner);
                c.b = b - lane + owner;
                c.tiles = __shfl_sync(kFullWarp, c.tiles, owner);
                c.len = __shfl_sync(kFullWarp, c.len, owner);
                c.low = __shfl_sync(kFullWarp, c.low, owner);
                break;
            }
            base += __shfl_sync(kFullWarp, upto, kWarpSize - 1);
            b += kWarpSize;
            c.tiles = 0;
            if (b < p.batch_size) {
                c.enter(p, b);
            }
        }
        c.slot = (u32)(at - base) / (u32)c.units();
        c.start = base + c.slot * c.units();
        c.tile = max(at - c.start - kSegmentUnits, 0);
        return c;
    }
};
