// A CTA's query tile: tokens of one sequence for a pack of heads of one KV head. Row r is token r % tokens, head r / tokens.
#pragma once

#include "core/context.cuh"
#include "prefill/mask_ranges.cuh"

template<int kRows>
struct QueryTile {
    int b, head0, kv_head;
    int token0;       // first token of the tile, in the sequence's new tokens
    int tokens_log2;  // tokens per tile
    int row0, qlen, klen;
    int len;  // keys of the sequence that are here
    // Keys here that some row of the tile may see, [first_key, keys), and that every row sees, as far as it has them all.
    int first_key, keys, common_first_key, common_keys;

    // Heads vary fastest, so that CTAs which share K and V run together; the tiles with most keys come first.
    // False where the sequence has no such tile, is finished, or has a single query, which decode takes.
    template<class Params>
    DEVICE bool Find(const Params& p, int index)
    {
        const u32 pack_log2 = p.head_packs, packs = (u32)p.num_heads >> pack_log2, batch_size = p.batch_size;
        const u32 of_packs = (u32)index / packs;
        head0 = (index - of_packs * packs) << pack_log2;
        const u32 from_end = of_packs / batch_size;
        b = of_packs - from_end * batch_size;
        kv_head = (u32)head0 / (u32)p.group_size;
        row0 = p.cu_seqlens_q[b];
        qlen = p.cu_seqlens_q[b + 1] - row0;
        klen = p.cu_seqlens_k[b + 1] - p.cu_seqlens_k[b];
        len = own_keys(p, klen);
        tokens_log2 = 31 - __clz(kRows) - pack_log2;
        const int tile = ((qlen + (1 << tokens_log2) - 1) >> tokens_log2) - 1 - from_end;
        token0 = tile << tokens_log2;
        FindKeys(p);
        return tile >= 0 && (qlen > 1 || p.single_queries) && !(p.extras.finished && p.extras.finished[b]);
    }

    DEVICE int token(int row) const { return token0 + (row & ((1 << tokens_log2) - 1)); }
    DEVICE int head(int row) const { return head0 + (row >> tokens_log2); }
    DEVICE int position(int row) const { return klen - qlen + token(row); }
    DEVICE bool valid(int row) const { return token(row) < qlen; }
    // Tokens from a slab of so many rows to the next one: a warp's slabs hold consecutive tokens, or the same tokens of other heads.
    DEVICE int slab_step(int rows) const { return rows < 1 << tokens_log2 ? rows : 0; }

private:
    // One division of context parallelism serves all four.
    template<class Params>
    DEVICE void FindKeys(const Params& p)
    {
        const int first = klen - qlen + token0 + 1, behind = klen - qlen + min(token0 + (1 << tokens_log2), qlen);
#pragma unroll 1
        for (int n = 0; n < 4; ++n) {
            const bool common = n % 2, begin = n / 2;
            const int position = max((common == begin ? behind : first) - (begin ? p.window_size : 0), 0);
            const int key = (begin ? p.window_size : p.causal) ? own_keys(p, position) : begin ? 0 : len;
            (begin ? common ? common_first_key : first_key : common ? common_keys : keys) = key;
        }
    }
};

// The same of a call that may have a mask: of the keys only those that it keeps for some row, as far as that was found out. A type of its own:
// with a wider member plain kernels would keep the tile in one piece, not by members.
template<int kRows>
struct MaskedTile: QueryTile<kRows> {
    const u8* mask;  // the sequence's, where there is one

    template<class Params>
    DEVICE bool Find(const Params& p, int index)
    {
        const bool found = QueryTile<kRows>::Find(p, index);
        mask = p.extras.mask ? p.extras.mask + p.extras.mask_starts[this->b] : nullptr;
        if (found && p.extras.mask_ranges) {
            Narrow(p);
        }
        return found;
    }

private:
    template<class Params>
    DEVICE void Narrow(const Params& p)
    {
        const int2* const ranges = (const int2*)p.extras.mask_ranges + (i64)this->b * mask_ranges_of(p.max_seqlen_q);
        const int last_token = min(this->token0 + (1 << this->tokens_log2), this->qlen) - 1;
        int begin = this->klen, end = 0;
#pragma unroll 1
        for (int entry = this->token0 / kRangeQueries; entry <= last_token / kRangeQueries; ++entry) {
            const int2 range = ranges[entry];
            if (range.x < range.y) {
                begin = min(begin, range.x);
                end = max(end, range.y);
            }
        }
        this->first_key = max(this->first_key, own_keys(p, begin));
        this->keys = max(min(this->keys, own_keys(p, end)), this->first_key);
    }
};

// The first of a warp's query rows. Warps that are four apart share a scheduler: where a tile's tokens are several warps' rows, the diagonal
// leaves those with early tokens less to do, and one of them shares it with one that has late tokens.
template<int kWarpRows>
DEVICE int first_query_row(int warp)
{
    return (warp & 4 ? warp ^ 3 : warp) * kWarpRows;
}
