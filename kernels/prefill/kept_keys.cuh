// Which keys of a tile the caller's mask keeps: its bytes, read as aligned words, become bits in two registers.
#pragma once

#include "core/context.cuh"
#include "ptx/memory.cuh"

// Four lanes hold a row (Impl::Map). Each reads a quarter of a tile's bytes, neighbours, of every row that they hold, and then they trade: a lane
// keeps the bits of those keys whose scores it holds.
template<class Impl>
class KeptKeys {
    using Map = typename Impl::Map;
    static constexpr int kRows = 2 * Impl::kSlabs;               // of a lane
    static constexpr int kWords = Impl::CTA_S / 16;              // of a lane and row
    static constexpr int kBits = kRows * (kWords == 4 ? 2 : 1);  // of a byte of bits_
    static_assert(kWords == 1 || kWords == 2 || kWords == 4);
    static_assert(kBits <= 8);
    static constexpr u32 kAll = 0x01010101u * ((1 << kBits) - 1);

    u32 bits_[2];  // see Word and Bit

public:
    // Of the tile from key0 on. Returns false if no row of the warp keeps any.
    template<class Params, class Tile>
    DEVICE bool Find(const Params& p, const Tile& query, int warp_row, int key0, int lane)
    {
        const int n = Map::key(lane) / 2;  // which of the row's four lanes
        u32 bytes[2] = {0, 0};
        Read(bytes, p, query, warp_row + Map::row(lane), key0 + 4 * kWords * n);
        if (kWords == 1) {  // a lane read 4 of a pair array's 8 keys: the first 4 are those of lanes 0 and 1, the others those of 2 and 3
            bytes[1] = n % 2 ? bytes[0] : 0;
            bytes[0] = n % 2 ? 0 : bytes[0];
        }
        Trade(bytes, n % 2, n / 2);
        return __any_sync(kFullWarp, bits_[0] | bits_[1]);
    }

    // Scores of other keys become -infinity.
    DEVICE void Mask(typename Impl::FragS& frag_s) const
    {
        if (__all_sync(kFullWarp, (bits_[0] & bits_[1]) == kAll)) {
            return;
        }
#pragma unroll
        for (int j = 0; j < 2 * Impl::kKeySteps; ++j) {
#pragma unroll
            for (int i = 0; i < Impl::kSlabs; ++i) {
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    float& s = frag_s[i][j][e];
                    s = bits_[Word(j)] >> Bit(2 * i + e / 2, j, e % 2) & 1 ? s : negative_infinity();
                }
            }
        }
    }

private:
    // Which word has pair array j: what the first and third lane of a row read, or the second and fourth; of 16 keys both have all.
    static constexpr int Word(int j) { return kWords == 4 ? j / 2 % 2 : j % 2; }

    // Which bit is of row r of the lane, pair array j, element e of a pair. A half of the word is of the first or the second half of the tile's keys,
    // a byte of e.
    static constexpr int Bit(int r, int j, int e)
    {
        const int half = kWords == 4 ? j / 4 : kWords == 2 ? j / 2 : j, second = kWords == 4 ? j % 2 : 0;
        return 16 * half + 8 * e + kBits - 1 - second * kRows - r;
    }

    // Whether a byte of the word is not 0 becomes the next bit of that byte of `bits`.
    static DEVICE void Add(u32& bits, u32 word)
    {
        const u32 nonzero = ((word & 0x7f7f7f7fu) + 0x7f7f7f7fu) | word;  // in the bytes' upper bits
        bits += bits + (nonzero >> 7 & 0x01010101u);
    }

    // Of the lane's rows, from `row` on, and keys, from `first` on; those of keys behind the last one may be anything. Words take turns: their bytes
    // are of keys 2 t, 2 t + 1 of eight for lanes t = 0 and 1, and for lanes 2 and 3.
    template<class Params, class Tile>
    static DEVICE void Read(u32 (&bytes)[2], const Params& p, const Tile& query, int row, int first)
    {
        const u8* const mask = query.mask + p.cp_rank;
        const int token = query.token(row);
        auto place_of = [&](int r) {  // of the row's first key; rows behind the last one repeat it
            const int step = r / 2 * query.slab_step(Impl::kSlabRows) + r % 2 * Map::kRowStep;
            return (i64)min(token + step, query.qlen - 1) * query.klen;
        };
        // A lane's rows are in the order of their tokens: all words are the mask's if those of the first and the last are. They begin up to 3 bytes
        // before the lane's keys, and there is one more than the keys fill.
        const bool inside = (place_of(0) + first >= 3) & (place_of(kRows - 1) + first + 4 * kWords + 4 <= (i64)query.qlen * query.klen);
        if (p.cp_size == 1 && __all_sync(kFullWarp, inside)) {
            u32 words[kRows][kWords + 1][1], odd[kRows];
#pragma unroll
            for (int r = 0; r < kRows; ++r) {
                const u8* const at = mask + place_of(r) + first;
                if (first >= Impl::CTA_S) {
                    prefetch_l1(at - Impl::CTA_S);  // the next tile's
                }
                odd[r] = (u64)at & 3;
#pragma unroll
                for (int w = 0; w <= kWords; ++w) {
                    ld_global(words[r][w], at - odd[r] + 4 * w);
                }
            }
#pragma unroll
            for (int w = 0; w < kWords; ++w) {
#pragma unroll
                for (int r = 0; r < kRows; ++r) {
                    Add(bytes[w % 2], __funnelshift_r(words[r][w][0], words[r][w + 1][0], 8 * odd[r]));
                }
            }
            return;
        }
#pragma unroll 1
        for (int w = 0; w < kWords; ++w) {  // byte by byte: few tiles of one GPU, all tiles of ranks
            u32 next = bytes[0];
#pragma unroll 1
            for (int r = 0; r < kRows; ++r) {
                const u8* const at = mask + place_of(r);
                u32 word = 0;
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int key = first + 4 * w + e;
                    if (key < query.len) {
                        word |= (u32)at[(i64)key * p.cp_size] << 8 * e;
                    }
                }
                Add(next, word);
            }
            bytes[0] = kWords == 1 ? next : bytes[1];
            bytes[1] = next;
        }
    }

    // What lane n of a row read for lanes t, half t % 2 of bytes[t / 2], goes to them.
    DEVICE void Trade(const u32 (&bytes)[2], bool odd, bool upper)
    {
        const u32 own = upper ? bytes[1] : bytes[0];
        const u32 other = __shfl_xor_sync(kFullWarp, upper ? bytes[0] : bytes[1], Map::kRowLanes[1]);
        const u32 low = prmt(own, other, 0x5410), high = prmt(own, other, 0x7632);
        const u32 kept = odd ? high : low, taken = __shfl_xor_sync(kFullWarp, odd ? low : high, Map::kRowLanes[0]);
        const u32 order = upper ? 0x1032 : 0x3210;  // halves: what lanes 0 and 1 read, and what 2 and 3 did
        bits_[0] = prmt(odd ? taken : kept, 0, order);
        bits_[1] = prmt(odd ? kept : taken, 0, order);
        if (kWords == 1) {
            bits_[0] = bits_[1] = bits_[0] | bits_[1];
        }
    }
};
