"""The other ways to few tokens, which a sparse tower is to be compared with; none of them is trained.

In: a dense tower and a number of tokens. Out: `towers.ReducedTower`, for hosts, by a method of `methods`;
`controls`, for pooled vectors; and in `costs` what any model costs a photo. It knows `util`, `photos`, `encoder`, `zoo` and `teachers`.
"""
