// How sequences are cut where results must not depend on the rest of the batch.
// A cut's keys are summed up in groups of kGroupTiles, a group in parts of kPartTiles, the last ones in what is left; a part is one warp's from
// its first key to its last, whoever that is. CTAs take whole groups, warps whole parts, and all sums are made in the order of the keys.
#pragma once

#include "decode/cursor.cuh"

struct Group {
    int begin, end;  // tiles of the segment
    int index;       // in the segment
};

// The cuts of a segment: the same for every grid and every batch.
template<int CTA_S, int kPartTiles, int kGroupTiles>
struct Cuts {
    static_assert((kPartTiles & (kPartTiles - 1)) == 0 && (kGroupTiles & (kGroupTiles - 1)) == 0);

    int tiles;   // of the segment
    int cut;     // tiles of a cut
    int offset;  // tiles from the begin of the first cut to the segment's first

    template<class Params, class Place>
    DEVICE Cuts(const Params& p, const Place& c): tiles(c.tiles)
    {
        const bool equal = p.num_splits > 0;  // that many of equal length, else at multiples of -num_splits keys
        const int n = equal ? p.num_splits : (u32)-p.num_splits / (u32)CTA_S;
        const int ratio = divide(equal ? tiles + n - 1 : c.first(), p.splits_factor, p.splits_shift);
        cut = equal ? ratio : n;
        offset = equal ? 0 : c.first() - ratio * n;
    }

    // The group that holds a tile.
    DEVICE Group at(int tile) const
    {
        const u32 x = tile + offset, whole = x / (u32)cut, k = (x - whole * cut) / kGroupTiles;
        const int base = whole * cut - offset, begin = base + (int)k * kGroupTiles;
        const int groups = (u32)(cut + kGroupTiles - 1) / kGroupTiles, gone = (u32)offset / kGroupTiles;
        return {max(begin, 0), min(min(begin + kGroupTiles, base + cut), tiles), (int)(whole * groups + k) - gone};
    }

    DEVICE int count() const { return at(tiles - 1).index + 1; }

    // The next begin of a group (`step`: kGroupTiles) or of a part (kPartTiles), from a tile on.
    DEVICE int next(int tile, int step) const
    {
        if (tile <= 0 || tile >= tiles) {
            return max(min(tile, tiles), 0);
        }
        const Group g = at(tile);
        return min(g.begin + ((tile - g.begin + step - 1) & -step), g.end);
    }
};
