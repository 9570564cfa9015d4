"""What a few dozen tokens say of every pixel: from tokens and their boxes to a map, and what is done with maps.

In: what an encoder returned of photos, and the photos. Out: a map (B, D, h, w) that a decoder of segmentation reads, and how good
one is. `maps` are the maps that boxes alone give, `guide` the one that the photo guides, `probe` the linear classifier that
compares them. It knows `util` to `alternatives`.
"""
