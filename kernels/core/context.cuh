// Context parallelism: of every sequence's keys, those at positions i * cp_size + cp_rank are here, as its keys i.
#pragma once

#include "core/divide.cuh"

// How many of a sequence's first `length` keys are here.
template<class Params>
DEVICE int own_keys(const Params& p, int length)
{
    return p.cp_size > 1 ? divide(length + (p.cp_size - 1 - p.cp_rank), p.cp_factor, p.cp_shift) : length;
}

// The same of two lengths, by one branch.
template<class Params>
DEVICE void own_keys(const Params& p, int& first, int& second)
{
    if (p.cp_size > 1) {
        first = own_keys(p, first);
        second = own_keys(p, second);
    }
}

// Where key i stands in its sequence.
template<class Params>
DEVICE int position_of_key(const Params& p, int i)
{
    return i * p.cp_size + p.cp_rank;
}

// How far from its query, on the sequence's last token, a key of decode's segment stands that is `from_end` keys from the end of those here.
template<class Params, class Place>
DEVICE float distance_from_query(const Params& p, const Place& place, int from_end)
{
    int distance = from_end + 1;
    if (p.cp_size > 1) {
        const int len = p.cu_seqlens_k[place.b + 1] - p.cu_seqlens_k[place.b];
        distance = position_of_key(p, place.len + from_end) - (len - 1);
    }
    return (float)distance;
}
