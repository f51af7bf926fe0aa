// Which keys a mask keeps: for every kRangeQueries neighbouring queries of a sequence the first one and the one past the last. What a mask hides
// before and behind them, documents that others stand between, say, is then read by nobody; found once, for the tiles of all heads.
#pragma once

#include "core/warp.cuh"
#include "ptx/memory.cuh"

constexpr int kRangeQueries = 64;

DEVICE int mask_ranges_of(int queries)
{
    return (queries + kRangeQueries - 1) / kRangeQueries;
}

// Rows of bytes, one for each of some queries, in a sequence's mask.
struct MaskRows {
    const u8* rows;
    int count, len;
    i64 lower, upper;  // bytes of the mask from the first row on: those before it are negative

    static constexpr int kNone = 0x7fffffff;
    static constexpr int kChunk = 16, kAtOnce = 8;

    // Of keys [from, to), in every `workers`-th chunk from `worker` on, the first that a query keeps or, `back`, the last, as -(key + 1): both ways
    // the nearest is the smallest number. Chunks are aligned: a row's first one may begin before the keys, its last end behind them.
    DEVICE int Nearest(int from, int to, bool back, int worker, int workers) const
    {
        const u32 per_row = (u32)(to - from + 2 * kChunk - 2) / kChunk;
        const int total = count * (int)per_row;
        int found = kNone;
#pragma unroll 1
        for (int i = worker; i < total; i += kAtOnce * workers) {
            float4 bytes[kAtOnce];
            u32 kept = 0;  // chunks that hold bytes which are not 0, or may not be read whole
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const int chunk = i + n * workers, row = (u32)chunk / per_row;
                const i64 at = Place(row, from) + (chunk - row * (int)per_row) * kChunk;
                const bool wanted = chunk < total && at - (i64)row * len < to, whole = at >= lower && at + kChunk <= upper;
                bytes[n] = make_float4(0.f, 0.f, 0.f, 0.f);
                ld_if(bytes[n], rows + at, wanted && whole);  // all are on their way together
                kept |= wanted && !whole ? 1 << n : 0;
            }
#pragma unroll
            for (int n = 0; n < kAtOnce; ++n) {
                const float4& x = bytes[n];
                kept |= __float_as_uint(x.x) | __float_as_uint(x.y) | __float_as_uint(x.z) | __float_as_uint(x.w) ? 1 << n : 0;
            }
#pragma unroll 1
            for (; kept; kept &= kept - 1) {
                const int chunk = i + (__ffs(kept) - 1) * workers, row = (u32)chunk / per_row;
                const i64 first = (i64)row * len;
                const int key = (int)(Place(row, from) - first) + (chunk - row * (int)per_row) * kChunk;
                found = min(found, In(first, key, from, to, back));
            }
        }
        return found;
    }

private:
    // Where the chunk lies that has key `from` of a row.
    DEVICE i64 Place(int row, int from) const
    {
        const i64 at = (i64)row * len + from;
        return at - (u64)(rows + at) % kChunk;
    }

    // In one chunk of the row that begins at `row`, from key `first` on.
    DEVICE int In(i64 row, int first, int from, int to, bool back) const
    {
#pragma unroll 1
        for (int e = 0; e < kChunk; ++e) {
            const int key = first + (back ? kChunk - 1 - e : e);
            if (key >= from && key < to && rows[row + key]) {
                return back ? -(key + 1) : key;
            }
        }
        return kNone;
    }
};

// By a CTA, for entry `entry` of sequence b. Most masks keep one of the first few keys, and one of the last: each step is longer than the one
// before. Half of the warps look from the front and half from the back; once one end is found, all look for the other.
template<int kWarps, class Params>
DEVICE void find_mask_range(const Params& p, int b, int entry, int thread)
{
    static_assert(kWarps % 2 == 0);
    constexpr int kNone = MaskRows::kNone, kFirstStep = 64, kLastStep = 4096;
    const int queries = p.cu_seqlens_q[b + 1] - p.cu_seqlens_q[b], len = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
    const int first_query = entry * kRangeQueries, last_query = min(first_query + kRangeQueries, queries);
    if (first_query >= queries) {
        return;
    }
    // what the diagonal and the window leave
    int begin = p.window_size ? max(len - queries + first_query - p.window_size + 1, 0) : 0;
    int end = p.causal ? len - queries + last_query : len;
    const i64 before = (i64)first_query * len;
    const MaskRows rows{p.extras.mask + p.extras.mask_starts[b] + before, last_query - first_query, len, -before,
                        (i64)queries * len - before};
    __shared__ int nearest[kWarps];
    const int warp = thread / kWarpSize;
    bool front = true, back = true;  // are looked for
#pragma unroll 1
    for (int step = kFirstStep; begin < end && (front || back); step = min(8 * step, kLastStep)) {
        const int warps = front && back ? kWarps / 2 : kWarps;  // at an end
        const bool from_back = front ? warp >= warps : true;
        const int later = min(end, begin + step), earlier = max(begin, end - step);
        const int found = warp_min(
            rows.Nearest(from_back ? earlier : begin, from_back ? end : later, from_back, thread % (warps * kWarpSize), warps * kWarpSize));
        if (thread % kWarpSize == 0) {
            nearest[warp] = found;
        }
        __syncthreads();
        int first = kNone, last = kNone;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) {
            const bool behind = front ? w >= warps : true;
            first = behind ? first : min(first, nearest[w]);
            last = behind ? min(last, nearest[w]) : last;
        }
        __syncthreads();
        if (front) {
            begin = first == kNone ? later : first;
        }
        if (back) {
            end = last == kNone ? earlier : -last;
        }
        front = front && first == kNone;
        back = back && last == kNone;
    }
    if (thread == 0) {
        int* const range = p.extras.mask_ranges + 2 * ((i64)b * mask_ranges_of(p.max_seqlen_q) + entry);
        range[0] = begin;
        range[1] = end;
    }
}
