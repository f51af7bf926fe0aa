// The flat list of key tiles, and a warp's place in it.
// A segment is one (sequence, KV head, pack of query heads). The list holds all segments, one after the other; each is kSegmentUnits units
// of overhead, then one unit a tile. Every warp takes an equal, contiguous range of units, so ragged batches balance themselves.
#pragma once

#include "core/context.cuh"
#include "core/warp.cuh"

constexpr int kSegmentUnits = 1;  // what starting a segment costs, in tiles

// First query head of segment `slot` of a sequence.
template<int kHeads, class Params>
DEVICE int first_head(const Params& p, int slot)
{
    return slot / p.head_packs * p.group_size + slot % p.head_packs * kHeads;
}

template<class Params, int CTA_S>
struct Cursor {
    int b, slot;      // sequence; segment within it: KV head * head_packs + pack
    int tile, tiles;  // tile within the segment, and how many there are
    int stop;         // tiles [tile, stop) of the segment are left to the warp; none: it is done
    int len, low;     // keys of the sequence that are here; the first of them that the window lets through
    int start;        // unit at which the segment begins

    DEVICE static int slots(const Params& p) { return p.num_kv_heads * p.head_packs; }

    // Decode takes sequences with exactly one query.
    DEVICE static bool takes(const Params& p, int b)
    {
        return !(p.cu_seqlens_q && p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b] != 1) && !(p.extras.finished && p.extras.finished[b]);
    }

    // Tiles of sequence b that hold keys which its query sees; keys [low, len).
    DEVICE static int count_tiles(const Params& p, int b, int& len, int& low)
    {
        len = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
        low = 0;
        if (!takes(p, b)) {
            return 0;
        }
        if (p.window_size) {
            low = max(len - p.window_size, 0);
        }
        if (p.cp_size > 1) {
            len = own_keys(p, len);
            low = own_keys(p, low);
            if (low == len) {
                return 0;
            }
        }
        return (len + CTA_S - 1) / CTA_S - low / CTA_S;
    }

    // Units of one segment of sequence b; 0 if it has no keys.
    DEVICE static int count_units(const Params& p, int b)
    {
        int len, low;
        const int n = count_tiles(p, b, len, low);
        return n > 0 ? n + kSegmentUnits : 0;
    }

    DEVICE void enter(const Params& p) { tiles = count_tiles(p, b, len, low); }

    // The warp's range of units ends at `end`.
    DEVICE void end_at(int end) { stop = min(tiles, end - start - kSegmentUnits); }

    DEVICE bool done() const { return tile >= stop; }

    // The first tile that the window lets through.
    DEVICE int first() const { return low / CTA_S; }

    // The first key of the tile, and of it the first and one past the last key that count; below 0 or above CTA_S: all of that side.
    DEVICE int key() const { return (first() + tile) * CTA_S; }
    DEVICE int from() const { return low - key(); }
    DEVICE int to() const { return len - key(); }

    DEVICE int segment(const Params& p) const { return b * slots(p) + slot; }

    // After the last of its tiles: to the beginning of the next segment that has keys, if the range reaches it.
    DEVICE void leave(const Params& p, int end)
    {
        if (stop == tiles) {
            enter_next(p);
            end_at(end);
        }
        if (done()) {
            low = tile = stop = 0;  // a tile that surely exists, of whichever sequence
            len = 1;
        }
    }

private:
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
            enter(p);
        }
    }
};

// How the list is shared out: the first `rest` of `workers` warps take `per` + 1 units, the others `per`.
struct Shares {
    int per, rest;

    static DEVICE Shares of(int total, int workers) { return {total / workers, total % workers}; }

    DEVICE int begin(int worker) const { return worker * per + min(worker, rest); }

    DEVICE int worker_of(int unit) const
    {
        const int big = rest * (per + 1);
        return unit < big ? unit / (per + 1) : rest + (unit - big) / max(per, 1);
    }
};

// Sequences lane, 32 + lane, ... of the first kHeld * 32 are kept in registers between the two passes over the batch.
template<class Params, int CTA_S>
struct FlatPlan {
    using Place = Cursor<Params, CTA_S>;
    static constexpr int kHeld = 4;
    int held[kHeld];
    int total;

    DEVICE FlatPlan(const Params& p, int lane)
    {
        total = 0;
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            const int b = kWarpSize * i + lane;
            held[i] = b < p.batch_size ? Place::count_units(p, b) : 0;
        }
#pragma unroll
        for (int i = 0; i < kHeld; ++i) {
            total += held[i];
        }
        for (int b = kHeld * kWarpSize + lane; b < p.batch_size; b += kWarpSize) {
            total += Place::count_units(p, b);
        }
        total = warp_sum(total) * Place::slots(p);
    }

    // The place of unit `at`, which must be below the total.
    DEVICE Place find(const Params& p, int lane, int at) const
    {
        Place c;
        int base = 0;
#pragma unroll 1
        for (int i = 0;; ++i) {
            const int b = kWarpSize * i + lane;
            int units = i == 0             ? held[0]
                        : i == 1           ? held[1]
                        : i == 2           ? held[2]
                        : i == 3           ? held[3]
                        : b < p.batch_size ? Place::count_units(p, b)
                                           : 0;
            units *= Place::slots(p);
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
                c.b = kWarpSize * i + owner;
                break;
            }
            base += __shfl_sync(kFullWarp, upto, kWarpSize - 1);
        }
        c.enter(p);
        const int units = c.tiles + kSegmentUnits;
        c.slot = (at - base) / units;
        c.start = base + c.slot * units;
        c.tile = max(at - c.start - kSegmentUnits, 0);
        return c;
    }
};
