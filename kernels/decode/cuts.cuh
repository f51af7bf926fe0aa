// How sequences are cut where results must not depend on the rest of the batch.
// A cut's keys are summed up in groups of at most kGroupTiles, a group in parts of kPartTiles; a part is one warp's from its first key to its
// last, whoever that is. CTAs take whole groups, warps whole parts, and all sums are made in the order of the keys.
#pragma once

#include "decode/cursor.cuh"

struct Group {
    int begin, end;  // tiles of the segment
};

// The cuts of a segment: the same for every grid and every batch.
template<int CTA_S, int kPartTiles, int kGroupTiles>
struct Cuts {
    int tiles;   // of the segment
    int cut;     // tiles of a cut
    int groups;  // of a cut
    int group;   // tiles of a group
    int offset;  // tiles from the begin of the first cut to the segment's first

    template<class Params, class Place>
    DEVICE Cuts(const Params& p, const Place& c): tiles(c.tiles), offset(0)
    {
        if (p.num_splits > 0) {  // that many of equal length
            cut = (u32)(tiles + p.num_splits - 1) / (u32)p.num_splits;
        }
        else {  // at multiples of -num_splits keys
            cut = -p.num_splits / CTA_S;
            offset = (u32)c.first() % (u32)cut;
        }
        groups = (cut + kGroupTiles - 1) / kGroupTiles;
        group = (u32)(cut + groups - 1) / (u32)groups;
    }

    // The number of the group that holds a tile, in the segment.
    DEVICE int index(int tile) const
    {
        const u32 at = tile + offset, whole = at / (u32)cut;
        return whole * groups + (at - whole * cut) / (u32)group - (u32)offset / (u32)group;
    }

    DEVICE int count() const { return index(tiles - 1) + 1; }

    DEVICE Group at(int tile) const
    {
        const u32 x = tile + offset, whole = x / (u32)cut, k = (x - whole * cut) / (u32)group;
        const int base = whole * cut - offset;
        return {max(base + (int)k * group, 0), min(base + min(((int)k + 1) * group, cut), tiles)};
    }

    // The next begin of a group, or of a part, from a tile on.
    DEVICE int next_group(int tile) const { return next(tile, kGroupTiles); }
    DEVICE int next_part(int tile) const { return next(tile, kPartTiles); }

private:
    DEVICE int next(int tile, int step) const
    {
        if (tile <= 0 || tile >= tiles) {
            return max(min(tile, tiles), 0);
        }
        const Group g = at(tile);
        const int gone = tile - g.begin;
        return min(g.begin + (gone + step - 1) / step * step, g.end);
    }
};
